"""Exact duplicates: the same bytes under several names."""

import numpy as np

from producer.operator.judgement import Clusters, Facts
from producer.ordering import grouped, ordered, places
from producer.scratch import pieces


class ExactDuplicate:
    """Score: how many other samples have an image of the same SHA-256, from 0. Higher means more copies.

    Of each group the oldest is kept, by the first generation that kept it, then the one with the smallest key.
    """

    name = "exact_duplicate"
    version = 1

    def cluster(self, facts: Facts) -> Clusters:
        space, number = facts.space, len(facts.sha256)
        high, low = facts.sha256.T
        rows = ordered(number, high.__getitem__, low.__getitem__, *facts.age.words(), space=space)
        kept, copies = space.empty(number, np.int64), space.filled(number, np.int64, 0)
        for part, first in grouped(rows, 2):
            of = places(rows, first)
            kept[places(rows, part)] = of
            np.add.at(copies, of, 1)
        score = space.empty(number, np.float64)
        for part in pieces(number):
            score[part] = copies[kept[part]] - 1
        return Clusters(kept, score, "the same bytes as")
