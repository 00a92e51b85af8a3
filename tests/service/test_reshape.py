"""`reshape`: what clients send and get in one shape, and the model file has in another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from service.errors import ModelRejected
from service.model import Model
from service.protocol import InferenceRequest, InputTensor
from tests.service.handmade import load_version, save_version

# Sums over the last axis: an element in a wrong place shows.
IMAGE = "g (float[1,2,3] x) => (float[1,2] y) { axis = Constant<value_ints=[2]>() y = ReduceSum<keepdims=0>(x, axis) }"
ROWS = IMAGE.replace("[1,", "[N,")
FREE = IMAGE.replace("[1,2", "[1,L")


def tensor(name: str, dims: str, shape: str) -> str:
    kind = "input" if name == "x" else "output"
    return f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} reshape {{ shape: {shape} }} }}\n'


def load(tmp_path: Path, graph: str, pbtxt: str) -> Model:
    folder = save_version(tmp_path, "m", graph)
    (tmp_path / "m" / "config.pbtxt").write_text(pbtxt)
    return load_version(folder)


def ask(model: Model, *shape: int) -> np.ndarray:
    """What comes for 0, 1, 2, ... in that shape."""
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    async def scenario() -> np.ndarray:
        try:
            return (await model.infer(InferenceRequest((InputTensor("x", "FP32", x),)))).outputs[0].data
        finally:
            await model.close()

    return asyncio.run(scenario())


def test_a_model_that_takes_one_image_is_sent_it_without_a_dimension_for_rows(tmp_path: Path) -> None:
    """Triton's quick start, densenet_onnx: max_batch_size 0."""
    model = load(
        tmp_path, IMAGE, "max_batch_size: 0 " + tensor("x", "[2, 3]", "[1, 2, 3]") + tensor("y", "2", "[1, 2]")
    )
    assert (model.metadata.inputs[0].shape, model.metadata.outputs[0].shape) == ((2, 3), (2,))
    np.testing.assert_array_equal(ask(model, 2, 3), [3, 12])


def test_rows_stay_rows(tmp_path: Path) -> None:
    model = load(tmp_path, ROWS, "max_batch_size: 4 " + tensor("x", "6", "[2, 3]") + tensor("y", "[1, 2, 1]", "2"))
    assert (model.max_batch_size, model.metadata.inputs[0].shape) == (4, (-1, 6))
    np.testing.assert_array_equal(ask(model, 2, 6), [[[[3], [12]]], [[[21], [30]]]])


def test_a_free_dimension_keeps_its_size(tmp_path: Path) -> None:
    model = load(tmp_path, FREE, tensor("x", "[-1, 3, 1]", "[1, -1, 3]") + tensor("y", "[-1]", "[1, -1]"))
    np.testing.assert_array_equal(ask(model, 4, 3, 1), [3, 12, 21, 30])


@pytest.mark.parametrize(
    ("dims", "shape", "told"),
    [
        pytest.param("[2, 2]", "[1, 2, 3]", r"config\.pbtxt: input 'x' has shape \[2, 2\] and reshape \[1, 2, 3\]",
                     id="other-count"),
        pytest.param("[3, -1]", "[1, -1, 3]", r"before, between and behind", id="other-side-of-a-free-dimension"),
        pytest.param("[6]", "[1, -1, 3]", r"as many free dimensions", id="free-on-one-side"),
        pytest.param("[6]", "[1, 3, 2]", r"config\.pbtxt says reshape \[1, 3, 2\], the model file \[1, 2, 3\]",
                     id="not-the-model-s"),
        pytest.param("[6]", "[1, 3, -2]", r"line 1, column 60: input\.reshape\.shape is -2", id="no-dimension"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_belong_together_are_refused(dims: str, shape: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=told):
        load(tmp_path, IMAGE, tensor("x", dims, shape))
