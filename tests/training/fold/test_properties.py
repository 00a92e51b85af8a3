"""Laws, on random graphs under hostile statistics: the folded graph computes the same, and folding twice is once.

A graph is a random chain (with residual sums, shared weights, kept readers) of every operator a rule knows, of
BatchNormalization, and of operators no rule knows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.training.fold.models import build, serialized, statistics
from tests.training.fold.oracle import assert_same_function
from training.fold import Verdict, fold

Array = np.ndarray[Any, Any]


class Writer:
    """Writes one graph: text and constants, following the shape of the tensor that runs through it."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.rng, self.start, self.shape, self.at = rng, shape, shape, "x"
        self.lines: list[str] = []
        self.constants: dict[str, Array] = {}
        self.outputs: dict[str, tuple[int, ...]] = {}

    def draw(self, *shape: int) -> str:
        """A new constant, or, one time in four, an old one of the same shape."""
        same = [name for name, array in self.constants.items() if array.shape == shape and name.startswith("k")]
        if same and self.rng.random() < 0.25:
            return str(self.rng.choice(same))
        return self.keep(self.rng.normal(size=shape), "k")

    def keep(self, array: Array, prefix: str) -> str:
        name = f"{prefix}{len(self.constants)}"
        self.constants[name] = array
        return name

    def then(self, call: str, shape: tuple[int, ...] | None = None) -> None:
        """`call` reads `{x}`, the tensor so far."""
        after = f"t{len(self.lines)}"
        self.lines.append(f"{after} = {call.replace('{x}', self.at)}")
        self.at, self.shape = after, shape or self.shape

    def some(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def bias(self, channels: int) -> str:
        return self.some("", ",", f", {self.draw(channels)}")

    # One method an operator; each keeps or changes the shape.
    def batchnorm(self) -> None:
        names = [self.keep(part, key) for key, part in statistics(self.rng, self.shape[1]).items()]
        epsilon = self.some("0.0", "1e-12", "1e-05", "0.001")
        self.then(f"BatchNormalization <epsilon = {epsilon}> ({{x}}, {', '.join(names)})")

    def conv(self) -> None:
        n, c, *spatial = self.shape
        group = self.some(1, c, *([2] if c % 2 == 0 else []))
        out = self.some(1, 2) * group if group > 1 else self.some(c, 2, 3)
        kernel = [self.some(1, 3) for _ in spatial]
        pads = [k // 2 for k in kernel] * 2
        weight = self.draw(out, c // group, *kernel)
        self.then(f"Conv <group = {group}, pads = {pads}> ({{x}}, {weight}{self.bias(out)})", (n, out, *spatial))

    def conv_transpose(self) -> None:
        n, c, *spatial = self.shape
        group = self.some(1, c, *([2] if c % 2 == 0 else []))
        per_group = self.some(1, 2)
        weight = self.draw(c, per_group, *[3] * len(spatial))
        out = per_group * group
        pads = [1] * 2 * len(spatial)
        self.then(
            f"ConvTranspose <group = {group}, pads = {pads}> ({{x}}, {weight}{self.bias(out)})", (n, out, *spatial)
        )

    def gemm(self) -> None:
        m, k = self.shape
        n, transposed = self.some(k, 2, 5), self.some(0, 1)
        weight = self.draw(n, k) if transposed else self.draw(k, n)
        c = self.some("", ",", *(f", {self.draw(*shape)}" for shape in [(), (1,), (n,), (1, n), (m, 1), (m, n)]))
        attributes = f"transB = {transposed}, alpha = {self.some('1.0', '0.5')}, beta = {self.some('1.0', '2.0')}"
        self.then(f"Gemm <{attributes}> ({{x}}, {weight}{c})", (m, n))

    def matmul(self) -> None:
        *lead, k = self.shape
        n = self.some(k, 2, 5)
        self.then(f"MatMul ({{x}}, {self.draw(k, n)})", (*lead, n))

    def matmul_left(self) -> None:
        *lead, k, last = self.shape
        m = self.some(k, 2, 5)
        self.then(f"MatMul ({self.draw(m, k)}, {{x}})", (*lead, m, last))

    def add(self) -> None:
        shape = self.some((), (1,), self.shape[-1:], self.shape[1:], (self.shape[1], *[1] * (len(self.shape) - 2)))
        constant = self.draw(*shape)
        self.then(self.some(f"Add ({{x}}, {constant})", f"Add ({constant}, {{x}})"))

    def relu(self) -> None:
        self.then("Relu ({x})")

    def transpose(self) -> None:
        *lead, a, b = range(len(self.shape))
        self.then(f"Transpose <perm = {[*lead, b, a]}> ({{x}})", (*self.shape[:-2], self.shape[-1], self.shape[-2]))

    def tap(self) -> None:
        """Somebody else reads this tensor."""
        self.lines.append(f"o{len(self.lines)} = Identity ({self.at})")

    def output(self) -> None:
        """This tensor is a graph output as well."""
        if self.at != "x":
            self.outputs[self.at] = self.shape

    def model(self) -> ir.Model:
        self.output()
        outputs = ", ".join(f"double{list(shape)} {name}" for name, shape in self.outputs.items())
        graph = f"m (double{list(self.start)} x) => ({outputs}) {{ {' '.join(self.lines)} }}"
        used = {name for name in self.constants if any(name in line for line in self.lines)}
        return build(graph, **{name: array for name, array in self.constants.items() if name in used})


BY_RANK = {
    2: ["gemm", "matmul", "add", "relu", "transpose"],
    3: ["conv", "conv_transpose", "matmul", "matmul_left", "add", "relu", "transpose"],
    4: ["conv", "conv_transpose", "matmul", "matmul_left", "add", "relu", "transpose"],
}


def random_model(seed: int) -> ir.Model:
    rng = np.random.default_rng(seed)
    rank = int(rng.choice([2, 3, 4]))
    coincident = rng.random() < 0.5
    shape = (4,) * rank if coincident else (2, 4, 5, 3)[:rank]
    writer = Writer(rng, shape)
    for _ in range(int(rng.integers(1, 9))):
        if int(np.prod(writer.shape)) > 2000:
            break
        getattr(writer, str(rng.choice(BY_RANK[rank])))()
        for step, chance in (
            (writer.tap, 0.05),
            (writer.output, 0.05),
            (writer.batchnorm, 0.6),
            (writer.batchnorm, 0.1),
        ):
            if rng.random() < chance:
                step()
    if not writer.lines:
        writer.relu()
    return writer.model()


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1))
@example(0)
def test_a_folded_random_graph_computes_the_same_and_folds_once(seed: int):
    model = random_model(seed)
    before = serialized(model)

    folded, report = fold(model)

    assert serialized(model) == before
    for mine, theirs in ((model.graph.inputs, folded.graph.inputs), (model.graph.outputs, folded.graph.outputs)):
        assert [(v.name, v.type, v.shape) for v in mine] == [(v.name, v.type, v.shape) for v in theirs]
    onnx.checker.check_model(ir.to_proto(folded), full_check=True)
    again, second = fold(folded)
    assert not second.changed and serialized(again) == serialized(folded)
    if not report.changed:
        assert serialized(folded) == before
    assert_same_function(model, folded, seed, tolerance=1e-11)


def test_the_generator_reaches_every_verdict_and_rule():
    """The property above would hold of models without BatchNormalization too: these are not such."""
    verdicts: dict[Verdict, int] = dict.fromkeys(Verdict, 0)
    into: set[str] = set()
    for seed in range(150):
        folded, report = fold(random_model(seed))
        kinds = {node.name or node.outputs[0].name: node.op_type for node in folded.graph}
        for outcome in report.batchnorms:
            verdicts[outcome.verdict] += 1
            into |= {kinds[name] for name in outcome.into}

    assert min(verdicts.values()) >= 5 and verdicts[Verdict.FOLDED] >= 100
    assert into == {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add"}
