"""Exact duplicates: the same bytes under several names."""

import numpy as np

from producer.operator.judgement import Clusters, Facts


class ExactDuplicate:
    """Score: how many other samples have an image of the same SHA-256, from 0. Higher means more copies.

    Of each group the oldest is kept, by the first generation that kept it, then the one with the smallest key.
    """

    name = "exact_duplicate"
    version = 1

    def cluster(self, facts: Facts) -> Clusters:
        high, low = facts.sha256.T
        order = np.lexsort((facts.age.rank(), low, high))
        high, low = high[order], low[order]
        new = np.ones(len(order), bool)
        new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        group = np.cumsum(new) - 1
        kept, score = np.empty(len(order), np.int64), np.empty(len(order))
        kept[order] = order[new][group]
        score[order] = np.bincount(group)[group] - 1 if len(group) else 0
        return Clusters(kept, score, "the same bytes as")
