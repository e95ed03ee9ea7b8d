"""Caption: samples that nothing can be learnt from about words."""

from collections.abc import Sequence

from producer.operator.judgement import Judgement, Sample, Score


class Caption:
    """Score: how many usable captions a sample has, over all splits, from 0. Higher means more ways to train on it.

    Kept from 1 on. Missing, empty, not UTF-8, of control characters or endless captions are not usable; with another
    one beside it the sample stays, with that one alone.
    """

    name = "caption"
    version = 1

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(float(len(sample.raw.captions)), "; ".join(sample.raw.caption_faults)) for sample in samples]

    def judge(self, score: Score) -> Judgement:
        usable = bool(score.value)
        return Judgement(score.value, usable, score.note or ("" if usable else "no caption"))
