"""All that curation makes of score files at hand, in one table."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa

from producer.index import schema
from producer.judging import judge
from producer.older import Older
from producer.operator.stage import Stage
from producer.runs import read_in_order, write_run
from producer.source.reader import SourceConfig
from producer.verdict import Whole


def decide(
    scores: pa.Table, stage: Stage, *, source: SourceConfig, count_tokens: Callable[[Sequence[str]], list[int]]
) -> pa.Table:
    """The index's rows for `scores` (see scoring.py) alone, sorted by key."""
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        run = write_run(judge(scores, stage, source=source, count_tokens=count_tokens), scratch / "0.arrow")
        whole = Whole(stage, source, Older(scratch / "none"), scratch)
        for rows in read_in_order([run] if run else [], scratch):
            whole.add(rows)
        whole.decide()
        shape = schema({name: {"of": kind} for name, kind in stage.kinds.items()})
        return pa.concat_tables([shape.empty_table(), *whole.tables()])
