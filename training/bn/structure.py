"""What stands before and behind each BatchNorm, read from the network's graph by torch.fx.

A network that cannot be followed as a whole (its way depends on values) is followed piece by piece: each child that can
be, by itself. Promises: nothing is executed but the forward code on symbols, and no answer is guessed: a layer that no
piece holds has no entry. Knows no statistics.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from training.bn.layers import norm_layers, without_statistics

_RELUS = (nn.ReLU, nn.ReLU6)
_RELU_CALLS: tuple[object, ...] = (functional.relu, functional.relu6, torch.relu, "relu", "relu_")
_SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)
_SOFTMAX_CALLS: tuple[object, ...] = (
    torch.softmax, torch.sigmoid, functional.softmax, functional.log_softmax, "softmax", "sigmoid",
)  # fmt: skip
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_CALLS: tuple[object, ...] = (
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
)  # fmt: skip
_SUMS: tuple[object, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
# They hand every value on, somewhere: a bias or a word in front of them still reaches the BatchNorm.
_PASSED: tuple[object, ...] = (
    torch.flatten, "flatten", "transpose", "permute", "reshape", "view", "contiguous", "unsqueeze", "squeeze",
    torch.transpose, torch.permute, torch.reshape,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """One BatchNorm in its surroundings.

    fed_by: name of the Linear or convolution right before it, whose answer nobody else uses; None where there is none.
    after: "softmax", "embedding" or "batchnorm" where such a thing feeds it. clamped: a ReLU and nothing else follows.
    closes_block: its answer is added to something; both None at the end of a piece. uses: how often one forward pass
    runs it.
    """

    fed_by: str | None
    after: str | None
    clamped: bool | None
    closes_block: bool | None
    uses: int


@dataclass(frozen=True, slots=True)
class Structure:
    """places: by a layer's name. dropouts: those whose noise goes through a BatchNorm on every way to the end, with
    the first BatchNorm reached. unread: why the network, or pieces of it, could not be followed; empty where it was."""

    places: Mapping[str, Place]
    dropouts: tuple[tuple[str, str], ...]
    unread: str


def read_structure(model: nn.Module, inputs: int = 1) -> Structure:
    """Follows `model`, which stays as it is. inputs: how many it is given, where its forward takes any number."""
    norms = {id(layer.module) for layer in norm_layers(model)} | {id(module) for _, module in without_statistics(model)}
    places: dict[str, Place] = {}
    dropouts: list[tuple[str, str]] = []
    unread = ""
    first_names = {id(module): name for name, module in model.named_modules()}
    for prefix, piece, reason in _pieces(model, "", norms, inputs):
        if piece is None:
            unread = unread or f"{prefix or 'the network'} cannot be followed ({reason})"
            continue
        reader = _Reader(piece, norms, first_names, whole=not prefix)
        _read(reader, places)
        dropouts += _dropouts(reader) if reader.whole else []
    return Structure(places, tuple(dropouts), unread)


Piece = tuple[nn.Module, fx.Graph]


class _Several(fx.Proxy):
    """The values of `forward(self, *values)`: fx knows that there are some, but not how many."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, count: int) -> None:
        super().__init__(node, tracer)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[fx.Proxy]:
        make = self.tracer.create_proxy
        return iter([make("call_function", operator.getitem, (self, number), {}) for number in range(self._count)])


class _Tracer(fx.Tracer):
    """Layers of our own kind stay whole, whoever wrote them."""

    def __init__(self, norms: set[int], inputs: int) -> None:
        super().__init__()
        self._norms = norms
        self._inputs = inputs

    def proxy(self, node: fx.Node) -> fx.Proxy:
        several = node.op == "placeholder" and str(node.target).startswith("*")
        return _Several(node, self, self._inputs) if several else super().proxy(node)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self._norms or super().is_leaf_module(m, module_qualified_name)


def _pieces(module: nn.Module, prefix: str, norms: set[int], inputs: int) -> Iterator[tuple[str, Piece | None, str]]:
    """The module as one piece, or its children's pieces; those without a BatchNorm are of no interest."""
    if not any(id(inner) in norms for inner in module.modules()):
        return
    if id(module) in norms:
        yield prefix, None, "it stands in a part that cannot be followed"
        return
    try:
        graph = _Tracer(norms, inputs).trace(module)
    except Exception as error:  # anybody's forward code, on symbols: it may raise whatever it likes
        yield prefix, None, next(iter(str(error).splitlines()), "") or type(error).__name__
        for name, child in module.named_children():
            yield from _pieces(child, f"{prefix}.{name}" if prefix else name, norms, inputs)
        return
    yield prefix, (module, graph), ""


# --- one piece ----------------------------------------------------------------------------------------------------


class _Reader:
    """Questions about the nodes of one graph. whole: it is the network's, and its end the network's end."""

    def __init__(self, piece: Piece, norms: set[int], names: Mapping[int, str], *, whole: bool) -> None:
        self._root, self.graph = piece
        self.whole = whole
        self._norms = norms
        self._names = names

    def module(self, node: fx.Node) -> nn.Module | None:
        return self._root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        """Of a module, in the whole network; of a function, what fx calls it."""
        module = self.module(node)
        return self._names.get(id(module), node.name) if module is not None else node.name

    def is_norm(self, node: fx.Node) -> bool:
        return id(self.module(node)) in self._norms

    def is_one_of(self, node: fx.Node, modules: tuple[type[nn.Module], ...], calls: tuple[object, ...]) -> bool:
        module = self.module(node)
        return (
            isinstance(module, modules)
            if module is not None
            else any(node.target is call or node.target == call for call in calls)
        )

    def is_dropout(self, node: fx.Node) -> bool:
        if not self.is_one_of(node, _DROPOUTS, _DROPOUT_CALLS):
            return False
        module = self.module(node)
        rate = getattr(module, "p", 0.0) if module is not None else node.kwargs.get("p", (*node.args, 0.5, 0.5)[1])
        return not isinstance(rate, (int, float)) or rate > 0

    def maker(self, node: fx.Node) -> fx.Node | None:
        """What makes the first input of `node`, behind what only hands on."""
        while node.all_input_nodes:
            node = node.all_input_nodes[0]
            if not (node.op in ("call_method", "call_function") and node.target in _PASSED):
                return node
        return None


def _read(reader: _Reader, places: dict[str, Place]) -> None:
    for node in reader.graph.nodes:
        if reader.is_norm(node):
            name = reader.name(node)
            places[name] = _place(reader, node, places[name].uses + 1 if name in places else 1)


def _dropouts(reader: _Reader) -> list[tuple[str, str]]:
    noisy = [node for node in reader.graph.nodes if reader.is_dropout(node)]
    return [(reader.name(node), reached) for node in noisy if (reached := _first_norm(reader, node))]


def _place(reader: _Reader, node: fx.Node, uses: int) -> Place:
    maker = reader.maker(node)
    fed_by, after = None, None
    if maker is not None:
        if isinstance(reader.module(maker), _LINEAR) and len(maker.users) == 1:
            fed_by = reader.name(maker)
        kinds: tuple[tuple[str, Callable[[fx.Node], bool]], ...] = (
            ("softmax", lambda other: reader.is_one_of(other, _SOFTMAXES, _SOFTMAX_CALLS)),
            ("embedding", lambda other: reader.is_one_of(other, _EMBEDDINGS, (functional.embedding,))),
            ("batchnorm", reader.is_norm),
        )
        after = next((kind for kind, is_kind in kinds if is_kind(maker)), None)
    users = list(node.users)
    clamped = bool(users) and all(reader.is_one_of(user, _RELUS, _RELU_CALLS) for user in users)
    closes = any(reader.is_one_of(user, (), _SUMS) and len(user.all_input_nodes) > 1 for user in users)
    if not reader.whole and any(user.op == "output" for user in users):
        return Place(fed_by, after, None, None, uses)
    return Place(fed_by, after, clamped, closes, uses)


def _first_norm(reader: _Reader, dropout: fx.Node) -> str | None:
    """The first BatchNorm that the noise of `dropout` reaches; None where it reaches none, or the end without one."""
    reached, seen, waiting = None, set(), list(dropout.users)
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node.op == "output":
            return None
        if reader.is_norm(node):
            reached = reached or reader.name(node)
            continue
        waiting.extend(node.users)
    return reached
