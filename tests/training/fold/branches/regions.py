"""Random linear regions: sums, nested and scaled, of random branches of a few tensors, in all ways ONNX can write them.

A region is written so that it is valid; whether anything in it can be merged is chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tests.training.fold.branches.support import batchnorm
from tests.training.fold.models import Array, build


@dataclass
class Writer:
    rng: np.random.Generator
    lines: list[str] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    outputs: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def some(self, *choices: object) -> object:
        return choices[int(self.rng.integers(len(choices)))]

    def count(self, *choices: int) -> int:
        return int(self.rng.choice(choices))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def draw(self, *shape: int) -> str:
        """A constant; one time in ten one that is there already."""
        same = [name for name, array in self.constants.items() if name[0] == "k" and array.shape == shape]
        if same and self.chance(0.1):
            return str(self.rng.choice(same))
        name = f"k{len(self.constants)}"
        self.constants[name] = self.rng.normal(size=shape) + self.rng.choice([-0.3, 0.3])
        return name

    def node(self, call: str) -> str:
        at = len(self.lines)
        self.lines.append(f"[n{at}] t{at} = {call}")
        return f"t{at}"

    def batchnorm(self, x: str, channels: int) -> str:
        name = f"b{len(self.lines)}"
        self.constants |= batchnorm(self.rng, name, channels)
        return self.node(f"BatchNormalization ({x}, {name}_g, {name}_b, {name}_m, {name}_v)")

    def elementwise(self, x: str, channels: int, trailing: int, *, shift: bool = True) -> str:
        """A map; its constant is a vector along the channels, which `trailing` axes follow, or one number."""
        vector = (channels, *[1] * trailing)
        k = self.draw(*[(), (1,), vector, (1, *vector)][int(self.rng.integers(4))])
        linear = [f"Mul ({x}, {k})", f"Mul ({k}, {x})", f"Div ({x}, {k})", f"Neg ({x})", f"Identity ({x})"]
        affine = [f"Add ({x}, {k})", f"Add ({k}, {x})", f"Sub ({x}, {k})", f"Sub ({k}, {x})"]
        return self.node(str(self.some(*linear, f"Dropout ({x})", *(affine if shift else []))))

    def tree(self, leaves: list[str], channels: int, trailing: int, shape: tuple[int, ...]) -> str:
        """A sum of all leaves; maps in between; now and then a sum that is read elsewhere too."""
        leaves = list(leaves)
        while len(leaves) > 1:
            take = min(len(leaves), self.count(2, 2, 2, 3, 4))
            picked = [leaves.pop(int(self.rng.integers(len(leaves)))) for _ in range(take)]
            if take == 2:
                total = self.node(f"{self.some('Add', 'Add', 'Sub', 'Sum')} ({picked[0]}, {picked[1]})")
            else:
                k = [self.draw(channels, *[1] * trailing)] if self.chance(0.2) else []
                total = self.node(f"Sum ({', '.join([*picked, *k])})")
            if self.chance(0.2) and leaves:
                total = self.elementwise(total, channels, trailing)
            self.maybe_read_elsewhere(total, shape, 0.05)
            leaves.append(total)
        return leaves[0]

    def maybe_read_elsewhere(self, value: str, shape: tuple[int, ...], probability: float) -> None:
        if self.chance(probability):
            self.outputs.append((self.node(f"Relu ({value})"), shape))
        elif self.chance(probability / 2):
            self.outputs.append((value, shape))

    def model(self, inputs: list[tuple[str, tuple[int, ...]]], opset: int) -> ir.Model:
        def typed(values: list[tuple[str, tuple[int, ...]]]) -> str:
            return ", ".join(f"double[{','.join(map(str, shape))}] {name}" for name, shape in values)

        body = "\n".join(self.lines)
        return build(f"g ({typed(inputs)}) => ({typed(self.outputs)}) {{ {body} }}", opset=opset, **self.constants)


# --- convolutions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """What all branches of one region must agree on: strides, and output sizes by way of the slack."""

    channels: int
    rank: int
    strides: tuple[int, ...]
    slack: int  # -1 or -3: as a 1x1, or as an unpadded 3x3


def conv_region(seed: int) -> ir.Model:
    w = Writer(np.random.default_rng(seed))
    rank = w.count(1, 2, 2)
    sizes = tuple(w.count(5, 6, 7) for _ in range(rank))
    strides = (w.count(1, 1, 2),) * rank
    grid = Grid(w.count(2, 4, 6), rank, strides, w.count(-1, -1, -3))
    out = tuple((n + grid.slack) // s + 1 for n, s in zip(sizes, strides, strict=True))
    inputs = [(f"x{i}", (2, w.count(grid.channels, grid.channels, 3, 4), *sizes)) for i in range(w.count(1, 1, 2))]
    leaves = []
    for _ in range(w.count(2, 3, 4, 5, 6)):
        x, shape = inputs[int(w.rng.integers(len(inputs)))]
        leaf = conv_branch(w, x, shape[1], grid)
        w.maybe_read_elsewhere(leaf, (2, grid.channels, *out), 0.06)
        leaves.append(leaf)
    y = w.tree(leaves, grid.channels, rank, (2, grid.channels, *out))
    w.outputs.append((w.node(f"Relu ({y})"), (2, grid.channels, *out)))
    return w.model(inputs, opset=w.count(11, 13, 17, 20))


def conv_branch(w: Writer, x: str, channels: int, grid: Grid) -> str:
    """One branch of `x`, of the channels and size that `grid` says."""
    at, here = x, channels
    kind = str(w.some("one", "one", "one", "two", "pool", "map"))
    square = channels == grid.channels
    if kind == "map" and square and grid.slack == -1 and set(grid.strides) == {1}:
        for _ in range(w.count(0, 1, 2)):
            at = w.batchnorm(at, here) if w.chance(0.5) else w.elementwise(at, here, grid.rank)
        return at
    if kind == "pool" and square:
        at = pool(w, at, grid)
    elif kind == "two":
        at = two(w, at, here, grid)
    else:
        if w.chance(0.2):
            at = w.elementwise(at, here, grid.rank, shift=w.chance(0.5))
        at = conv(w, at, here, grid.channels, grid.strides, (grid.slack,) * grid.rank)
    if w.chance(0.6):
        at = w.batchnorm(at, grid.channels) if w.chance(0.6) else w.elementwise(at, grid.channels, grid.rank)
    return at


def conv(w: Writer, x: str, inputs: int, outputs: int, strides: tuple[int, ...], slack: tuple[int, ...]) -> str:
    """A convolution of any kernel, dilation and pads that come to this slack."""
    group = w.count(*[g for g in range(1, inputs + 1) if inputs % g == 0 and outputs % g == 0])
    kernel, dilations, begins, ends = window(w, slack)
    bias = w.chance(0.4)
    weight = w.draw(outputs, inputs // group, *kernel)
    attributes = (
        f"strides = {list(strides)}, dilations = {dilations}, pads = {begins + ends}, group = {group},"
        f" kernel_shape = {kernel}"
    )
    return w.node(f"Conv <{attributes}> ({x}, {weight}{', ' + w.draw(outputs) if bias else ''})")


def window(w: Writer, slack: tuple[int, ...]) -> tuple[list[int], ...]:
    """Kernel, dilations and pads whose sum less the kernel's extent is `slack`."""
    kernel, dilations, begins, ends = [], [], [], []
    for s in slack:
        fitting = [(k, d) for k in (1, 2, 3, 4, 5) for d in (1, 2) if s + d * (k - 1) + 1 >= 0 and d * (k - 1) < 6]
        k, d = fitting[int(w.rng.integers(len(fitting)))]
        pads = s + d * (k - 1) + 1
        begin = pads // 2 if w.chance(0.7) else int(w.rng.integers(pads + 1))
        for record, number in zip((kernel, dilations, begins, ends), (k, d, begin, pads - begin), strict=True):
            record.append(number)
    return kernel, dilations, begins, ends


def pool(w: Writer, x: str, grid: Grid) -> str:
    """A mean; its padding counts or, one time in four, does not."""
    _, _, begins, ends = window(w, (grid.slack,) * grid.rank)
    kernel = [begin + end - grid.slack for begin, end in zip(begins, ends, strict=True)]
    if any(max(begin, end) >= k for begin, end, k in zip(begins, ends, kernel, strict=True)):  # ONNX forbids that
        begins, ends, kernel = [0] * grid.rank, [0] * grid.rank, [-grid.slack] * grid.rank
    counts = int(w.chance(0.75))
    return w.node(
        f"AveragePool <kernel_shape = {kernel}, strides = {list(grid.strides)}, pads = {begins + ends},"
        f" count_include_pad = {counts}> ({x})"
    )


def two(w: Writer, x: str, inputs: int, grid: Grid) -> str:
    """Two convolutions in sequence: a pointwise one and any other, or any and an unpadded one."""
    middle = w.count(2, 4, 6, 8)
    first = str(w.some("pointwise", "padded"))
    if first == "pointwise":
        at = conv_1x1(w, x, inputs, middle, grid.rank)
        at = w.batchnorm(at, middle) if w.chance(0.3) else at
        return conv(w, at, middle, grid.channels, grid.strides, (grid.slack,) * grid.rank)
    kernel = w.count(1, 3)
    at = conv(w, x, inputs, middle, (1,) * grid.rank, (grid.slack + kernel - 1,) * grid.rank)
    at = w.batchnorm(at, middle) if w.chance(0.5) else at
    weight = w.draw(grid.channels, middle, *[kernel] * grid.rank)
    return w.node(f"Conv <strides = {list(grid.strides)}> ({at}, {weight})")


def conv_1x1(w: Writer, x: str, inputs: int, outputs: int, rank: int) -> str:
    return w.node(
        f"Conv ({x}, {w.draw(outputs, inputs, *[1] * rank)}{', ' + w.draw(outputs) if w.chance(0.3) else ''})"
    )


# --- Linear layers -----------------------------------------------------------------------------------------------


def linear_region(seed: int) -> ir.Model:
    w = Writer(np.random.default_rng(seed))
    lead = [(3,), (2, 3), (4, 2, 3)][int(w.rng.integers(3))]
    features = w.count(3, 4, 5)
    inputs = [(f"x{i}", (*lead, w.count(features, features, 6))) for i in range(w.count(1, 1, 2))]
    leaves = []
    for _ in range(w.count(2, 3, 4, 5)):
        x, shape = inputs[int(w.rng.integers(len(inputs)))]
        leaf = linear_branch(w, x, shape, features)
        w.maybe_read_elsewhere(leaf, (*lead, features), 0.06)
        leaves.append(leaf)
    y = w.tree(leaves, features, 0, (*lead, features))
    w.outputs.append((w.node(f"Relu ({y})"), (*lead, features)))
    return w.model(inputs, opset=w.count(11, 13, 17, 20))


def linear_branch(w: Writer, x: str, shape: tuple[int, ...], features: int) -> str:
    at, here = x, shape[-1]
    if here == features and w.chance(0.2):
        return w.elementwise(at, here, 0) if w.chance(0.5) else at
    if w.chance(0.3):  # a low rank update
        middle = w.count(1, 2, 8)
        at, here = linear(w, at, here, middle, len(shape)), middle
    at = linear(w, at, here, features, len(shape))
    if w.chance(0.4):
        at = w.batchnorm(at, features) if len(shape) == 2 and w.chance(0.5) else w.elementwise(at, features, 0)
    return at


def linear(w: Writer, x: str, inputs: int, outputs: int, rank: int) -> str:
    if rank == 2 and w.chance(0.5):
        transposed = w.chance(0.5)
        weight = w.draw(outputs, inputs) if transposed else w.draw(inputs, outputs)
        bias = f", {w.draw(*[(), (1,), (outputs,), (1, outputs)][int(w.rng.integers(4))])}" if w.chance(0.5) else ""
        return w.node(f"Gemm <alpha = 0.5, beta = 2.0, transB = {int(transposed)}> ({x}, {weight}{bias})")
    at = w.node(f"MatMul ({x}, {w.draw(inputs, outputs)})")
    return w.node(f"Add ({at}, {w.draw(outputs)})") if w.chance(0.4) else at
