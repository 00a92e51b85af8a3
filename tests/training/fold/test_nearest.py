"""Along which axis a map of one number works: as the nearest operators say that could hold it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.training.fold.architectures.preparing import export_default, export_raw
from tests.training.fold.judge import judge
from tests.training.fold.models import Array, build, op_types
from training.fold import Profile, fold
from training.fold.driver import known_of
from training.fold.laws import Port
from training.fold.nearest import nearest_axes
from training.fold.operators import RULES
from training.fold.reach import Reached
from training.reference import evaluate

HALF, FAR = np.array(0.5), "[op] h = Mul (a, half)"


@dataclass(frozen=True)
class Case:
    """`nodes` from x [2, 4, 5, 6] to y, among them `op`, a Mul by one half from `a` to `h`."""

    nodes: str
    axes: tuple[int, ...] | None
    constants: dict[str, Array] = field(default_factory=dict)

    @property
    def model(self) -> ir.Model:
        used = {"half": HALF, "w": np.ones((3, 4, 1, 1)), "m": np.ones((6, 6)), "g": np.ones((120, 3))} | self.constants
        used = {name: array for name, array in used.items() if f" {name})" in self.nodes}
        return build(f"m (double[2,4,5,6] x) => (y) {{ {self.nodes} }}", **used)


CASES = {
    "a Transpose in front": Case(f"t = Transpose <perm=[0,2,3,1]> (x) a = Tanh (t) {FAR}"
                                 " b = Transpose <perm=[0,3,1,2]> (h) y = Conv (b, w)", (3,)),
    "behind a convolution and a pool": Case(f"c = Conv (x, w) a = GlobalAveragePool (c) {FAR} y = Tanh (h)", (1,)),
    "pieces of a Concat": Case("a, b = Split <axis=1> (x, two) [op] h = Mul (a, half) z = Concat <axis=1> (h, b)"
                               " y = Conv (z, w)", (1,), {"two": np.array([2, 2])}),
    "flattened": Case(f"a = Tanh (x) {FAR} f = Flatten (h) y = Gemm (f, g)", (1, 2, 3)),
    "the nearer of two": Case(f"c = Conv (x, w) r = Relu (c) a = Relu (r) {FAR} y = MatMul (h, m)", (3,)),
    "none that is connected": Case(f"c = Conv (x, w) a = Tanh (c) {FAR} y = Tanh (h)", None),
    "no linear operator": Case(f"a = Tanh (x) {FAR} y = Relu (h)", None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_nearest_operator_with_weights_tells(case: Case):
    model = case.model
    value = next(node for node in model.graph if node.name == "op").outputs[0]

    near = nearest_axes(RULES, known_of(model, 17), Reached(), list(model.graph))

    assert near(value) == case.axes


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.axes], ids=lambda case: str(case.axes))
def test_and_there_the_map_folds(case: Case):
    judged = judge(case.model, Profile.GENERIC)

    assert judged.report.summary()["affines_folded"] == 1 and "Mul" not in op_types(judged.folded)


def test_what_was_reached_in_earnest_stays_where_it_is():
    model = build(
        "m (double[2,4,6] x) => (y) { t = Tanh (x) b = Relu (t) [op] h = Mul (b, half) r = Abs (h) y = MatMul (r, m) }",
        half=HALF,
        m=np.ones((6, 6)),
    )
    _, b, h, r, _ = (node.outputs[0] for node in model.graph)
    reached, known = Reached(), known_of(model, 17)
    reached.ports[b, None] = Port(b, (1,))

    near = nearest_axes(RULES, replace(known, axes_of=reached.axes_of), reached, list(model.graph))

    assert near(b) == (1,) and near(h) == near(r) == (2,)
    assert reached.axes_of(h) is None


class TransformedInput(nn.Module):
    """Inception's `transform_input`: each channel of an image from one normalisation to another, then a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = [
            torch.unsqueeze(x[:, channel], 1) * (deviation / 0.5) + (mean - 0.5) / 0.5
            for channel, (deviation, mean) in enumerate(((0.229, 0.485), (0.224, 0.456), (0.225, 0.406)))
        ]
        return self.conv(torch.cat(channels, 1))


@pytest.mark.parametrize("export", [export_raw, export_default])
@pytest.mark.parametrize("profile", list(Profile))
def test_inceptions_input_transformation_folds_into_its_first_convolution(export, profile: Profile):
    torch.manual_seed(0)
    module, x = TransformedInput().eval(), torch.randn(2, 3, 9, 8)
    model = export(module, (3, 9, 8))

    folded, report = fold(model, profile)

    assert report.summary()["affines_folded"] == report.summary()["affines_found"] == 6
    assert not {"Mul", "Add"} & {node.op_type for node in folded.graph}
    found = evaluate(folded, {"x": x.numpy()})["y"]
    np.testing.assert_allclose(found, module.double()(x.double()).detach().numpy(), atol=1e-6)
