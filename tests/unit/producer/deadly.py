"""Scores a shard where an operator ends its process, or reading does: `python deadly.py JOB ROW OPERATOR KEY HOW`.

HOW is kill, or hang: native code that waits and keeps Python's lock, as one with an endless loop does.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence

from producer import scoring
from producer.operator.file_size import FileSize
from producer.operator.judgement import Sample, Score

_score, _look = FileSize.score, scoring.look


def _end() -> None:
    if sys.argv[5] == "hang":
        ctypes.PyDLL(None).sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)


def _deadly_score(self: FileSize, samples: Sequence[Sample]) -> list[Score]:
    if any(one.raw.key == sys.argv[4] for one in samples):
        _end()
    return _score(self, samples)


def _deadly_look(reader, raw, stage):  # type: ignore[no-untyped-def]
    if raw.key == sys.argv[4] and not raw.fault:
        _end()
    return _look(reader, raw, stage)


if __name__ == "__main__":
    if sys.argv[3] == "file_size":
        FileSize.score = _deadly_score  # type: ignore[method-assign]
    else:
        scoring.look = _deadly_look
    print(json.dumps(scoring.score_shard(json.loads(sys.argv[2]), sys.argv[1])))
