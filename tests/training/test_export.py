"""torch module to ONNX graph: everything that is computed, nothing about where it was made, and only from eval mode."""

from __future__ import annotations

import copy
import logging
import os
import re
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from training import architectures
from training.export import ExportRefused, export, fold_module, name_inputs, name_outputs
from training.features import Features
from training.fold import Verdict
from training.verify import VerificationFailed

IMAGE = {"image": torch.zeros(2, 1, 8, 8)}


def new_network() -> nn.Module:
    """cnn6 whose BatchNorms are all different from the identity."""
    torch.manual_seed(0)
    network = architectures.build("cnn6", Features("image", (1, 8, 8)), 10, widths=(4, 4, 8, 8, 16, 16))
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                tensor.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return new_network()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> ir.Model:
    return export(network, IMAGE, ["logits"])


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, feeds)


@pytest.mark.parametrize("rows", [1, 2, 5], ids="{} rows".format)
def test_the_graph_answers_as_the_module_does_for_any_number_of_rows(network, model, rows) -> None:
    images = torch.randint(0, 17, (rows, 1, 8, 8)).float()

    (logits,) = run(model, {"image": images.numpy()})

    np.testing.assert_allclose(logits, network(images).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_names_and_the_free_batch_dimension_are_as_asked(model) -> None:
    described = [(value.name, value.dtype, str(value.shape)) for value in (*model.graph.inputs, *model.graph.outputs)]

    assert described == [
        ("image", ir.DataType.FLOAT, "[batch,1,8,8]"),
        ("logits", ir.DataType.FLOAT, "[batch,10]"),
    ]


def test_no_batchnorm_is_folded_on_the_way(model) -> None:
    assert sum(node.op_type == "BatchNormalization" for node in model.graph) == 7


def test_the_bytes_say_nothing_about_where_they_were_made(model) -> None:
    content = ir.to_proto(model).SerializeToString()
    texts = re.findall(rb"[\x20-\x7e]{4,}", content)
    traces = [b'File "', b"site-packages", b".py", b"pkg.torch", b"stack_trace", b"nn_module", b"Cnn6", b"ConvBlock"]
    this_machine = [os.fsencode(path) for path in (Path.home(), Path.cwd(), Path(torch.__file__).parent)]

    assert [trace for trace in [*traces, *this_machine] if any(trace in text for text in texts)] == []
    # Weights may spell anything, but never a path: two parts of a name on both sides of a slash.
    assert [text for text in texts if re.search(rb"/\w{3,}/", text)] == []


def test_nothing_in_memory_remembers_the_exporter(model) -> None:
    things = [model, model.graph, *model.graph.inputs, *model.graph.initializers.values(), *model.graph]
    things += [value for node in model.graph for value in node.outputs]

    assert [thing for thing in things if thing.metadata_props or thing.doc_string] == []
    assert {type(value.const_value) for value in model.graph.initializers.values()} == {ir.Tensor}


def test_the_same_module_gives_the_same_bytes(network, model) -> None:
    again = export(network, IMAGE, ["logits"])

    assert ir.to_proto(again).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_the_module_and_its_later_training_are_separate_from_the_graph() -> None:
    network = new_network()
    before = copy.deepcopy(network.state_dict())
    model = export(network, IMAGE, ["logits"])
    exported = model.graph.initializers["head.linear.weight"].const_value.numpy().copy()

    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())

    network.get_submodule("head.linear").weight.data.zero_()

    assert np.array_equal(model.graph.initializers["head.linear.weight"].const_value.numpy(), exported)


def test_several_inputs_and_outputs_keep_their_order() -> None:
    class TwoByTwo(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return left - right, left + right

    examples = {"left": torch.zeros(2, 3), "right": torch.zeros(2, 3)}
    model = export(TwoByTwo().eval(), examples, ["difference", "sum"])
    ones = np.ones((4, 3), np.float32)

    difference, total = run(model, {"left": 3 * ones, "right": ones})

    assert [value.name for value in model.graph.outputs] == ["difference", "sum"]
    assert np.array_equal(difference, 2 * ones)
    assert np.array_equal(total, 4 * ones)


def test_the_exporter_says_nothing_and_leaves_logging_and_warnings_alone(capfd) -> None:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = (registration.level, warnings.filters[:])

    export(nn.Sequential(nn.Linear(3, 2)).eval(), {"x": torch.zeros(2, 3)}, ["y"])

    assert capfd.readouterr() == ("", "")
    assert (registration.level, warnings.filters[:]) == before


def partly_training() -> nn.Module:
    network = new_network()
    network.get_submodule("features.3.bn").train()
    return network


@pytest.mark.parametrize(
    ("module", "text"),
    [
        pytest.param(new_network().train(), "module '(the whole network)' (Cnn6) is in training mode", id="all"),
        pytest.param(partly_training(), "module 'features.3.bn' (BatchNorm2d) is in training mode", id="one"),
        pytest.param(
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval(),
            "module '1' (BatchNorm1d) has no running statistics",
            id="no running statistics",
        ),
    ],
)
def test_a_module_that_is_not_ready_for_inference_is_refused_by_name(module, text) -> None:
    with pytest.raises(ExportRefused) as caught:
        export(module, IMAGE, ["logits"])

    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1, 1, 8, 8), (0, 1, 8, 8)], ids=["scalar", "one row", "no rows"])
def test_an_example_that_cannot_show_its_batch_axis_is_refused(network, shape) -> None:
    with pytest.raises(ExportRefused, match="example 'image' needs at least two rows"):
        export(network, {"image": torch.zeros(shape)}, ["logits"])


# --- what the caller may choose ---------------------------------------------------------------------------------------


def test_a_static_batch_is_the_examples(network) -> None:
    fixed = export(network, {"image": torch.zeros(1, 1, 8, 8)}, ["logits"], dynamic_batch=False)

    assert [str(value.shape) for value in (*fixed.graph.inputs, *fixed.graph.outputs)] == ["[1,1,8,8]", "[1,10]"]


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_the_opset_is_the_one_asked_for(network, opset) -> None:
    model = export(network, IMAGE, ["logits"], opset=opset)
    images = torch.rand(3, 1, 8, 8)

    assert model.opset_imports == {"": opset}
    (logits,) = run(model, {"image": images.numpy()})
    np.testing.assert_allclose(logits, network(images).detach().numpy(), rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class PairOfRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 3)


@pytest.mark.parametrize(
    ("module", "options", "told"),
    [
        pytest.param(Branching(), {}, "torch cannot export this network: GuardOnDataDependent", id="depends on data"),
        pytest.param(PairOfRows(), {}, "input 'x': the network works for a batch of 2 rows only", id="two rows only"),
        pytest.param(nn.Linear(3, 2), {"opset": 99}, "cannot convert it to 99", id="no such opset"),
        pytest.param(
            nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), {"opset": 5}, "cannot convert it to 5", id="old opset"
        ),
    ],
)
def test_what_torch_cannot_export_is_one_line_and_nothing_else(module, options, told, capfd) -> None:
    with pytest.raises(ExportRefused) as caught:
        export(module.eval(), {"x": torch.zeros(2, 3)}, ["y"], **options)

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


class Passing(nn.Module):
    """Returns an input as it is, twice, beside something computed."""

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> dict[str, object]:
        return {"same": x, "both": (x, x + 1 if y is None else y)}


@pytest.mark.parametrize("names", [["x"], ["x", "y"]], ids=" and ".join)
def test_an_output_that_is_an_input_keeps_both_names(names) -> None:
    examples = {name: torch.rand(2, 3) for name in names}
    model = export(Passing().eval(), examples, ["same", "both_0", "both_1"])
    rows = {name: np.full((4, 3), i, np.float32) for i, name in enumerate(names)}

    assert [value.name for value in model.graph.inputs] == names
    assert [value.name for value in model.graph.outputs] == ["same", "both_0", "both_1"]
    same, first, last = run(model, rows)
    assert np.array_equal(same, rows["x"])
    assert np.array_equal(first, rows["x"])
    assert np.array_equal(last, rows["y"] if "y" in rows else rows["x"] + 1)


class Colliding(nn.Module):
    """Its weights bear the names of its input and of what torch's mean() makes."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("mean", torch.tensor(5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.x).mean(1, keepdim=True) + self.mean


def test_no_two_values_share_a_name() -> None:
    model = export(Colliding().eval(), {"x": torch.ones(2, 3)}, ["y"])
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]

    assert len({value.name for value in values}) == len(values)
    (y,) = run(model, {"x": np.full((4, 3), 2.0, np.float32)})
    assert np.array_equal(y, np.full((4, 1), 9.0, np.float32))


# --- names ------------------------------------------------------------------------------------------------------------

A, B = torch.zeros(2, 3), torch.ones(2, 3)


class Star(nn.Module):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[0]


@pytest.mark.parametrize(
    ("module", "given", "named"),
    [
        pytest.param(nn.Linear(3, 2), A, {"input": A}, id="a tensor"),
        pytest.param(Passing(), (A, B), {"x": A, "y": B}, id="in order"),
        pytest.param(Passing(), {"y": B, "x": A}, {"x": A, "y": B}, id="by name"),
        pytest.param(Passing(), [A], {"x": A}, id="the optional one left out"),
        pytest.param(Star(), (A, B), {"input": A, "input_1": B}, id="*args in order"),
        pytest.param(Star(), {"b": B, "a": A}, {"b": B, "a": A}, id="*args by name"),
    ],
)
def test_inputs_bear_the_names_of_forwards_parameters_in_their_order(module, given, named) -> None:
    found = name_inputs(module, given)

    assert list(found) == list(named)
    assert all(found[name] is tensor for name, tensor in named.items())


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"y": A}, "example inputs are y, but forward takes x, y, in order"),
        ({"x": A, "z": B}, "example inputs are x, z, but forward takes x, y, in order"),
        ((A, A, A), "3 example inputs, but forward takes 2: x, y"),
        ((), "expected a tensor, several in order, or a dict"),
        ("x", "expected a tensor, several in order, or a dict"),
        ([1.0], "expected a tensor, several in order, or a dict"),
    ],
    ids=["not the first", "unknown", "too many", "none", "text", "a number"],
)
def test_inputs_that_do_not_fit_forward_are_refused(given, told) -> None:
    with pytest.raises(ExportRefused) as caught:
        name_inputs(Passing(), given)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("answered", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ({"logits": A, "features": [B, A]}, ["logits", "features_0", "features_1"]),
        ({"x": A}, ["x_"]),
    ],
    ids=["one", "several", "by name", "as an input"],
)
def test_outputs_are_named_for_their_place(answered, names) -> None:
    assert list(name_outputs(answered, taken={"x": A})) == names


@pytest.mark.parametrize("answered", [None, 3, (A, "text"), {}], ids=str)
def test_outputs_that_are_no_tensors_are_refused(answered) -> None:
    with pytest.raises(ExportRefused, match="forward returns"):
        name_outputs(answered, taken={})


# --- fold_module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_fold_module_exports_folds_and_proves(network, rows) -> None:
    folded, report = fold_module(network, torch.rand(rows, 1, 8, 8), profile="generic")
    images = torch.rand(5, 1, 8, 8)

    assert {outcome.verdict for outcome in report.batchnorms} == {Verdict.FOLDED}
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph)
    assert [(value.name, str(value.shape)) for value in folded.graph.inputs] == [("image", "[batch,1,8,8]")]
    (logits,) = run(folded, {"image": images.numpy()})
    np.testing.assert_allclose(logits, network(images).detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widen", [False, True])
def test_fold_module_widens_where_that_is_asked_for(widen) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)).eval()
    nn.init.normal_(net[2].bias)

    folded, report = fold_module(net, torch.rand(1, 3, 8, 8), widen=widen)

    assert report.summary()["widened"] == report.summary()["folded"] == int(widen)
    assert [node.op_type for node in folded.graph].count("BatchNormalization") == int(not widen)


def test_fold_module_raises_where_the_fold_is_wrong_unless_nobody_asks(network, monkeypatch) -> None:
    import training.export

    def wrong(source: ir.Model, **options: object) -> object:
        folded, report = training.fold.fold(source, **options)
        weight = next(v for v in folded.graph.initializers.values() if v.const_value.shape.rank() == 4)
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.01, name=weight.name)
        return folded, report

    monkeypatch.setattr(training.export, "fold", wrong)
    with pytest.raises(VerificationFailed):
        fold_module(network, torch.rand(2, 1, 8, 8))
    assert fold_module(network, torch.rand(2, 1, 8, 8), verify=False)[1].changed


def test_fold_module_tells_what_the_network_says_to_inputs_that_do_not_fit(network) -> None:
    with pytest.raises(
        ExportRefused, match=r"the network refuses image \[2, 3, 8, 8\]: RuntimeError: Given groups=1"
    ) as caught:
        fold_module(network, torch.rand(1, 3, 8, 8))
    assert "\n" not in str(caught.value)
