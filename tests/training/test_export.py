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
from training.export import ExportRefused, export

IMAGE = {"image": torch.zeros(2, 1, 8, 8)}


def new_network() -> nn.Module:
    """cnn6 whose BatchNorms are all different from the identity."""
    torch.manual_seed(0)
    network = architectures.build(
        "cnn6", input_shape=(1, 8, 8), input_maximum=16.0, classes=10, widths=(4, 4, 8, 8, 16, 16)
    )
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


def test_normalisation_is_in_the_graph(model) -> None:
    assert model.graph.initializers["input_scale"].const_value.numpy() == 1 / 16


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
