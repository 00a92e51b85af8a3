"""Random graphs of every operator the engine knows, and some it does not, under hostile statistics. In float64.

A graph grows from one or two inputs: each step picks one of the live tensors and an operator that fits its shape. It
mixes ranks, strides, groups, shared weights, several readers, several outputs, and sums of what happens to have equal
shapes. Coincident sizes are likely, because sizes are drawn from a few small numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tests.training.fold.models import build, mild_statistics, statistics

Array = NDArray[Any]
Shape = tuple[int, ...]
_MOST_ELEMENTS = 600
_VARIED = 0.3  # of the graphs: some weights stand on the left, or have equal taps
_PRUNED = 0.25  # of the graphs: every BatchNormalization has lost channels, one in three; most are read by a weight
_LEARNED = 0.1  # of the graphs: a tensor is a constant, as the input of a StyleGAN


class Graph:
    """A graph being written: text and constants. `live`: tensors by name, in the order of their making."""

    def __init__(self, seed: int, quantised: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.hostile = self.rng.random() < 0.5
        self.pruning = np.random.default_rng([seed, 2])  # of its own, so that other graphs are the same without
        self.pruned = self.pruning.random() < _PRUNED
        self.variety = np.random.default_rng([seed, 3])  # likewise
        self.varied, self.quantised = self.variety.random() < _VARIED, quantised
        self.lines: list[str] = []
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, Shape] = {}
        self.live: dict[str, Shape] = {}
        self.readers: dict[str, int] = {}
        self.learning = np.random.default_rng([seed, 4])
        self.learned: set[str] = set()
        self.padding = np.random.default_rng([seed, 5])

    # Drawing.

    def some(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def constant(self, array: Array, prefix: str = "k") -> str:
        name = f"{prefix}{len(self.constants)}"
        self.constants[name] = array
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64), "i")

    def weight(self, *shape: int) -> str:
        """A new constant, or, one time in five, an old one of the same shape."""
        same = [n for n, a in self.constants.items() if n.startswith("w") and a.shape == shape]
        if same and self.rng.random() < 0.2:
            return str(self.rng.choice(same))
        return self.constant(self.rng.normal(size=shape), "w")

    def stored(self, weight: str, axis: int) -> str:
        """A weight as it is, or, in a quantised graph, as integers: with a scale for each entry of `axis`, or one."""
        if not self.quantised or self.variety.random() < 0.5:
            return weight
        size = self.constants[weight].shape
        steps = () if self.variety.random() < 0.5 else size[axis : axis + 1]
        lowest = -128 if self.variety.random() < 0.2 else -127
        parts = {
            "q": self.variety.integers(lowest, 128, size).astype(np.int8),
            "s": self.variety.uniform(0.005, 0.02, steps),
            "z": np.full(steps, 0 if self.variety.random() < 0.7 else 3, np.int8),
        }
        call = (
            f"DequantizeLinear <axis = {axis}> ({', '.join(self.constant(part, key) for key, part in parts.items())})"
        )
        name = f"d{len(self.lines)}"
        self.lines.append(f"[n{len(self.lines)}] {name} = {call}")
        return name

    def input(self, shape: Shape) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.live[name] = shape
        return name

    def learn(self, shape: Shape) -> None:
        name = self.constant(self.learning.normal(size=shape), "c")
        self.learned.add(name)
        self.live[name] = shape

    def node(self, call: str, shape: Shape, *reads: str) -> str:
        """One node with one output of `shape`."""
        (name,) = self.nodes(call, [shape], *reads)
        return name

    def nodes(self, call: str, shapes: list[Shape], *reads: str) -> list[str]:
        names = [f"t{len(self.lines)}_{i}" for i in range(len(shapes))]
        self.lines.append(f"[n{len(self.lines)}] {', '.join(names)} = {call}")
        for read in reads:
            self.readers[read] = self.readers.get(read, 0) + 1
        self.live |= dict(zip(names, shapes, strict=True))
        return names

    def pick(self) -> str:
        """Mostly a tensor made lately, or one that nobody reads."""
        names = list(self.live)
        unread = [name for name in names if not self.readers.get(name)]
        if unread and self.rng.random() < 0.5:
            return str(self.rng.choice(unread))
        return str(self.rng.choice(names[-4:] if self.rng.random() < 0.7 else names))

    def model(self) -> ir.Model:
        outputs = [name for name in self.live if not self.readers.get(name)] or [list(self.live)[-1]]
        extra = [n for n in self.live if self.readers.get(n) and n not in self.inputs and self.rng.random() < 0.04]
        outputs = [name for name in outputs + extra if name not in self.inputs and name not in self.learned]
        declare = lambda names: ", ".join(f"double[{','.join(map(str, self.live[n]))}] {n}" for n in names)  # noqa: E731
        text = f"g ({declare(self.inputs)}) => ({declare(outputs)}) {{\n" + "\n".join(self.lines) + "\n}"
        return build(text, opset=18, ir_version=8, **self.constants)


Step = Callable[[Graph, str, Shape], object]


def _batchnorm(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 2:
        return None
    stats = (statistics if g.hostile else mild_statistics)(g.rng, shape[1])
    if g.pruned:
        stats["g"] = stats["g"] * (g.pruning.random(shape[1]) > 1 / 3)
    names = [g.constant(part, key) for key, part in stats.items()]
    epsilon = g.some("0.0", "1e-12", "1e-05", "0.001")
    return g.node(f"BatchNormalization <epsilon = {epsilon}> ({x}, {', '.join(names)})", shape, x)


def _batchnorm_read(g: Graph, x: str, shape: Shape) -> object:
    """In a pruned graph mostly with a reader: up to three operators that make a constant of one, then a weight."""
    y = _batchnorm(g, x, shape)
    if not isinstance(y, str) or not g.pruned or g.pruning.random() < 0.4:
        return y
    x = y
    for _ in range(int(g.pruning.integers(4))):
        step = _CONSTANT_OF_CONSTANT[int(g.pruning.integers(len(_CONSTANT_OF_CONSTANT)))]
        made = step(g, x, g.live[x])
        x = made if isinstance(made, str) else x
    rank = len(g.live[x])
    return _conv(g, x, g.live[x]) if rank > 2 and g.pruning.random() < 0.8 else _matmul(g, x, g.live[x])


def _doubled(g: Graph, x: str, shape: Shape) -> object:
    return g.node(f"{g.some('Add', 'Sub', 'Max', 'Mean')} ({x}, {x})", shape, x)


def _conv(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 3:
        return None
    n, c, *spatial = shape
    group = g.some(1, 1, c, *([2] if c % 2 == 0 else []))
    out = group * g.some(1, 2) if group > 1 else g.some(c, 2, 3, 4)
    kernel = [g.some(1, 1, 2, 3) for _ in spatial]
    dilations = [g.some(1, 1, 2) for _ in spatial]
    begin = [g.some(0, 0, 1) for _ in spatial]
    end = [g.some(0, b) for b in begin]
    strides = [g.some(1, 1, 2) for _ in spatial]
    extent = [s + b + e - d * (k - 1) - 1 for s, b, e, d, k in zip(spatial, begin, end, dilations, kernel, strict=True)]
    if min(extent) < 0:
        return None
    sizes = [e // s + 1 for e, s in zip(extent, strides, strict=True)]
    bias = g.some("", f", {g.weight(out)}")
    attributes = f"group = {group}, pads = {begin + end}, strides = {strides}, dilations = {dilations}"
    weight = g.stored(g.weight(out, c // group, *kernel), 0)
    return g.node(f"Conv <{attributes}> ({x}, {weight}{bias})", (n, out, *sizes), x)


def _conv_transpose(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 3:
        return None
    n, c, *spatial = shape
    group = g.some(1, c, *([2] if c % 2 == 0 else []))
    per_group, stride, k = g.some(1, 2), g.some(1, 2), g.some(1, 2, 3)
    pad = g.some(0, 1) if k == 3 else 0
    extra = g.some(0, 1) if stride == 2 else 0
    sizes = [stride * (s - 1) + k - 2 * pad + extra for s in spatial]
    if min(sizes) < 1:
        return None
    rank, out = len(spatial), per_group * group
    attributes = (
        f"group = {group}, strides = {[stride] * rank}, pads = {[pad] * 2 * rank}, output_padding = {[extra] * rank}"
    )
    bias = g.some("", f", {g.weight(out)}")
    weight = g.weight(c, per_group, *[k] * rank)
    if g.varied and g.variety.random() < 0.5:  # taps of one sum, for some strides
        taps = g.constants[weight][(slice(None), slice(None), *[slice(1)] * rank)] * np.ones([k] * rank)
        weight = g.constant(taps, "w")
    weight = g.stored(weight, 1)
    return g.node(f"ConvTranspose <{attributes}> ({x}, {weight}{bias})", (n, out, *sizes), x)


def _gemm(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 2:
        return None
    if g.varied and g.variety.random() < 0.5:
        return _gemm_left(g, x, shape)
    m, k = shape
    n, transposed = g.some(k, 2, 3), g.some(0, 1)
    weight = g.weight(n, k) if transposed else g.weight(k, n)
    c = g.some("", *(f", {g.weight(*s)}" for s in [(), (1,), (n,), (1, n), (m, 1), (m, n)]))
    attributes = f"transB = {transposed}, alpha = {g.some('1.0', '0.5')}, beta = {g.some('1.0', '2.0')}"
    return g.node(f"Gemm <{attributes}> ({x}, {weight}{c})", (m, n), x)


def _gemm_left(g: Graph, x: str, shape: Shape) -> object:
    """The weight is the first operand."""
    transposed_x, transposed = (int(g.variety.integers(2)) for _ in range(2))
    n, k = shape if transposed_x else shape[::-1]
    m = int(g.variety.integers(1, 4))
    weight = g.stored(g.weight(k, m) if transposed else g.weight(m, k), transposed)
    sizes = [None, (), (1,), (n,), (1, n), (m, 1), (m, n)][int(g.variety.integers(7))]
    c = "" if sizes is None else f", {g.weight(*sizes)}"
    attributes = f"transA = {transposed}, transB = {transposed_x}, alpha = 0.5, beta = 2.0"
    return g.node(f"Gemm <{attributes}> ({weight}, {x}{c})", (m, n), x)


def _product(g: Graph, x: str, shape: Shape) -> object:
    """An Einsum: each axis of x is handed on, has matrices of its own, is summed over with the weight or by itself."""
    own = "abcdefghijkl"[: len(shape)]
    kinds = g.variety.choice(["on", "many", "summed", "alone"], len(shape), p=[0.4, 0.2, 0.35, 0.05])
    read = [label for label, kind in zip(own, kinds, strict=True) if kind in ("many", "summed")]
    made = list("xy"[: int(g.variety.integers(3))])
    result = [label for label, kind in zip(own, kinds, strict=True) if kind in ("on", "many")] + made
    if not result or not read + made:
        return None
    sizes = dict(zip(own, shape, strict=True)) | {label: int(g.variety.integers(2, 4)) for label in made}
    weight, result = g.variety.permutation(read + made).tolist(), g.variety.permutation(result).tolist()
    after = tuple(sizes[label] for label in result)
    terms, operands = [own, "".join(weight)], [x, g.weight(*(sizes[label] for label in weight))]
    turn = 1 if g.variety.random() < 0.5 else -1
    equation = f"{','.join(terms[::turn])}->{''.join(result)}"
    y = g.node(f'Einsum <equation = "{equation}"> ({", ".join(operands[::turn])})', after, x)
    return g.node(f"Add ({y}, {g.constant(_vector(g, after))})", after, y) if g.variety.random() < 0.6 else y


def _matmul(g: Graph, x: str, shape: Shape) -> object:
    if g.varied and g.variety.random() < 0.5:
        return _product(g, x, shape)
    if len(shape) < 2:
        return None
    many = shape[-3:-2] if g.varied and g.variety.random() < 0.5 else ()
    *lead, k = shape
    n = g.some(k, 2, 3)
    y = g.node(f"MatMul ({x}, {g.stored(g.weight(*many, k, n), len(many) + 1)})", (*lead, n), x)
    return g.node(f"Add ({y}, {g.weight(n)})", (*lead, n), y) if g.rng.random() < 0.5 else y


def _matmul_left(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 2:
        return None
    *lead, k, last = shape
    m = g.some(k, 2, 3)
    many = lead[-1:] if g.varied and g.variety.random() < 0.5 else ()
    y = g.node(f"MatMul ({g.weight(*many, m, k)}, {x})", (*lead, m, last), x)
    if not g.varied:
        return y
    sizes = [(m, 1), (last,), (), (m, last)][int(g.variety.integers(4))]
    return g.node(f"Add ({y}, {g.weight(*sizes)})", (*lead, m, last), y)


def _dynamic_matmul(g: Graph, x: str, shape: Shape) -> object:
    others = [n for n, s in g.live.items() if len(s) == len(shape) >= 2 and s[:-2] == shape[:-2] and s[-2] == shape[-1]]
    if not others:
        return None
    y = g.some(*others)
    return g.node(f"MatMul ({x}, {y})", (*shape[:-1], g.live[y][-1]), x, y)


def _lstm(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 3:
        return None
    t, n, size = shape
    op, gates = g.some(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    hidden, directions = 2, g.some(1, 2)
    way = "forward" if directions == 1 else "bidirectional"
    weights = f"{g.weight(directions, gates * hidden, size)}, {g.weight(directions, gates * hidden, hidden)}"
    bias = g.some("", f", {g.weight(directions, 2 * gates * hidden)}")
    attributes = f'hidden_size = {hidden}, direction = "{way}"'
    return g.node(f"{op} <{attributes}> ({x}, {weights}{bias})", (t, directions, n, hidden), x)


def _vector(g: Graph, shape: Shape) -> Array:
    """A constant that broadcasts against `shape`: scalar, per channel, along the last axis, or full."""
    axis = int(g.rng.integers(len(shape)))
    sizes = g.some((), (1,), shape[-1:], shape, tuple(s if i == axis else 1 for i, s in enumerate(shape)))
    return g.rng.normal(size=sizes) + g.some(0.0, 2.0)


def _constant_map(g: Graph, x: str, shape: Shape) -> object:
    op, k = g.some("Add", "Sub", "Mul", "Div"), _vector(g, shape)
    if op in ("Mul", "Div"):
        k = np.where(np.abs(k) < 0.1, 0.5, k)
    if op == "Mul" and k.ndim and g.rng.random() < 0.1:
        k = k * (g.rng.random(k.shape) > 0.3)
    name = g.constant(k)
    operands = f"{x}, {name}" if op == "Div" or g.rng.random() < 0.7 else f"{name}, {x}"
    return g.node(f"{op} ({operands})", shape, x)


def _norm(g: Graph, x: str, shape: Shape) -> object:
    """By statistics of x itself. An epsilon of 1 keeps it from blowing up the errors of near-constant tensors."""
    if g.variety.random() < 0.5 or len(shape) < 3:
        axis = int(g.variety.integers(len(shape)))
        bias = f", {g.weight(*shape[axis:])}" if g.variety.random() < 0.5 else ""
        call = f"LayerNormalization <axis = {axis}, epsilon = 1.0> ({x}, {g.weight(*shape[axis:])}{bias})"
    elif g.variety.random() < 0.5:
        call = f"InstanceNormalization <epsilon = 1.0> ({x}, {g.weight(shape[1])}, {g.weight(shape[1])})"
    else:  # opset 18: one number a group
        groups = shape[1] if g.variety.random() < 0.5 else 1
        call = (
            f"GroupNormalization <num_groups = {groups}, epsilon = 1.0> ({x}, {g.weight(groups)}, {g.weight(groups)})"
        )
    return g.node(call, shape, x)


def _unary(g: Graph, x: str, shape: Shape) -> object:
    if g.varied and g.variety.random() < 0.25:
        return _norm(g, x, shape)
    call = g.some(
        "Relu", "Relu", "Relu", "LeakyRelu <alpha = 0.25>", "Abs", "Neg", "Identity", "Sigmoid", "Dropout", "Tanh"
    )
    return g.node(f"{call} ({x})", shape, x)


def _clip(g: Graph, x: str, shape: Shape) -> object:
    low, high = g.constant(np.array(-0.5)), g.constant(np.array(g.some(0.5, 6.0)))
    return g.node(g.some(f"Clip ({x}, {low}, {high})", f"Clip ({x}, {low})", f"Clip ({x}, , {high})"), shape, x)


def _bound(g: Graph, x: str, shape: Shape) -> object:
    return g.node(f"{g.some('Max', 'Min')} ({x}, {g.constant(_vector(g, shape))})", shape, x)


def _prelu(g: Graph, x: str, shape: Shape) -> object:
    slope = g.weight(*shape[1:2], *[1] * (len(shape) - 2)) if len(shape) > 1 else g.weight(1)
    return g.node(f"PRelu ({x}, {slope})", shape, x) if len(shape) > 1 else None


def _pool(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 3:
        return None
    n, c, *spatial = shape
    k, stride, pad = g.some(1, 2, 3), g.some(1, 2), g.some(0, 1)
    pad = min(pad, k - 1)
    sizes = [(s + 2 * pad - k) // stride + 1 for s in spatial]
    if min(s + 2 * pad - k for s in spatial) < 0:
        return None
    rank = len(spatial)
    window = f"kernel_shape = {[k] * rank}, strides = {[stride] * rank}, pads = {[pad] * 2 * rank}"
    counted = f", count_include_pad = {g.some(0, 1)}"
    call = g.some(f"MaxPool <{window}>", f"AveragePool <{window}{counted}>")
    return g.node(f"{call} ({x})", (n, c, *sizes), x)


def _global_pool(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 3:
        return None
    call = g.some("GlobalAveragePool", "GlobalMaxPool", "GlobalAveragePool")
    return g.node(f"{call} ({x})", (*shape[:2], *[1] * (len(shape) - 2)), x)


def _reduce(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) < 2:
        return None
    axis = int(g.rng.integers(1, len(shape)))
    keep = g.some(0, 1)
    op = g.some("ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
    after = tuple(1 if i == axis else s for i, s in enumerate(shape) if keep or i != axis)
    return g.node(f"{op} <keepdims = {keep}> ({x}, {g.ints(axis)})", after, x)


def _partner(g: Graph, x: str, shape: Shape) -> str:
    """Another tensor of the same shape, made if need be."""
    others = [name for name, s in g.live.items() if s == shape and name != x]
    if others and g.rng.random() < 0.8:
        return str(g.rng.choice(others))
    if len(shape) >= 3:
        weight = g.weight(shape[1], shape[1], *[1] * (len(shape) - 2))
        return g.node(f"Conv ({x}, {weight}, {g.weight(shape[1])})", shape, x)
    return g.node(f"MatMul ({x}, {g.weight(shape[-1], shape[-1])})", shape, x) if len(shape) > 1 else x


def _junction(g: Graph, x: str, shape: Shape) -> object:
    y = _partner(g, x, shape)
    call = g.some(
        f"Add ({x}, {y})",
        f"Add ({y}, {x})",
        f"Sub ({x}, {y})",
        f"Sum ({x}, {y}, {x})",
        f"Max ({x}, {y})",
        f"Mean ({x}, {y})",
    )
    return g.node(call, shape, x, y)


def _broadcast_sum(g: Graph, x: str, shape: Shape) -> object:
    fit = [
        n for n, s in g.live.items() if len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True))
    ]
    y = g.some(*fit)
    return g.node(f"{g.some('Add', 'Mul')} ({x}, {y})", shape, x, y)


def _gate(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 4:
        return None
    pooled = g.node(f"GlobalAveragePool ({x})", (*shape[:2], 1, 1), x)
    inner = g.node(f"Conv ({pooled}, {g.weight(shape[1], shape[1], 1, 1)})", (*shape[:2], 1, 1), pooled)
    gate = g.node(f"{g.some('Sigmoid', 'HardSigmoid', 'Relu')} ({inner})", (*shape[:2], 1, 1), inner)
    return g.node(g.some(f"Mul ({x}, {gate})", f"Mul ({gate}, {x})"), shape, x, gate)


def _where(g: Graph, x: str, shape: Shape) -> object:
    y = _zeros(g, shape) if g.padding.random() < 0.2 else _partner(g, x, shape)
    mask = g.constant(g.rng.random(shape[-1:]) > 0.5, "b")
    return g.node(f"Where ({mask}, {x}, {y})", shape, x, y)


def _zeros(g: Graph, shape: Shape) -> str:
    """As many as are computed from the input: who reads the graph knows their number by a Reshape only."""
    at = len(g.lines)
    g.lines += [
        f"f{at}z = Reshape (x0, {g.ints(-1)}) a{at}z = ArgMax <axis = 0> (f{at}z) n{at}z = Mul (a{at}z, {g.ints(0)})",
        f"s{at}z = Add (n{at}z, {g.ints(*shape)}) o{at}z = ConstantOfShape <value = double[1] {{0}}> (s{at}z)",
        f"z{at}z = Reshape (o{at}z, {g.ints(*shape)})",
    ]
    return f"z{at}z"


def _concat(g: Graph, x: str, shape: Shape) -> object:
    axis = int(g.rng.integers(1, len(shape))) if len(shape) > 1 else 0
    if g.padding.random() < 0.2:
        parts = [x, _zeros(g, shape)][:: g.padding.choice([1, -1])]
        after = (*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])
        return g.node(f"Concat <axis = {axis}> ({', '.join(parts)})", after, x)
    around = shape[:axis] + shape[axis + 1 :]
    y = g.some(*[n for n, s in g.live.items() if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == around])
    size = shape[axis] + g.live[y][axis]
    return g.node(f"Concat <axis = {axis}> ({x}, {y})", (*shape[:axis], size, *shape[axis + 1 :]), x, y)


def _transpose(g: Graph, x: str, shape: Shape) -> object:
    perm = (
        [0, *g.rng.permutation(np.arange(1, len(shape))).tolist()]
        if g.rng.random() < 0.8
        else g.rng.permutation(len(shape)).tolist()
    )
    return g.node(f"Transpose <perm = {perm}> ({x})", tuple(shape[p] for p in perm), x)


def _reshape(g: Graph, x: str, shape: Shape) -> object:
    """Merge two neighbouring axes, split one, or flatten; the first axis copied by 0 now and then."""
    if len(shape) < 2:
        return None
    axis = int(g.rng.integers(1, len(shape)))
    if g.rng.random() < 0.5 and axis + 1 < len(shape):
        after = (*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    elif shape[axis] % 2 == 0 and len(shape) < 5:
        after = (*shape[:axis], *g.some((2, shape[axis] // 2), (shape[axis] // 2, 2)), *shape[axis + 1 :])
    else:
        after = (shape[0], int(np.prod(shape[1:])))
    target = list(after)
    if g.rng.random() < 0.3:
        target[0] = 0
    if g.rng.random() < 0.3:
        target[-1] = -1
    return g.node(f"Reshape ({x}, {g.ints(*target)})", after, x)


def _shuffle(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 4 or shape[1] % 2:
        return None
    n, c, h, w = shape
    split = g.node(f"Reshape ({x}, {g.ints(n, 2, c // 2, h, w)})", (n, 2, c // 2, h, w), x)
    turned = g.node(f"Transpose <perm = [0, 2, 1, 3, 4]> ({split})", (n, c // 2, 2, h, w), split)
    return g.node(f"Reshape ({turned}, {g.ints(n, c, h, w)})", shape, turned)


def _flatten(g: Graph, x: str, shape: Shape) -> object:
    return g.node(f"Flatten ({x})", (shape[0], int(np.prod(shape[1:]))), x) if len(shape) > 2 else None


def _squeeze(g: Graph, x: str, shape: Shape) -> object:
    ones = [i for i, s in enumerate(shape) if s == 1]
    if ones and len(shape) > 2:
        axis = g.some(*ones)
        return g.node(f"Squeeze ({x}, {g.ints(axis)})", shape[:axis] + shape[axis + 1 :], x)
    axis = int(g.rng.integers(len(shape) + 1))
    return g.node(f"Unsqueeze ({x}, {g.ints(axis)})", (*shape[:axis], 1, *shape[axis:]), x) if len(shape) < 5 else None


def _slice(g: Graph, x: str, shape: Shape) -> object:
    axis = int(g.rng.integers(len(shape)))
    if shape[axis] < 2:
        return None
    start, step = g.some(0, 1), g.some(1, 2)
    size = len(range(start, shape[axis], step))
    call = f"Slice ({x}, {g.ints(start)}, {g.ints(shape[axis])}, {g.ints(axis)}, {g.ints(step)})"
    return g.node(call, (*shape[:axis], size, *shape[axis + 1 :]), x)


def _gather(g: Graph, x: str, shape: Shape) -> object:
    axis = int(g.rng.integers(len(shape)))
    count = g.some(shape[axis], 1, 2)
    picked = g.rng.integers(0, shape[axis], count).tolist()
    return g.node(f"Gather <axis = {axis}> ({x}, {g.ints(*picked)})", (*shape[:axis], count, *shape[axis + 1 :]), x)


def _split(g: Graph, x: str, shape: Shape) -> object:
    axis = min(1, len(shape) - 1)
    if shape[axis] < 2:
        return None
    first = int(g.rng.integers(1, shape[axis]))
    sizes = [first, shape[axis] - first]
    shapes = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    return g.nodes(f"Split <axis = {axis}> ({x}, {g.ints(*sizes)})", shapes, x)


def _pad_all(g: Graph, x: str, shape: Shape) -> object:
    """Margins and crops along any axis, the channels' among them."""
    mode = g.padding.choice(["constant", "constant", "edge", "reflect"])
    low = -1 if mode == "constant" else 0
    margins = [[int(n) for n in g.padding.integers(low, 2, 2)] if g.padding.random() < 0.4 else [0, 0] for _ in shape]
    margins = [[0, 0] if size < 3 else margin for size, margin in zip(shape, margins, strict=True)]
    value = f", {g.constant(np.array(g.padding.choice([0.0, 1.5])))}" if mode == "constant" else ""
    after = tuple(size + sum(margin) for size, margin in zip(shape, margins, strict=True))
    pads = g.ints(*(before for before, _ in margins), *(behind for _, behind in margins))
    return g.node(f'Pad <mode = "{mode}"> ({x}, {pads}{value})', after, x)


def _pad(g: Graph, x: str, shape: Shape) -> object:
    if g.padding.random() < 0.5:
        return _pad_all(g, x, shape)
    if len(shape) < 3 or min(shape[2:]) < 2:
        return None
    pads = [0, 0, *[1] * (len(shape) - 2)] * 2
    mode = g.some("constant", "constant", "reflect", "edge")
    value = f", {g.constant(np.array(g.some(0.0, 1.5)))}" if mode == "constant" and g.rng.random() < 0.5 else ""
    after = (*shape[:2], *(s + 2 for s in shape[2:]))
    return g.node(f'Pad <mode = "{mode}"> ({x}, {g.ints(*pads)}{value})', after, x)


def _resize(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 4:
        return None
    scales = g.constant(np.array([1, 1, 2, 2], dtype=np.float32), "f")
    mode = g.some("nearest", "linear")
    after = (*shape[:2], 2 * shape[2], 2 * shape[3])
    return g.node(f'Resize <mode = "{mode}"> ({x}, , {scales})', after, x)


def _depth_space(g: Graph, x: str, shape: Shape) -> object:
    if len(shape) != 4:
        return None
    n, c, h, w = shape
    if c % 4 == 0 and g.rng.random() < 0.7:
        return g.node(
            f'DepthToSpace <blocksize = 2, mode = "{g.some("DCR", "CRD")}"> ({x})', (n, c // 4, 2 * h, 2 * w), x
        )
    if h % 2 == 0 and w % 2 == 0:
        return g.node(f"SpaceToDepth <blocksize = 2> ({x})", (n, 4 * c, h // 2, w // 2), x)
    return None


def _tile(g: Graph, x: str, shape: Shape) -> object:
    axis = int(g.rng.integers(1, len(shape))) if len(shape) > 1 else 0
    repeats = [2 if i == axis else 1 for i in range(len(shape))]
    return g.node(f"Tile ({x}, {g.ints(*repeats)})", tuple(s * r for s, r in zip(shape, repeats, strict=True)), x)


def _expand(g: Graph, x: str, shape: Shape) -> object:
    after = tuple(2 if s == 1 and g.rng.random() < 0.5 else s for s in shape)
    return g.node(f"Expand ({x}, {g.ints(*after)})", after, x)


def _branches(g: Graph, x: str, shape: Shape) -> object:
    """A re-parameterised block: a 3x3, a 1x1 and the identity, each under its own statistics, summed."""
    if len(shape) != 4:
        return None
    c = shape[1]
    big = g.node(f"Conv <pads = [1,1,1,1]> ({x}, {g.weight(c, c, 3, 3)})", shape, x)
    small = g.node(f"Conv ({x}, {g.weight(c, c, 1, 1)})", shape, x)
    parts = [_batchnorm(g, name, shape) for name in (big, small, x)]
    both = g.node(f"Add ({parts[0]}, {parts[1]})", shape, str(parts[0]), str(parts[1]))
    return g.node(f"Add ({both}, {parts[2]})", shape, both, str(parts[2]))


_CONSTANT_OF_CONSTANT: tuple[Step, ...] = (
    _unary, _unary, _clip, _bound, _prelu, _pool, _global_pool, _reduce, _doubled, _constant_map, _gate, _transpose,
    _shuffle, _slice, _pad, _resize, _depth_space, _tile, _batchnorm,
)  # fmt: skip
STEPS: tuple[Step, ...] = (
    *[_batchnorm_read] * 8, *[_conv] * 6, _conv_transpose, _gemm, _gemm, _matmul, _matmul, _matmul_left,
    _dynamic_matmul, _lstm, *[_constant_map] * 3, *[_unary] * 4, _clip, _bound, _prelu, _pool, _pool, _global_pool,
    _reduce, *[_junction] * 4, _broadcast_sum, _gate, _where, _concat, _concat, _transpose, _transpose, _reshape,
    _reshape, _shuffle, _flatten, _squeeze, _slice, _gather, _split, _pad, _resize, _depth_space, _tile, _expand,
    _branches,
)  # fmt: skip


def random_model(seed: int, steps: int = 14, quantised: bool = False) -> ir.Model:
    """The model of this seed: about `steps` operators behind one or two inputs.

    `quantised`: half of the weights are integers behind a DequantizeLinear, of float64, which no checker takes.
    """
    g = Graph(seed, quantised)
    sizes = lambda rank: tuple(int(s) for s in g.rng.choice([2, 3, 4], rank))  # noqa: E731
    g.input(sizes(g.some(2, 3, 4, 4, 4)))
    if g.rng.random() < 0.2:
        g.input(sizes(g.some(2, 3, 4)))
    if g.learning.random() < _LEARNED:
        g.learn(g.inputs["x0"])
    while len(g.lines) < steps:
        x = g.pick()
        before = len(g.lines)
        step = STEPS[int(g.rng.integers(len(STEPS)))]
        step(g, x, g.live[x])
        if len(g.lines) > before:
            for name in list(g.live):
                if int(np.prod(g.live[name])) > _MOST_ELEMENTS and len(g.live) > 1:
                    del g.live[name]
                    g.readers[name] = 1
            if not g.live:
                break
    return _with_outputs(g)


def _with_outputs(g: Graph) -> ir.Model:
    if any(name not in g.inputs and name not in g.learned for name in g.live):
        return g.model()
    x = next(iter(g.inputs))
    g.live[x] = g.inputs[x]
    g.node(f"Relu ({x})", g.inputs[x], x)
    return g.model()
