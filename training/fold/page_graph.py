"""What the page draws: a model's operators as boxes coloured by what folding did to them, few enough to look at.

Knows the report's dict and graphs; neither positions nor HTML. Left out is what no input's numbers reach: constants,
what is computed from them, and arithmetic on shapes. Bodies of If, Loop and Scan are drawn in place, feeding the node
that owns them; calls of local functions are one box each. A drawing that would be too large leaves out what least needs
looking at, and says so.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import onnx_ir as ir

from training.fold.graph import describe, label, number_readers

MOST_BOXES = 600  # of one drawing: about as many as a browser scrolls through smoothly
_ALL_BOXES = 120  # up to here nothing is summarised
_NEAR = 2  # steps around what is left that a cut drawing still shows
_MOST_LINES = 16  # of one box's details
_LEFT = frozenset({"kept", "reduced", "clamped"})  # what one came to look at
_LEFT_OVER = frozenset({"Add", "Sub", "Mul", "Div", "Conv", "BatchNormalization"})  # of a reduced map
_SHORT = {"BatchNormalization": "BatchNorm"}  # leaves room for the verdict beside it
_CLAMPS = frozenset({"Max", "Min", "Clip"})


@dataclass(frozen=True)
class Box:
    """One operator, input or output, or a run of operators.

    `kind`: `plain`, `io`, `holds`, `new`, `gone`, `clamped` or a verdict; `word`: the same for people, or empty.
    `lines`: details. `rows`: which of the report's maps it is or holds. `names`: the labels of its operators.
    """

    title: str
    caption: str
    kind: str
    word: str = ""
    lines: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """`edges` are pairs of indices into `boxes`, from the one that computes to the one that reads, always upwards.

    `note`: what was summarised or left out, in a sentence, or empty.
    """

    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]
    note: str = ""

    def by_name(self) -> dict[str, int]:
        """Where an operator of that name is drawn; the first one's place where several share it."""
        found: dict[str, int] = {}
        for index, box in enumerate(self.boxes):
            for name in box.names:
                found.setdefault(name, index)
        return found


@dataclass
class Fates:
    """The report's dict, to be asked by node. Rows count through the BatchNormalization, then the other maps."""

    result: dict[str, Any]
    outcomes: list[dict[str, Any]] = field(init=False)
    held: dict[str, list[int]] = field(init=False)  # by the name of a node that holds some of it
    kept: dict[str, int] = field(init=False)  # by their names

    def __post_init__(self) -> None:
        self.outcomes = [*self.result["batchnorms"], *self.result.get("affines", ())]
        self.kept = {outcome["name"]: row for row, outcome in enumerate(self.outcomes) if outcome["verdict"] == "kept"}
        self.held = {}
        for row, outcome in enumerate(self.outcomes):
            for name in dict.fromkeys(outcome["into"]):
                self.held.setdefault(name, []).append(row)

    def kind(self, row: int) -> str:
        outcome = self.outcomes[row]
        return "clamped" if outcome.get("clamped") and outcome["verdict"] == "folded" else str(outcome["verdict"])

    def of_original(self, nodes: Sequence[ir.Node]) -> dict[ir.Node, int]:
        """The row of each node that the report speaks of. Of namesakes, the first row is the first node's."""
        count = len(self.result["batchnorms"])
        waiting: dict[tuple[str, bool], deque[int]] = {}
        for row, outcome in enumerate(self.outcomes):
            waiting.setdefault((outcome["name"], row < count), deque()).append(row)
        rows = {}
        for node in nodes:
            queue = waiting.get((label(node), node.op_type == "BatchNormalization"))
            if queue:
                rows[node] = queue.popleft()
        return rows

    def told(self, row: int) -> Iterator[str]:
        outcome = self.outcomes[row]
        into = f" into {listed(outcome['into'])}" if outcome["into"] else ""
        yield f"{self.kind(row)}{into}"
        if outcome["reason"]:
            yield f"because: {outcome['reason']}"
        if outcome.get("way_out"):
            yield f"way out: {outcome['way_out']}"


def picture_before(original: ir.Model, folded: ir.Model, fates: Fates) -> Picture:
    """The original: each map by its verdict, the operators that hold one now, and those that are gone."""
    left = {node.name: node.op_type for node in folded.graph.all_nodes() if node.name}
    rows = fates.of_original(list(original.graph.all_nodes()))

    def box(node: ir.Node) -> Box:
        if node in rows:
            kind = fates.kind(rows[node])
            return _node_box(node, kind, kind, fates.told(rows[node]), (rows[node],))
        held = fates.held.get(node.name or "", [])
        becomes = left.get(node.name or "", node.op_type)
        if held or becomes != node.op_type:
            word = f"holds {len(held)}" if becomes == node.op_type else f"→ {becomes}"
            lines = [] if becomes == node.op_type else [f"is a {becomes} now"]
            return _node_box(node, "holds", word, [*lines, *_holding(fates, held)], tuple(held))
        if node.name and node.name not in left:
            return _node_box(node, "gone", "gone", ["not in the folded graph: merged, replaced or no longer needed"])
        return _node_box(node, "plain", "", ())

    return _drawable(original, box)


def picture_after(original: ir.Model, folded: ir.Model, fates: Fates) -> Picture:
    """The folded graph: operators that hold a map, clamps, what is left of reduced ones, and new operators."""
    before = {label(node) for node in original.graph.all_nodes()}

    def box(node: ir.Node) -> Box:
        name = label(node)
        held = fates.held.get(name, [])
        kind = _kind_after(node, {fates.kind(row) for row in held}, name in before, fates)
        lines = [] if name in before else ["not in the original graph"]
        lines += fates.told(fates.kept[name]) if kind == "kept" else ()
        lines += _holding(fates, held) if held else ()
        word = {"holds": f"holds {len(held)}", "plain": ""}.get(kind, kind)
        return _node_box(node, kind, word, lines, (fates.kept[name],) if kind == "kept" else tuple(held))

    return _drawable(folded, box)


def _kind_after(node: ir.Node, held: set[str], was_there: bool, fates: Fates) -> str:
    if label(node) in fates.kept:
        return "kept"
    if "clamped" in held and node.op_type in _CLAMPS:
        return "clamped"
    if "reduced" in held and node.op_type in _LEFT_OVER and not was_there:
        return "reduced"
    if held:
        return "holds"
    return "plain" if was_there else "new"


def _node_box(node: ir.Node, kind: str, word: str, lines: Iterable[str], rows: tuple[int, ...] = ()) -> Box:
    told = [describe(node), *_tensors(node), *lines]
    if len(told) > _MOST_LINES:
        told[_MOST_LINES - 1 :] = [f"and {len(told) - _MOST_LINES + 1} more"]
    return Box(_SHORT.get(node.op_type, node.op_type), label(node), kind, word, tuple(told), rows, (label(node),))


def _tensors(node: ir.Node) -> Iterator[str]:
    for value in node.outputs:
        if value.shape is not None:
            sizes = ", ".join("?" if size is None else str(size) for size in map(_size, value.shape))
            yield f"output '{value.name}' [{sizes}]"


def _size(size: int | ir.SymbolicDim) -> int | str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else size


def _holding(fates: Fates, rows: Iterable[int]) -> Iterator[str]:
    for row in rows:
        yield f"holds '{fates.outcomes[row]['name']}' ({fates.kind(row)})"


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b, c`; of many the first, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# From a model to boxes.


def _drawable(model: ir.Model, box_of: Callable[[ir.Node], Box]) -> Picture:
    """Inputs, what depends on them, outputs; summarised until it is small enough."""
    items, edges = _flat(model)
    boxes = [box_of(item) if isinstance(item, ir.Node) else _end_box(item) for item in items]
    return _small_enough(Picture(tuple(boxes), tuple(sorted(edges))))


def _end_box(value: ir.Value) -> Box:
    sizes = "" if value.shape is None else f" [{', '.join(str(_size(size) or '?') for size in value.shape)}]"
    title = "output" if value.is_graph_output() else "input"
    return Box(title, f"{value.name}{sizes}", "io", "", (f"graph {title} '{value.name}'{sizes}",))


def _flat(model: ir.Model) -> tuple[list[ir.Node | ir.Value], set[tuple[int, int]]]:
    """Inputs, nodes and outputs in topological order, subgraphs in place, and which reads which."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    owners: dict[ir.Graph, ir.Node] = {}
    nodes = list(_all_nodes(model.graph, owners))
    items: list[ir.Node | ir.Value] = [*inputs, *nodes, *model.graph.outputs]
    number = {item: index for index, item in enumerate((*inputs, *nodes))}
    numbers = _numbers_read(nodes)
    values: list[Sequence[ir.Value | None]] = [() for _ in inputs]
    values += [[*numbers.get(node, ()), *(value for body in _bodies(node) for value in body.outputs)] for node in nodes]
    values += [[value] for value in model.graph.outputs]
    reads = [
        {number[origin] for value in read for origin in _origins(value, owners) if origin in number} for read in values
    ]
    order = _topological(reads)
    live = _live(items, reads, order)
    place = {item: index for index, item in enumerate(item for item in order if item in live)}
    edges = {
        (place[read], place[item])
        for item in place
        for read in reads[item]
        if read in place and place[read] < place[item]  # not so in a cycle only
    }
    return [items[item] for item in place], edges


def _all_nodes(graph: ir.Graph, owners: dict[ir.Graph, ir.Node]) -> Iterator[ir.Node]:
    """A body's nodes before the node that owns it; `owners` is filled in on the way."""
    pending: list[tuple[ir.Node, bool]] = [(node, False) for node in reversed(graph)]
    while pending:
        node, entered = pending.pop()
        bodies = () if entered else _bodies(node)
        if not bodies:
            yield node
            continue
        pending.append((node, True))
        for body in bodies:
            owners[body] = node
            pending += [(inner, False) for inner in reversed(body)]


def _bodies(node: ir.Node) -> tuple[ir.Graph, ...]:
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return tuple(bodies)


def _numbers_read(nodes: Iterable[ir.Node]) -> dict[ir.Node, list[ir.Value]]:
    """The operands whose numbers a node reads, rather than their shape or type alone."""
    read: dict[ir.Node, list[ir.Value]] = {}
    for value in dict.fromkeys(value for node in nodes for value in node.inputs if value is not None):
        for reader in number_readers(value):
            read.setdefault(reader, []).append(value)
    return read


def _origins(value: ir.Value | None, owners: dict[ir.Graph, ir.Node]) -> Iterator[ir.Node | ir.Value]:
    """Who computes it; for an input of a body, whatever the owning node reads."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        producer, graph = value.producer(), value.graph
        if producer is not None:
            yield producer
        elif value.is_graph_input() and isinstance(graph, ir.Graph) and graph in owners:
            pending += owners[graph].inputs
        else:
            yield value


def _topological(reads: Sequence[set[int]]) -> list[int]:
    """As they are listed, where that is a topological order; what lies on a cycle comes last."""
    waiting = [len(read) for read in reads]
    readers: list[list[int]] = [[] for _ in reads]
    for item, read in enumerate(reads):
        for origin in read:
            readers[origin].append(item)
    ready, order = [item for item, count in enumerate(waiting) if not count], []
    while ready:
        order.append(heappop(ready))
        for reader in readers[order[-1]]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heappush(ready, reader)
    done = set(order)
    return order + [item for item in range(len(reads)) if item not in done]


def _live(items: Sequence[ir.Node | ir.Value], reads: Sequence[set[int]], order: Iterable[int]) -> set[int]:
    """Inputs and outputs, nodes that depend on an input, and nodes that draw their own numbers."""
    live: set[int] = set()
    for index in order:
        item = items[index]
        if isinstance(item, ir.Value) or reads[index] & live or item.op_type.startswith("Random"):
            live.add(index)
    return live


# From many boxes to few.


def _small_enough(whole: Picture) -> Picture:
    if len(whole.boxes) <= _ALL_BOXES:
        return whole
    untouched = _runs_joined(
        whole, frozenset({"plain", "gone"}), "Runs of operators that folding left alone are one box each."
    )
    if len(untouched.boxes) <= MOST_BOXES:
        return untouched
    settled = frozenset({"plain", "gone", "holds", "new", "folded"})
    rest = _runs_joined(whole, settled, "Runs of operators in which all is folded are one box each.")
    return rest if len(rest.boxes) <= MOST_BOXES else _cut(rest)


def _runs_joined(picture: Picture, dull: frozenset[str], note: str) -> Picture:
    """A box for each run of dull boxes that has one way in and one way out."""
    readers, read = Counter(a for a, _ in picture.edges), Counter(b for _, b in picture.edges)
    head = list(range(len(picture.boxes)))
    for a, b in picture.edges:  # ascending: the head of `a` is settled
        if readers[a] == read[b] == 1 and {picture.boxes[a].kind, picture.boxes[b].kind} <= dull:
            head[b] = head[a]
    runs: dict[int, list[Box]] = {}
    for index, box in enumerate(picture.boxes):
        runs.setdefault(head[index], []).append(box)
    place = {index: number for number, index in enumerate(runs)}
    boxes = tuple(_run_box(run) if len(run) > 1 else run[0] for run in runs.values())
    edges = {(place[head[a]], place[head[b]]) for a, b in picture.edges if head[a] != head[b]}
    return Picture(boxes, tuple(sorted(edges)), note if len(boxes) < len(picture.boxes) else "")


def _run_box(run: Sequence[Box]) -> Box:
    kinds = Counter(box.kind for box in run)
    kind = next((kind for kind in ("folded", "holds", "new", "plain") if kinds[kind]), "gone")
    word = {"folded": f"{kinds['folded']} folded", "plain": ""}.get(kind, kind)
    counts = Counter(box.title for box in run).most_common()
    lines = [box.lines[0] for box in run[: _MOST_LINES - 1]]
    if len(run) > len(lines):
        lines.append(f"and {len(run) - len(lines)} more")
    return Box(
        f"{len(run)} operators",
        ", ".join(f"{count} {title}" for title, count in counts),
        kind,
        word,
        tuple(lines),
        tuple(row for box in run for row in box.rows),
        tuple(name for box in run for name in box.names),
    )


def _cut(picture: Picture) -> Picture:
    """What lies around whatever is left, in graph order, up to the limit; where nothing is left, the beginning."""
    near: list[list[int]] = [[] for _ in picture.boxes]
    for a, b in picture.edges:
        near[a].append(b)
        near[b].append(a)
    centres = [index for index, box in enumerate(picture.boxes) if box.kind in _LEFT]
    shown: set[int] = set()
    for centre in centres or range(len(picture.boxes)):
        around = _ball(centre, near, _NEAR if centres else 0)
        if len(shown | around) > MOST_BOXES:
            break
        shown |= around
    place = {index: number for number, index in enumerate(sorted(shown))}
    which = "those around what is not simply folded" if centres else "the first ones"
    note = f"Only {len(shown)} of {len(picture.boxes)} boxes are drawn, {which}; the table below has everything."
    return Picture(
        tuple(picture.boxes[index] for index in place),
        tuple((place[a], place[b]) for a, b in picture.edges if a in place and b in place),
        f"{picture.note} {note}".strip(),
    )


def _ball(centre: int, near: Sequence[Sequence[int]], steps: int) -> set[int]:
    """All within `steps` of it; of a hub's many neighbours only the first ones."""
    ball = rim = {centre}
    for _ in range(steps):
        rim = {other for index in rim for other in near[index][:8]} - ball
        ball = ball | rim
    return ball
