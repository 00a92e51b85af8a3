"""Where boxes and lines go: rows by depth, columns by descent, lines around the boxes. Numbers only, no graph, no HTML.

Data flows downwards. A box stands in the first row below all that it reads; a line to the next row bends in the gap
between the rows; a longer one runs down a free column, or down a lane beside the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BOX_WIDTH, BOX_HEIGHT = 172, 38
_COLUMN, _ROW = 190, 66  # from one box to the next
_LANE = 9
_MARGIN = 12
_MOST_COLUMNS = 10  # what is wider goes on in the next row
_MOST_LANES = 40  # further lines share them
_TURN = 10  # below and above a box: what leaves one and what enters the next do not run into each other

Point = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """In pixels. `corners` are the boxes' upper left ones; `lines` go along their points, level or upright."""

    width: int
    height: int
    corners: tuple[Point, ...]
    lines: tuple[tuple[Point, ...], ...]


def lay_out(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """`count` boxes; `edges` (from, to) with from < to."""
    above: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        above[b].append(a)
    rows = _rows(above)
    columns = _columns(rows, above)
    grid = _Grid(rows, columns)
    corners = tuple(
        (_MARGIN + column * _COLUMN, _MARGIN + row * _ROW) for row, column in zip(rows, columns, strict=True)
    )
    lines = tuple(_lines(edges, grid, corners))
    right = max((x for line in lines for x, _ in line), default=0)
    right = max(right, max((x + BOX_WIDTH for x, _ in corners), default=0))
    bottom = max((y + BOX_HEIGHT for _, y in corners), default=0)
    return Layout(right + _MARGIN, bottom + _MARGIN, corners, lines)


def _rows(above: Sequence[Sequence[int]]) -> list[int]:
    rows: list[int] = []
    filled: dict[int, int] = {}
    for read in above:
        row = max((rows[index] for index in read), default=-1) + 1
        while filled.get(row, 0) >= _MOST_COLUMNS:
            row += 1
        filled[row] = filled.get(row, 0) + 1
        rows.append(row)
    return rows


def _columns(rows: Sequence[int], above: Sequence[Sequence[int]]) -> list[int]:
    """The leftmost column among what it reads, or the nearest free one to its right: joints return to the left."""
    columns = [0] * len(rows)
    taken: set[Point] = set()
    for index in sorted(range(len(rows)), key=lambda index: (rows[index], index)):
        column = min((columns[read] for read in above[index]), default=0)
        while (rows[index], column) in taken:
            column += 1
        taken.add((rows[index], column))
        columns[index] = column
    return columns


class _Grid:
    """Which places are taken, and which lanes."""

    def __init__(self, rows: Sequence[int], columns: Sequence[int]) -> None:
        self.rows, self.columns = rows, columns
        self.taken = set(zip(rows, columns, strict=True))
        self.widest = [0] * (max(rows, default=0) + 1)
        for row, column in self.taken:
            self.widest[row] = max(self.widest[row], column)
        self.lanes: list[int] = []  # the last row of each one's last line

    def way_down(self, source: int, last: int) -> int:
        """The x at which a line from box `source` passes all rows between its own and row `last`."""
        first = self.rows[source]
        column = self.columns[source]
        between = [(row, column) for row in range(first + 1, last)]
        if not self.taken.intersection(between):
            self.taken.update(between)
            return _MARGIN + column * _COLUMN + BOX_WIDTH // 2
        lane = next((lane for lane, end in enumerate(self.lanes) if end < first), len(self.lanes))
        if lane == len(self.lanes):
            self.lanes.append(last)
        self.lanes[lane] = last
        right = max(self.widest[first : last + 1]) * _COLUMN + BOX_WIDTH
        return _MARGIN + right + _LANE * (1 + lane % _MOST_LANES)


def _lines(edges: Iterable[tuple[int, int]], grid: _Grid, corners: Sequence[Point]) -> Iterable[tuple[Point, ...]]:
    """Lines to one box's distant readers share their way down."""
    distant: dict[int, int] = {}
    for a, b in edges:
        if grid.rows[b] > grid.rows[a] + 1:
            distant[a] = max(distant.get(a, 0), grid.rows[b])
    ways = {a: grid.way_down(a, distant[a]) for a in sorted(distant, key=lambda a: (grid.rows[a], a))}
    for a, b in edges:
        start = (corners[a][0] + BOX_WIDTH // 2, corners[a][1] + BOX_HEIGHT)
        end = (corners[b][0] + BOX_WIDTH // 2, corners[b][1])
        below, over = start[1] + _TURN, end[1] - _TURN
        way = ways[a] if grid.rows[b] > grid.rows[a] + 1 else end[0]
        yield _without_repeats([start, (start[0], below), (way, below), (way, over), (end[0], over), end])


def _without_repeats(points: Sequence[Point]) -> tuple[Point, ...]:
    """Corners only."""
    kept: list[Point] = []
    for index, point in enumerate(points):
        if kept and point == kept[-1]:
            continue
        ahead = points[index + 1] if index + 1 < len(points) else None
        straight = kept and ahead and (kept[-1][0] == point[0] == ahead[0] or kept[-1][1] == point[1] == ahead[1])
        if not straight:
            kept.append(point)
    return tuple(kept)
