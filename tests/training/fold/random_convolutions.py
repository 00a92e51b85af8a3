"""Random convolutional graphs in which widening has work: zero-padded convolutions behind all kinds of activations.

Blocks of convolution, activation and BatchNormalization with sums, pools, pads, resizing and depthwise convolutions
between them, on [N, C, H, W]; now and then an operator or a graph output that widening must refuse. In float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tests.training.fold.models import build, mild_statistics, statistics

_ACTIVATIONS = (
    "PRelu ({x}, {slope})", "PRelu ({x}, {one_slope})", "LeakyRelu <alpha = 0.25> ({x})", "Relu ({x})", "Abs ({x})",
    "Sigmoid ({x})", "Tanh ({x})", "Gelu ({x})", "Gelu <approximate = \"tanh\"> ({x})", "HardSwish ({x})", "Mish ({x})",
    "Elu <alpha = 0.5> ({x})", "Softplus ({x})", "Softsign ({x})", "Erf ({x})", "Neg ({x})", "Dropout ({x})",
    "Clip ({x}, {low}, {high})", "Max ({x}, {slope})", "Min ({x}, {one_slope})", "Mul ({x}, {slope})",
    "Div ({x}, {one_slope})", "Sub ({low}, {x})", "Add ({x}, {slope})", "Identity ({x})", "Softmax <axis = 1> ({x})",
)  # fmt: skip


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.statistics = statistics if self.rng.random() < 0.5 else mild_statistics
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.read: set[str] = set()

    def some(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def constant(self, array: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def weight(self, *shape: int) -> str:
        """A new one, or one time in five an old one of this shape."""
        same = [name for name, array in self.constants.items() if array.shape == shape and array.ndim > 3]
        if same and self.rng.random() < 0.2:
            return str(self.rng.choice(same))
        return self.constant(self.rng.normal(size=shape))

    def node(self, call: str, shape: tuple[int, ...], *reads: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"[n{len(self.lines)}] {name} = {call}")
        self.shapes[name] = shape
        self.read.update(reads)
        return name

    def pick(self) -> str:
        names = list(self.shapes)
        return str(self.rng.choice(names[-5:] if self.rng.random() < 0.8 else names))

    def conv(self, x: str, out: int, kernel: int = 3) -> str:
        n, c, h, w = self.shapes[x]
        bias = self.some("", f", {self.constant(self.rng.normal(size=out))}")
        if self.rng.random() < 0.2:
            call = f"ConvTranspose <pads = {[kernel // 2] * 4}> ({x}, {self.weight(c, out, kernel, kernel)}{bias})"
        else:
            call = f"Conv <pads = {[kernel // 2] * 4}> ({x}, {self.weight(out, c, kernel, kernel)}{bias})"
        return self.node(call, (n, out, h, w), x)

    def batchnorm(self, x: str) -> str:
        names = [self.constant(part) for part in self.statistics(self.rng, self.shapes[x][1]).values()]
        return self.node(f"BatchNormalization ({x}, {', '.join(names)})", self.shapes[x], x)

    def activation(self, x: str) -> str:
        c = self.shapes[x][1]
        names = {
            "slope": self.constant(self.rng.uniform(0.2, 2, size=(c, 1, 1))),
            "one_slope": self.constant(self.rng.uniform(0.2, 2, size=self.some((), (1,), (1, 1, 1)))),
            "low": self.constant(-0.5),
            "high": self.constant(self.some(0.5, 6.0)),
        }
        return self.node(self.some(*_ACTIVATIONS).format(x=x, **names), self.shapes[x], x)

    def block(self, x: str) -> str:
        """Convolution, activation, BatchNormalization, zero-padded convolution; perhaps added to what it began with."""
        c = self.shapes[x][1]
        y = self.activation(self.conv(x, self.some(c, 2, 3)))
        z = self.conv(self.batchnorm(y), self.some(c, self.shapes[y][1]))
        for other in (x, y):
            if self.shapes[other] == self.shapes[z] and self.rng.random() < 0.5:
                return self.node(
                    f"{self.some('Add', 'Sub', 'Sum', 'Mul', 'Max')} ({other}, {z})", self.shapes[z], other, z
                )
        return z

    def other(self, x: str) -> str:
        n, c, h, w = shape = self.shapes[x]
        wider = (n, c, h + 2, w + 2)
        pads = self.constant([0, 0, 1, 1, 0, 0, 1, 1])
        scales = self.constant(np.array([1, 1, 2, 1], dtype=np.float32))
        window = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
        call, after = self.some(
            (f"MaxPool <{window}> ({x})", shape),
            (f"AveragePool <{window}> ({x})", shape),
            (f"AveragePool <{window}, count_include_pad = 1> ({x})", shape),
            (f"Conv <group = {c}, pads = [1, 1, 1, 1]> ({x}, {self.weight(c, 1, 3, 3)})", shape),
            (f"Pad ({x}, {pads})", wider),
            (f'Pad <mode = "reflect"> ({x}, {pads})', wider),
            (f"Resize ({x}, , {scales})", (n, c, 2 * h, w)),
            (f"Mul ({x}, {x})", shape),
            (f"Concat <axis = 1> ({x}, {x})", (n, 2 * c, h, w)),
        )
        return self.node(call, after, x)


def random_convolutions(seed: int) -> ir.Model:
    """The model of this seed."""
    g = _Graph(seed)
    g.shapes["x"] = shape = (2, *(int(size) for size in g.rng.choice([2, 3, 4], 3)))
    g.conv("x", g.some(2, 3))
    for _ in range(g.some(3, 5, 7)):
        x = g.pick()
        if max(g.shapes[x][1:]) <= 8:
            step = g.some(g.block, g.block, g.activation, g.batchnorm, g.other)
            step(x)
    for name in [name for name in g.shapes if name not in g.read and name != "x"]:
        if g.rng.random() < 0.9:
            g.conv(name, 2)
    outputs = [name for name in g.shapes if name not in g.read and name != "x"]
    declared = ", ".join(f"double[{','.join(map(str, g.shapes[name]))}] {name}" for name in outputs)
    body = "\n".join(g.lines)
    return build(f"g (double[{','.join(map(str, shape))}] x) => ({declared}) {{\n{body}\n}}", opset=20, **g.constants)
