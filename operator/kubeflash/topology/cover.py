"""The fairest edge cover of a bipartite graph, by minimum cost flow. Pure.

Every node of both sides gets at least one edge; the sum of the squares of the nodes' numbers of edges is least, and
then the sum of the edges' own costs. It is a flow from a source over the right nodes and the chosen edges to the left
nodes and a sink, in which a node's n-th unit costs 2n - 1 (together n squared) and its first one is rewarded beyond
anything that the rest can cost. Costs that grow with the flow are what successive cheapest paths solve exactly (Ahuja,
Magnanti, Orlin, "Network Flows", 9.7 and 14.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping


def cheapest_cover(left: int, right: int, costs: Mapping[tuple[int, int], tuple[int, ...]]) -> list[tuple[int, int]]:
    """The edges (left node, right node) of the cover, sorted.

    Args:
        left: number of left nodes.
        right: number of right nodes.
        costs: the edges that there are, each with its costs by several criteria, the first foremost; exact, however
            large.

    Raises:
        ValueError: when a node has no edge.
    """
    if {a for a, _ in costs} != set(range(left)) or {b for _, b in costs} != set(range(right)):
        raise ValueError("a node without an edge cannot be covered")
    flow = _Flow(left, right, _as_one_number(costs))
    for node in range(right):  # each needs one unit in any case: found by itself, the search is short
        flow.add_unit([node])
    while flow.add_unit(range(right)):
        pass
    return sorted(flow.chosen)


def _as_one_number(costs: Mapping[tuple[int, int], tuple[int, ...]]) -> dict[tuple[int, int], int]:
    """Several criteria as one whole number, whose leading digits are the first criterion."""
    result = dict.fromkeys(costs, 0)
    factor = 1
    for criterion in reversed(range(len(next(iter(costs.values()))))):
        for edge, values in costs.items():
            result[edge] += values[criterion] * factor
        factor *= 1 + 2 * sum(abs(values[criterion]) for values in costs.values())
    return result


class _Flow:
    """The edges chosen so far. Units go from the source to a right node, over edges to a left node, to the sink."""

    def __init__(self, left: int, right: int, weight: Mapping[tuple[int, int], int]) -> None:
        self.chosen: set[tuple[int, int]] = set()
        self._weight = weight
        self._uses_left, self._uses_right = [0] * left, [0] * right
        self._chosen_of_left: list[set[tuple[int, int]]] = [set() for _ in range(left)]
        self._of_right: list[list[tuple[int, int]]] = [[] for _ in range(right)]
        for edge in weight:
            self._of_right[edge[1]].append(edge)
        self._square = 1 + 2 * sum(abs(value) for value in weight.values())  # fairness outweighs all edges
        self._reward = self._square * (2 * len(weight) + 2) ** 2  # covering one more node outweighs all fairness

    def add_unit(self, starts: Iterable[int]) -> bool:
        """Adds one unit of flow by the cheapest way from one of these right nodes; False when none is worth it."""
        cost_right: list[int | None] = [None] * len(self._uses_right)
        queue = deque(starts)
        for node in queue:
            cost_right[node] = self._unit(self._uses_right[node])
        cost_left: list[int | None] = [None] * len(self._uses_left)
        by_left: list[tuple[int, int] | None] = [None] * len(cost_left)  # the edge by which a node is reached
        by_right: list[tuple[int, int] | None] = [None] * len(cost_right)
        # Bellman's and Ford's search: edges can be negative, cycles cannot, since every flow so far was the cheapest
        waiting = set(queue)
        while queue:
            right = queue.popleft()
            waiting.discard(right)
            so_far = cost_right[right]
            assert so_far is not None
            for edge in self._of_right[right]:
                if edge in self.chosen:
                    continue
                left, cost = edge[0], so_far + self._weight[edge]
                known = cost_left[left]
                if known is not None and known <= cost:
                    continue
                cost_left[left], by_left[left] = cost, edge
                for back in self._chosen_of_left[left]:
                    node, less = back[1], cost - self._weight[back]
                    known = cost_right[node]
                    if known is None or less < known:
                        cost_right[node], by_right[node] = less, back
                        if node not in waiting:
                            waiting.add(node)
                            queue.append(node)
        ends = [
            (cost + self._unit(self._uses_left[left]), left) for left, cost in enumerate(cost_left) if cost is not None
        ]
        total, end = min(ends, default=(0, 0))
        if total >= 0:
            return False
        self._uses_left[end] += 1
        self._uses_right[self._change(end, by_left, by_right)] += 1
        return True

    def _unit(self, uses: int) -> int:
        """What the next unit at a node costs."""
        return (2 * uses + 1) * self._square - (self._reward if uses == 0 else 0)

    def _change(self, end: int, by_left: list[tuple[int, int] | None], by_right: list[tuple[int, int] | None]) -> int:
        """Changes the edges of the way that ends at a left node: chosen ones are dropped, others chosen. Its start."""
        left = end
        while True:
            forward = by_left[left]
            assert forward is not None
            self.chosen.add(forward)
            self._chosen_of_left[left].add(forward)
            back = by_right[forward[1]]
            if back is None:
                return forward[1]
            left = back[0]
            self.chosen.discard(back)
            self._chosen_of_left[left].discard(back)
