"""What torch really exports, unoptimised: every BatchNormalization that a rule covers is gone, and torch agrees.

The exporter writes a missing bias and the parameters of affine=False as Constant -> CastLike -> Expand(Shape(..)),
where Shape and CastLike read the very tensor that is folded into. The older exporter, by TorchScript
(`dynamo=False`), writes other operators, computes every size where the batch is free, and has folded what follows a
convolution, unless it is told not to.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.training.fold.architectures import NETWORKS
from tests.training.fold.architectures.preparing import widened
from tests.training.fold.models import constant
from tests.training.fold.oracle import evaluate
from tests.training.fold.test_architectures import RAW, Counts
from training import reference
from training.fold import Verdict, fold


class SharedConv(nn.Module):
    """One convolution, used twice, each time behind a BatchNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.bn1(self.conv(x)), self.bn2(self.conv(y))


class MatMulParameter(nn.Module):
    """A product with a bare parameter: MatMul and Add, as some models write their heads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias, self.bn = (
            nn.Parameter(torch.randn(6, 5)),
            nn.Parameter(torch.randn(5)),
            nn.BatchNorm1d(5),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x @ self.weight + self.bias)


CASES = {
    "Conv1d": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), [(2, 3, 8)]),
    "Conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)), [(2, 3, 8, 9)]),
    "Conv2d without bias": (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), [(2, 3, 8, 9)]),
    "Conv3d": (nn.Sequential(nn.Conv3d(3, 4, (1, 2, 3)), nn.BatchNorm3d(4)), [(2, 3, 4, 5, 6)]),
    "depthwise": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.BatchNorm2d(8)), [(2, 4, 8, 9)]),
    "grouped": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), [(2, 4, 8, 9)]),
    "padding_mode": (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)), [(2, 3, 8, 9)]),
    "ConvTranspose1d": (nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)), [(2, 4, 8)]),
    "ConvTranspose2d groups=2": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), nn.BatchNorm2d(6)),
        [(2, 4, 5, 6)]),
    "ConvTranspose2d without bias": (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)), [(2, 4, 5, 6)]),
    "Linear": (nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), [(3, 6)]),
    "Linear without bias": (nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)), [(3, 6)]),
    "MatMul of a parameter": (MatMulParameter(), [(3, 6)]),
    "affine=False": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), [(2, 3, 8, 9)]),
    "affine=False, Linear": (nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, affine=False)), [(3, 6)]),
    "shared conv": (SharedConv(), [(2, 3, 8, 9), (2, 3, 7, 6)]),
    "a small network": (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 2)),
        [(2, 3, 8, 9)]),
}  # fmt: skip


def settle(module: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode with statistics that are not mean 0, variance 1, which would hide almost every mistake."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.2, 2, generator=generator)
            if part.affine:
                with torch.no_grad():
                    part.weight.normal_(generator=generator)
                    part.bias.normal_(generator=generator)
    return module.eval()


def export(module: nn.Module, inputs: tuple[torch.Tensor, ...], **more) -> ir.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own deprecations
        program = torch.onnx.export(module, inputs, dynamo=True, optimize=False, verbose=False, **more)
    return program.model


def export_by_script(module: nn.Module, inputs: Sequence[torch.Tensor], *, kept: bool, dynamic: bool) -> ir.Model:
    """As `torch.onnx.export(.., dynamo=False)` writes it; `kept`: with every BatchNormalization and every constant."""
    names = [f"x{i}" for i in range(len(inputs))]
    more = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if kept else {}
    axes = {name: {0: "batch"} for name in names} if dynamic else {}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the end of this exporter
        torch.onnx.export(module, tuple(inputs), file, dynamo=False, input_names=names, dynamic_axes=axes, **more)
    return ir.from_proto(onnx.ModelProto.FromString(file.getvalue()))


# Where the exporter's chains ask for a shape, the batch may be unknown: only the channels have to be.
DYNAMIC = ["Conv2d without bias", "affine=False", "affine=False, Linear", "shared conv"]


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, False) for name in CASES), *((name, True) for name in DYNAMIC)],
    ids=[*CASES, *(f"{name}, dynamic batch" for name in DYNAMIC)],
)
def test_no_batchnorm_is_left_and_torch_agrees(name: str, dynamic: bool):
    module, shapes = CASES[name]
    inputs = tuple(torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes)
    expected = settle(module)(*inputs)
    expected = [output.detach().numpy() for output in (expected if isinstance(expected, tuple) else (expected,))]
    # Every input's batch by its own name: with one common name torch would have to prove the batches equal.
    batches = tuple({0: torch.export.Dim(f"batch{i}")} for i in range(len(inputs)))
    more = {"dynamic_shapes": batches} if dynamic else {}

    folded, report = fold(export(module, inputs, **more))

    assert report.summary()["found"] > 0 and {o.verdict for o in report.batchnorms} == {Verdict.FOLDED}, (
        report.as_text()
    )
    assert "BatchNormalization" not in [node.op_type for node in folded.graph.all_nodes()]
    feeds = {value.name or "": tensor.numpy() for value, tensor in zip(folded.graph.inputs, inputs, strict=True)}
    for mine, theirs in zip(evaluate(folded, feeds), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_fold_without_changing_type(dtype: torch.dtype):
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=2**-17))).to(dtype)

    folded, report = fold(export(module, (torch.randn(2, 3, 8, 9).to(dtype),)))

    assert report.summary()["folded"] == 1
    (conv,) = folded.graph
    assert {value.dtype for value in conv.inputs} == {folded.graph.inputs[0].dtype}
    again = nn.utils.fusion.fuse_conv_bn_eval(module[0].double(), module[1].double())
    tolerance = 4 * torch.finfo(dtype).eps if dtype is torch.float64 else torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(
        conv.inputs[1].const_value.numpy().astype(np.float64),
        again.weight.detach().numpy(),
        rtol=tolerance,
        atol=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps,  # below, half precision has no more digits
    )


def test_on_sequences_the_axis_decides_and_not_the_size():
    """[N, T, F] with T = F: BatchNorm1d is along T, the Linear acts on F. Its weights cannot hold the map; the bias
    takes the shift, as a matrix, and a Mul is left."""
    module = settle(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)))
    model = export(module, (torch.randn(2, 5, 5),))

    folded, report = fold(model, "generic")

    assert [outcome.verdict for outcome in report.batchnorms] == [Verdict.REDUCED]
    assert [node.op_type for node in folded.graph][-3:] == ["MatMul", "Add", "Mul"]
    assert folded.graph[-2].inputs[1].shape == (5, 5)
    x = np.random.default_rng(0).normal(size=(2, 5, 5)).astype(np.float32)
    name = model.graph.inputs[0].name
    (expected,), (found,) = (evaluate(m, {name: x}) for m in (model, folded))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_running_statistics_it_is_refused():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()

    _, report = fold(export(module, (torch.randn(2, 3, 8, 9),)))

    assert [outcome.verdict for outcome in report.batchnorms] == [Verdict.KEPT]
    assert "is not constant" in report.batchnorms[0].reason


def test_names_of_weights_are_the_modules():
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

    folded, _ = fold(export(module, (torch.randn(2, 3, 8, 9),)))

    assert sorted(folded.graph.initializers) == ["0.bias", "0.weight"]
    assert constant(folded, "0.weight").shape == (4, 3, 3, 3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "free batch"])
@pytest.mark.parametrize("name", CASES)
def test_no_batchnorm_of_a_torchscript_export_is_left_and_torch_agrees(name: str, dynamic: bool):
    module, shapes = CASES[name]
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    expected = settle(module)(*inputs)
    expected = [output.detach().numpy() for output in (expected if isinstance(expected, tuple) else (expected,))]
    model = export_by_script(module, inputs, kept=True, dynamic=dynamic)

    folded, report = fold(model)

    modules = sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    assert report.summary()["found"] == report.summary()["folded"] == modules, report.as_text()
    feeds = {f"x{i}": tensor.numpy() for i, tensor in enumerate(inputs)}
    for mine, theirs in zip(evaluate(folded, feeds), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5 * np.abs(theirs).max())


# How many BatchNormalization the exporter leaves by itself: those that do not directly follow a convolution.
BY_SCRIPT = {
    "preact-resnet18": 9,
    "densenet121": 62,
    "iresnet50": 26,
    "unet": 4,
    "pointnet": 6,
    "levit": 48,
    "deepspeech2": 5,
    "repvgg-a0": 17,
    "crnn": 0,
    "tabular": 4,
}
# Sizes that this exporter computes may turn out 0, which its Reshape reads as "copy": the last BatchNormalization, in
# front of a Linear without bias on [steps, rows, features], keeps its shift.
OTHERWISE = {"deepspeech2": Counts(6, reduced=1)}


@pytest.mark.parametrize("kept", [True, False], ids=["BatchNorm kept", "default"])
@pytest.mark.parametrize("name", BY_SCRIPT)
def test_a_network_exported_by_torchscript_has_the_counts_of_its_newer_export(name: str, kept: bool):
    network, counts = NETWORKS[name], OTHERWISE.get(name, RAW[name])
    model = widened(export_by_script(network.module(), [torch.zeros(2, *network.shape)], kept=kept, dynamic=True))

    folded, report = fold(model, "generic")

    summary = report.summary()
    found = Counts(*(summary[field] for field in Counts._fields))
    if kept:
        assert found == counts, report.as_text()
    else:
        assert found._replace(clamped=0) == Counts(BY_SCRIPT[name] - counts.reduced, 0, counts.reduced), (
            report.as_text()
        )
    x = {"x0": np.random.default_rng(1).normal(size=(2, *network.shape))}
    before, after = (reference.evaluate(one, x) for one in (model, folded))
    for output, wanted in before.items():
        assert np.abs(after[output] - wanted).max() < 1e-10 * np.abs(wanted).max()
