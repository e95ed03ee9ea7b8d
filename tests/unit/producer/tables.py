"""What operators that look at tables say of all rows, their pieces put together."""

import numpy as np
import pyarrow as pa

from producer.operator.judgement import Judgements, TableOperator, TableTagger
from producer.scratch import MEMORY, Space


def judge(one: TableOperator, table: pa.Table, space: Space = MEMORY) -> Judgements:
    pieces = [Judgements.of([]), *one.judge_table(table, space)]
    score, verdict, reason = zip(*pieces, strict=True)
    return Judgements(np.concatenate(score), np.concatenate(verdict), pa.concat_arrays(reason))


def tag(one: TableTagger, table: pa.Table, space: Space = MEMORY) -> list[str]:
    return [said for piece in one.tag_table(table, space) for said in piece]
