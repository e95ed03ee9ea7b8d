"""Trees of nodes that belong together, joined link by link, as many as there are: one number a node is kept."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from producer.scratch import MEMORY, Space, numbers, pieces


class Forest:
    """`number` nodes, each by itself until it is joined; the root of a tree is its smallest node."""

    def __init__(self, number: int, space: Space = MEMORY) -> None:
        self._parent = space.numbers(number)  # never larger than the node

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Make one tree of those of one[i] and other[i], for each i."""
        one, other = self.roots(one), self.roots(other)
        apart = one != other
        if not apart.any():
            return
        nodes, place = np.unique(np.stack([one[apart], other[apart]]), return_inverse=True)
        one, other = place.reshape(2, -1)
        links = coo_array((np.ones(len(one), bool), (one, other)), (len(nodes), len(nodes)))
        tree = connected_components(links, directed=False)[1]
        smallest = np.unique(tree, return_index=True)[1]
        self._parent[nodes] = nodes[smallest[tree]]

    def add(self, other: "Forest") -> None:
        """Join what `other`, of as many nodes, has joined."""
        for part in pieces(len(self._parent)):
            self.join(numbers(part), other._parent[part])

    def roots(self, nodes: np.ndarray) -> np.ndarray:
        """The root of each of `nodes`."""
        found = self._parent[nodes]
        while not np.array_equal(further := self._parent[found], found):
            found = further
        self._parent[nodes] = found
        return found
