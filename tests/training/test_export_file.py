"""`foldtrain export` as a function: a network becomes a file that answers as torch does, or nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

import training.export_file
from training.command_files import CannotUseFile
from training.errors import UserError
from training.export import ExportRefused
from training.export_file import INPUT_TYPES, AnswersDiffer, ExportedFile, Wishes, agree, export_file
from training.fold import fold
from training.half_precision import HalfDiffers
from training.verify import VerificationFailed
from training.weights_file import WeightsRefused

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.bn.running_mean.uniform_(-1, 1)
        self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, image):
        return self.head(torch.relu(self.bn(self.conv(image))).mean((2, 3)))

def make():
    return Net().eval()

def pair():
    return make(), torch.rand(1, 3, 8, 8)

def training():
    return Net()

def partly():
    net = make()
    net.bn.train()
    return net

def bare():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()

def face():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)).eval()
    nn.init.normal_(net[2].bias)
    return net, torch.rand(1, 3, 8, 8)

def video():
    torch.manual_seed(0)
    conv, last = nn.Conv3d(3, 4, (1, 3, 3), bias=False), nn.Conv3d(4, 2, 1, bias=False)
    net = nn.Sequential(conv, nn.BatchNorm3d(4), nn.ReLU(), last).eval()
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 1.5)
    return net, torch.rand(1, 3, 4, 6, 6)

class Two(nn.Module):
    def forward(self, tokens, mask):
        return {"kept": tokens * mask, "count": mask.sum(1)}

class Described(Net):
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}

def described():
    return Described().eval()

class Rows(nn.Module):
    def forward(self, x):
        return x.reshape(2, 3)

class Sensitive(nn.Module):
    def forward(self, x):
        return (x * 4099 + 1e6 - 1e6) * 3 - x * 4099 * 3

class Large(nn.Module):
    def forward(self, x):
        return (x * 300) * 300 / 300
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nets.py in it."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(spec: str, reports: tuple[str, ...] = (), **wishes: Any) -> ExportedFile:
    return export_file(f"file:nets.py:{spec}", Path("out.onnx"), Wishes(**wishes), reports=[Path(r) for r in reports])


def written() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"nets.py", "__pycache__"}


def network(spec: str = "make") -> nn.Module:
    """The same that the file's factory makes: its weights are seeded."""
    scope: dict[str, Any] = {"__name__": "nets"}
    exec(compile(NETS, "nets.py", "exec"), scope)
    return scope[spec]()


def answers(inputs: Mapping[str, np.ndarray], path: str = "out.onnx") -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


IMAGES = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)


def expected(images: np.ndarray = IMAGES) -> np.ndarray:
    with torch.no_grad():
        return network()(torch.from_numpy(images)).numpy()


def operators() -> list[str]:
    return [node.op_type for node in onnx.load("out.onnx").graph.node]


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wishes", "left"), [({}, 1), ({"widen": True}, 0)])
def test_what_a_zero_padded_convolution_cannot_hold_goes_by_widening(folder: Path, wishes: Any, left: int) -> None:
    result = exported("face", **wishes)

    assert operators().count("BatchNormalization") == left
    assert left or (result.verify is not None and result.verify.report.passed)
    assert result.torch is not None and result.torch.max_rel_error < 1e-5


def test_a_folded_verified_file_answers_as_torch_does_for_any_number_of_rows(folder: Path) -> None:
    result = exported("pair", ("r.json", "r.html"), profile="generic")
    model = onnx.load("out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "BatchNormalization" not in operators()
    for rows in (1, 5):
        np.testing.assert_allclose(answers({"image": IMAGES[:rows]})["output"], expected()[:rows], atol=1e-5)
    told = json.loads(Path("r.json").read_text())
    assert told == json.loads(json.dumps(result.as_dict()))
    assert told["summary"]["folded"] == 1
    assert told["verify"]["passed"] is True
    assert told["torch"]["rows"] == [2, 1]
    assert told["torch"]["max_rel_error"] < 1e-5
    assert told["source"] == "file:nets.py:pair"
    assert "BatchNormalization" in Path("r.html").read_text()
    text = result.as_text()
    assert "1 BatchNormalization found: 1 folded" in text
    assert "verified: " in text
    assert "torch's own answer against ONNX Runtime's, 2 and 1 rows: at most " in text
    assert text.endswith("wrote out.onnx")
    assert written() == {"out.onnx", "r.json", "r.html"}


@pytest.mark.parametrize("fold", [True, False], ids=["folded", "not folded"])
def test_a_video_network_without_biases_answers_as_torch_does(folder: Path, fold: bool) -> None:
    """torch 2.13 writes a Conv3d(bias=False) with a bias of a shape that no run time takes."""
    result = exported("video", fold=fold)

    kinds = [node.op_type for node in onnx.load("out.onnx").graph.node]
    assert kinds == ["Conv", *([] if fold else ["BatchNormalization"]), "Relu", "Conv"]
    assert result.torch is not None and result.torch.runtime == "ONNX Runtime"
    assert (result.verify is not None) is fold


def test_without_folding_the_batchnorm_stays_and_torchs_answer_is_compared_all_the_same(folder: Path) -> None:
    result = exported("pair", fold=False)
    assert operators().count("BatchNormalization") == 1
    np.testing.assert_allclose(answers({"image": IMAGES})["output"], expected(), atol=1e-5)
    assert "not folded: 1 BatchNormalization kept" in result.as_text()
    assert result.torch is not None


def test_without_the_proof_nothing_is_compared_and_the_report_says_so(folder: Path) -> None:
    result = exported("pair", ("r.json",), verify=False)
    told = json.loads(Path("r.json").read_text())
    assert (told["verify"], told["torch"]) == ("skipped", "skipped")
    assert "not verified: the proof was skipped (--no-verify)" in result.as_text()


INPUTS: Mapping[str, tuple[str, dict[str, Any], list[tuple[str, str]]]] = {
    "the factory's": ("pair", {}, [("image", "FLOAT,[batch,3,8,8]")]),
    "a shape for the only input": ("make", {"input_shapes": {"": (1, 3, 6, 7)}}, [("image", "FLOAT,[batch,3,6,7]")]),
    "a shape by name": ("make", {"input_shapes": {"image": (4, 3, 6, 7)}}, [("image", "FLOAT,[batch,3,6,7]")]),
    "a shape goes before the factory's": (
        "pair",
        {"input_shapes": {"": (2, 3, 9, 9)}},
        [("image", "FLOAT,[batch,3,9,9]")],
    ),
    "what the model says of itself": ("described", {}, [("image", "FLOAT,[batch,3,8,8]")]),
    "a static batch": ("pair", {"dynamic_batch": False}, [("image", "FLOAT,[1,3,8,8]")]),
    "two inputs, two types": (
        "Two",
        {"input_shapes": {"tokens": (1, 7), "mask": (1, 7)}, "input_dtypes": {"tokens": "int64", "mask": "int64"}},
        [("tokens", "INT64,[batch,7]"), ("mask", "INT64,[batch,7]")],
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_are_as_the_example_says(folder: Path, case: str) -> None:
    spec, wishes, inputs = INPUTS[case]
    if spec == "Two":
        with (folder / "nets.py").open("a") as file:
            file.write("\nTwo = Two().eval()\n")
    exported(spec, **wishes)
    model = ir.load("out.onnx")
    assert [(value.name, f"{value.dtype},{value.shape}") for value in model.graph.inputs] == inputs


def test_inputs_may_come_from_real_samples(folder: Path) -> None:
    np.savez("real.npz", image=IMAGES)
    result = exported("make", samples=Path("real.npz"))
    assert [str(value.shape) for value in ir.load("out.onnx").graph.inputs] == ["[batch,3,8,8]"]
    assert result.verify is not None
    assert result.verify.report.samples > 0


REAL: Mapping[str, dict[str, Any]] = {
    "under its name": {"image": IMAGES},
    "under another name": {"pictures": IMAGES},
    "beside what is no input": {"image": IMAGES, "label": np.zeros(3)},
    "in NumPy's own type": {"image": IMAGES.astype(np.float64)},
}


@pytest.mark.parametrize("case", REAL)
def test_real_samples_are_taken_as_the_other_commands_take_them(folder: Path, case: str) -> None:
    np.savez("real.npz", **REAL[case])
    result = exported("make", samples=Path("real.npz"))
    (x,) = ir.load("out.onnx").graph.inputs
    assert (x.name, x.dtype, str(x.shape)) == ("image", ir.DataType.FLOAT, "[batch,3,8,8]")
    assert result.verify is not None and result.verify.report.passed


UNUSABLE: Mapping[str, tuple[dict[str, Any], str]] = {
    "no such input": ({"a": IMAGES, "b": IMAGES}, "example inputs are a, b, but forward takes image"),
    "another shape": ({"image": IMAGES[:, :2]}, "the network refuses image [2, 2, 8, 8]"),
    "no rows": ({"image": IMAGES[:0]}, "holds no rows along axis 0, expected at least 1"),
    "words": ({"image": np.array(["a", "b"])}, "array 'image' holds <U1, expected numbers"),
    "no numbers": ({"image": IMAGES * np.nan}, "no finite number in output 'output' for these inputs"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_samples_that_cannot_be_used_are_one_line_that_begins_with_their_path(folder: Path, case: str) -> None:
    arrays, told = UNUSABLE[case]
    np.savez("real.npz", **arrays)
    with pytest.raises(UserError) as refused:
        exported("make", samples=Path("real.npz"))
    assert str(refused.value).startswith(f"real.npz: {told}") and "\n" not in str(refused.value)
    assert written() == {"real.npz"}


def test_every_output_has_the_name_that_forward_gives_it(folder: Path) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write("\nready = Two().eval(), (torch.ones(2, 3), torch.ones(2, 3))\n")
    exported("ready")
    ones = np.ones((3, 3), np.float32)
    assert {name: array.shape for name, array in answers({"tokens": ones, "mask": ones}).items()} == {
        "kept": (3, 3),
        "count": (3,),
    }


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_is_the_one_asked_for(folder: Path, opset: int) -> None:
    exported("pair", opset=opset)
    assert ir.load("out.onnx").opset_imports[""] == opset


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_replace_the_factorys(folder: Path, ending: str) -> None:
    trained = network()
    with torch.no_grad():
        trained.head.weight.fill_(0.25)
    state = trained.state_dict()
    safetensors.torch.save_file(state, "w.safetensors")
    torch.save({"state_dict": state}, "w.pt")
    exported("pair", weights=Path(f"w.{ending}"))
    with torch.no_grad():
        np.testing.assert_allclose(
            answers({"image": IMAGES})["output"], trained(torch.from_numpy(IMAGES)).numpy(), atol=1e-5
        )


@pytest.mark.parametrize(
    ("spec", "wishes"),
    [
        pytest.param("described", {"normalize": True}, id="the model's own"),
        pytest.param("pair", {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}, id="given"),
        pytest.param("described", {"normalize": True, "mean": (0.5, 0.4, 0.3)}, id="half given"),
    ],
)
def test_normalisation_becomes_part_of_the_graph(folder: Path, spec: str, wishes: dict[str, Any]) -> None:
    exported(spec, **wishes)
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3)))
    np.testing.assert_allclose(answers({"image": IMAGES})["output"], expected((IMAGES - mean) / std), atol=2e-5)


# --- half precision ---------------------------------------------------------------------------------------------------


def test_float16_is_cast_from_the_folded_float32_weights(folder: Path) -> None:
    exported("pair", profile="generic")
    single = ir.load("out.onnx")
    result = exported("pair", ("r.json",), dtype="fp16", profile="generic")
    half = ir.load("out.onnx")
    assert [value.dtype for value in (*half.graph.inputs, *half.graph.outputs)] == [ir.DataType.FLOAT16] * 2
    for name, value in single.graph.initializers.items():
        if value.dtype is ir.DataType.FLOAT:
            folded_once = value.const_value.numpy().astype(np.float16)
            assert np.array_equal(half.graph.initializers[name].const_value.numpy(), folded_once)
    told = json.loads(Path("r.json").read_text())["half"]
    assert told["dtype"] == "FLOAT16"
    assert 0 < told["error"] < told["bound"] == 64 * 2.0**-11
    assert "FLOAT16: the same function" in result.as_text()
    np.testing.assert_allclose(answers({"image": IMAGES.astype(np.float16)})["output"], expected(), atol=1e-2)


def test_bfloat16_is_proved_although_the_runtime_cannot_run_it(folder: Path) -> None:
    result = exported("pair", dtype="bf16")
    model = onnx.load("out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert result.half is not None
    assert result.half.error < result.half.bound
    assert result.torch is not None
    assert result.torch.runtime == "the float64 evaluator"


def test_answers_that_overflow_in_float16_are_not_written(folder: Path) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write("\ndef large(): return Large().eval(), torch.rand(2, 50)\n")
    with pytest.raises(HalfDiffers, match="overflow in FLOAT16; export it in float32"):
        exported("large", dtype="fp16")
    assert written() == set()


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED: Mapping[str, tuple[str, dict[str, Any], type[UserError], str]] = {
    "in training mode": ("training", {}, ExportRefused, "module '(the whole network)' (Net) is in training mode"),
    "partly in training mode": ("partly", {}, ExportRefused, "module 'bn' (BatchNorm2d) is in training mode"),
    "no running statistics": ("bare", {}, ExportRefused, "module '1' (BatchNorm1d) has no running statistics"),
    "no example": ("make", {}, ExportRefused, "nothing says what the network takes: give --input-shape"),
    "a shape that does not fit": ("make", {"input_shapes": {"": (1, 2, 8, 8)}}, ExportRefused, "the network refuses"),
    "no such input": ("make", {"input_shapes": {"x": (1, 3, 8, 8)}}, ExportRefused, "but forward takes image"),
    "a name and none": (
        "make",
        {"input_shapes": {"": (1, 3, 8, 8), "x": (1,)}},
        ExportRefused,
        "without a name it is for a network with one input",
    ),
    "a type for nobody": (
        "pair",
        {"input_dtypes": {"x": "int64"}},
        ExportRefused,
        "--input-dtype x: goes with an --input-shape",
    ),
    "normalisation unknown": ("pair", {"normalize": True}, ExportRefused, "give --mean and --std"),
    "only a mean": ("pair", {"mean": (0.5,)}, ExportRefused, "give --mean and --std"),
    "two channels": ("pair", {"mean": (0.5, 0.5), "std": (1, 1)}, ExportRefused, "2 means and 2 standard deviations"),
    "a deviation of zero": ("pair", {"mean": (0.5,), "std": (0.0,)}, ExportRefused, "expected positive numbers"),
    "weights of another": ("pair", {"weights": Path("w.pt")}, WeightsRefused, "missing conv.weight"),
    "no weights": ("pair", {"weights": Path("absent.pt")}, WeightsRefused, "absent.pt: cannot be read: No such file"),
    "no samples": ("pair", {"samples": Path("absent.npz")}, CannotUseFile, "absent.npz: cannot be read as samples"),
    "an opset of nobody": ("pair", {"opset": 99}, ExportRefused, "cannot convert it to 99"),
    "two rows only": ("rows", {}, ExportRefused, "the network works for a batch of 2 rows only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_writes_nothing(folder: Path, case: str) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write("\ndef rows(): return Rows().eval(), torch.zeros(2, 3)\n")
    torch.save(nn.Linear(1, 1).state_dict(), "w.pt")
    spec, wishes, kind, told = REFUSED[case]
    with pytest.raises(kind) as refused:
        exported(spec, ("r.json",), **wishes)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert written() == {"w.pt"}


@pytest.mark.parametrize(
    ("target", "reports", "wishes", "told"),
    [
        ("no/out.onnx", [], {}, "the folder no does not exist"),
        ("out.onnx", ["no/r.json"], {}, "the folder no does not exist"),
        ("out.onnx", ["out.onnx"], {}, "is the model's own path"),
        ("out.onnx", ["r.html"], {"fold": False}, "the page shows what folding did"),
    ],
)
def test_a_bad_place_is_told_before_any_work(folder: Path, target, reports, wishes, told) -> None:
    with pytest.raises(CannotUseFile) as refused:
        export_file("file:absent.py:make", Path(target), Wishes(**wishes), reports=[Path(r) for r in reports])
    assert told in str(refused.value)


def test_a_wrong_fold_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(source: ir.Model, **options: Any) -> Any:
        folded, report = fold(source, **options)
        weight = next(v for v in folded.graph.initializers.values() if v.const_value.shape.rank() == 4)
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)
        return folded, report

    monkeypatch.setattr(training.export_file, "fold", wrong)
    with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
        exported("pair", ("r.json",))
    assert written() == set()


def test_a_wrong_export_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding is right, and verified; but the file is not what torch computes."""
    export = training.export_file.export

    def wrong(*arguments: Any, **options: Any) -> ir.Model:
        model = export(*arguments, **options)
        bias = model.graph.initializers["head.bias"]
        bias.const_value = ir.tensor(bias.const_value.numpy() + 0.01, name=bias.name)
        return model

    monkeypatch.setattr(training.export_file, "export", wrong)
    with pytest.raises(AnswersDiffer, match=r"output 'output': torch's own answer and ONNX Runtime's are 0\.01"):
        exported("pair", ("r.json",))
    assert written() == set()


def test_a_network_that_rounding_ruins_in_torch_itself_is_no_wrong_export(folder: Path) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write("\ndef sensitive(): return Sensitive().eval(), torch.rand(2, 3)\n")
    result = exported("sensitive")
    assert result.torch is not None
    assert written() == {"out.onnx"}


def test_another_shape_or_a_missing_number_is_a_difference() -> None:
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[N,2] x) => (float[N,{0}] output) {{ {1} }}'
    pairs = {
        "shape": ("4", "output = Concat <axis = 1> (x, x)"),
        "not finite": ("2", "output = Log (x)"),
    }
    x = {"x": torch.tensor([[1.0, -1.0], [2.0, 3.0]])}
    for size, nodes in pairs.values():
        model = ir.from_onnx_text(text.format(size, nodes))
        with pytest.raises(AnswersDiffer):
            agree(nn.Identity(), model, x, ["output"], False, None)


def test_types_of_examples_are_those_that_the_command_offers() -> None:
    from training.__main__ import INPUT_TYPES as OFFERED

    assert tuple(INPUT_TYPES) == OFFERED
