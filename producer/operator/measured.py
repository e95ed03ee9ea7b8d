"""What operators have in common that measure one number on the decoded picture and keep what lies between bounds."""

import math
from collections.abc import Sequence

from producer.operator.judgement import NOT_JUDGED, Judgement, Picture, Sample, Score


class Measured:
    """An operator but for its `name` and `measure`. Scores lie in `least` to `most`, both included, or are dropped."""

    name: str
    version = 1

    def __init__(self, *, least: float = -math.inf, most: float = math.inf) -> None:
        self._least, self._most = least, most

    def measure(self, picture: Picture) -> float:
        """The score of one picture."""
        raise NotImplementedError

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(None if one.picture is None else float(self.measure(one.picture))) for one in samples]

    def judge(self, score: Score) -> Judgement:
        if score.value is None:
            return NOT_JUDGED
        if score.value < self._least:
            return Judgement(score.value, False, f"{score.value:.3g}, below {self._least:g}")
        if score.value > self._most:
            return Judgement(score.value, False, f"{score.value:.3g}, above {self._most:g}")
        return Judgement(score.value, True)
