"""The assignment problem: one column for each row, at the least total cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def assign(costs: Sequence[Sequence[int]]) -> list[int]:
    """For each row the column that it gets, no column twice, so that the sum of the costs is least.

    The Hungarian method with potentials (Kuhn 1955; Jonker and Volgenant 1987): rows join one by one, each by the
    cheapest chain of exchanges. Takes rows squared times columns steps. Costs are exact, however large: whole numbers
    whose leading digits are the first criterion and whose last digits the last make an order of several criteria.

    Raises:
        ValueError: when there are more rows than columns.
    """
    rows, columns = len(costs), len(costs[0]) if costs else 0
    if rows > columns:
        raise ValueError(f"{rows} rows cannot each have one of {columns} columns")
    row_potential = [0] * rows
    column_potential = [0] * columns
    row_of: list[int | None] = [None] * columns
    for new in range(rows):
        _join(new, costs, row_potential, column_potential, row_of)
    result = [0] * rows
    for column, row in enumerate(row_of):
        if row is not None:
            result[row] = column
    return result


def _join(
    new: int,
    costs: Sequence[Sequence[int]],
    row_potential: list[int],
    column_potential: list[int],
    row_of: list[int | None],
) -> None:
    """Gives row `new` a column, by the cheapest chain in which rows hand their columns on (Dijkstra's search)."""
    slack: dict[int, int] = {}  # of columns not reached yet: how much dearer than the chain so far
    previous: dict[int, int | None] = {}  # the column that the chain came from
    reached: list[int] = []
    left = set(range(len(row_of)))
    row, column = new, None
    while True:
        for candidate in left:
            reduced = costs[row][candidate] - row_potential[row] - column_potential[candidate]
            if candidate not in slack or reduced < slack[candidate]:
                slack[candidate], previous[candidate] = reduced, column
        column = min(left, key=slack.__getitem__)
        step = slack[column]
        row_potential[new] += step
        for passed in reached:
            holder = row_of[passed]
            assert holder is not None
            row_potential[holder] += step
            column_potential[passed] -= step
        for candidate in left:
            slack[candidate] -= step
        left.remove(column)
        holder = row_of[column]
        if holder is None:
            break
        reached.append(column)
        row = holder
    while column is not None:
        before = previous[column]
        row_of[column] = new if before is None else row_of[before]
        column = before
