"""Exact duplicates: the same bytes under several names."""

from collections import Counter

import numpy as np

from producer.operator.judgement import Clusters, Facts


class ExactDuplicate:
    """Score: how many other samples have an image of the same SHA-256, from 0. Higher means more copies.

    Of each group the sample with the smallest key is kept.
    """

    name = "exact_duplicate"
    version = 1

    def cluster(self, facts: Facts) -> Clusters:
        first: dict[str, int] = {}
        for row in sorted(range(len(facts.key)), key=lambda row: facts.key[row]):
            first.setdefault(facts.sha256[row], row)
        copies = Counter(facts.sha256)
        kept = np.asarray([first[digest] for digest in facts.sha256], np.int64)
        score = np.asarray([copies[digest] - 1 for digest in facts.sha256], np.float64)
        return Clusters(kept, score, [f"the same bytes as {facts.key[row]}" for row in kept])
