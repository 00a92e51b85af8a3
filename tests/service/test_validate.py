from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.datatypes import DATATYPES
from service.errors import RequestMismatch
from service.protocol import InferenceRequest, InputTensor, ModelMetadata, RequestedOutput, TensorMetadata
from service.validate import empty_outputs, validate_request

RESNET = ModelMetadata(
    "resnet", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("x", "FP32", (-1, 3, 224, 224)),),
    outputs=(TensorMetadata("logits", "FP32", (-1, 1000)), TensorMetadata("features", "FP16", (-1, 512))),
)  # fmt: skip
PAIR = ModelMetadata(
    "pair", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("a", "FP32", (-1, 2)), TensorMetadata("b", "INT64", (-1, -1))),
    outputs=(TensorMetadata("y", "FP32", (-1, 2)),),
)  # fmt: skip
FREE = ModelMetadata(
    "free", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("x", "FP32", (-1, 2)),),
    outputs=(TensorMetadata("y", "FP32", (-1, -1)),),
)  # fmt: skip
NAMED = ModelMetadata(
    "named", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("x", "FP32", (-1, 2)),),
    outputs=(TensorMetadata("word", "BYTES", (-1, 1)), TensorMetadata("flag", "BOOL", (-1, 1))),
)  # fmt: skip
FIXED = ModelMetadata(
    "fixed", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("x", "FP32", (1, -1)),),
    outputs=(TensorMetadata("y", "FP32", (1, -1)),),
)  # fmt: skip
NO_RANK = ModelMetadata(
    "no_rank", ("1",), "onnx_onnxv1",
    inputs=(TensorMetadata("x", "FP32", ()),),
    outputs=(TensorMetadata("y", "FP32", ()),),
)  # fmt: skip


def tensor(name: str, shape: list[int], datatype: str = "FP32") -> InputTensor:
    """Of any shape, without the memory: a view of one element."""
    return InputTensor(name, datatype, np.broadcast_to(np.zeros((), DATATYPES[datatype].dtype), shape))


def request(*inputs: InputTensor, outputs: tuple[Any, ...] = (), binary: bool = True) -> InferenceRequest:
    return InferenceRequest(inputs, outputs, binary_data_output=binary)


@pytest.mark.parametrize(
    ("asked", "model", "max_batch_size", "rows"),
    [
        pytest.param(request(tensor("x", [5, 3, 224, 224])), RESNET, 8, 5, id="rows-are-counted"),
        pytest.param(request(tensor("x", [8, 3, 224, 224])), RESNET, 8, 8, id="limit-is-included"),
        pytest.param(request(tensor("b", [2, 9], "INT64"), tensor("a", [2, 2])), PAIR, 4, 2, id="order-is-free"),
        pytest.param(request(tensor("x", [1, 7])), FIXED, 0, 1, id="not-batchable-is-one-row"),
        pytest.param(request(tensor("x", [0, 3, 224, 224])), RESNET, 8, 0, id="no-rows"),
        pytest.param(request(tensor("a", [0, 2]), tensor("b", [0, 7], "INT64")), PAIR, 8, 0, id="no-rows-of-two"),
        pytest.param(
            request(tensor("x", [1, 3, 224, 224]), outputs=(RequestedOutput("features", classes=3),), binary=False),
            RESNET, 8, 1, id="classification-of-an-output-that-has-no-json-form",
        ),
        pytest.param(request(tensor("x", [2, 3, 4])), NO_RANK, 0, 1, id="unknown-rank-is-left-to-the-runtime"),
        pytest.param(request(tensor("x", [])), NO_RANK, 0, 1, id="scalar"),
        pytest.param(
            request(tensor("x", [1, 3, 224, 224]), outputs=(RequestedOutput("logits", binary=False),), binary=False),
            RESNET, 8, 1, id="json-output-beside-one-that-has-no-json-form",
        ),
    ],
)  # fmt: skip
def test_fitting_request_has_rows(
    asked: InferenceRequest, model: ModelMetadata, max_batch_size: int, rows: int
) -> None:
    assert validate_request(asked, model, max_batch_size) == rows


IMAGE = tensor("x", [1, 3, 224, 224])
ONLY_ZERO_ROWS = (
    "some operators of ONNX Runtime end the process on that, so it is taken only as 0 rows of a batchable model"
)
ASK_FOR_BINARY = "request it in binary, with parameters.binary_data true (or binary_data_output for all outputs)"


@pytest.mark.parametrize(
    ("asked", "model", "message"),
    [
        pytest.param(
            request(), RESNET,
            "input 'x' is missing; model 'resnet' takes 'x', the request has none", id="input-missing",
        ),
        pytest.param(
            request(tensor("a", [1, 2])), PAIR,
            "input 'b' is missing; model 'pair' takes 'a', 'b', the request has 'a'", id="second-input-missing",
        ),
        pytest.param(
            request(tensor("X", [1, 3, 224, 224])), RESNET,
            "input 'x' is missing; model 'resnet' takes 'x', the request has 'X'", id="input-in-upper-case",
        ),
        pytest.param(
            request(*(tensor(f"x{number}", [1]) for number in range(12))), FIXED,
            "input 'x' is missing; model 'fixed' takes 'x', the request has 'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', "
            "'x7', 'x8', 'x9' and 2 more", id="many-names",
        ),
        pytest.param(
            request(IMAGE, tensor("mask", [1])), RESNET,
            "input 'mask' is unknown to model 'resnet', which takes 'x'", id="input-unknown",
        ),
        pytest.param(
            request(tensor("x", [1, 3, 224, 224], "UINT8")), RESNET,
            "input 'x': datatype is UINT8, model 'resnet' expects FP32", id="datatype",
        ),
        pytest.param(
            request(tensor("x", [3, 224])), RESNET,
            "input 'x': shape [3, 224] has rank 2, model 'resnet' expects [-1, 3, 224, 224]", id="rank",
        ),
        pytest.param(
            request(tensor("x", [])), RESNET,
            "input 'x': shape [] has rank 0, model 'resnet' expects [-1, 3, 224, 224]", id="scalar",
        ),
        pytest.param(
            request(tensor("x", [1, 224, 224, 3])), RESNET,
            "input 'x': shape [1, 224, 224, 3] has 224 in dimension 1, model 'resnet' expects [-1, 3, 224, 224]",
            id="channels-last",
        ),
        pytest.param(
            request(tensor("x", [0, 2])), FREE,
            "input 'x': shape [0, 2] holds no row, and the shape [-1, -1] of output 'y' of model 'free' cannot be told "
            "without one", id="no-rows-and-an-output-of-any-size",
        ),
        pytest.param(
            request(tensor("x", [0, 4, 224, 224])), RESNET,
            "input 'x': shape [0, 4, 224, 224] has 4 in dimension 1, model 'resnet' expects [-1, 3, 224, 224]",
            id="no-rows-of-another-shape",
        ),
        pytest.param(
            request(tensor("a", [0, 2]), tensor("b", [1, 1], "INT64")), PAIR,
            "input 'a' has 0 rows, input 'b' has 1; all inputs of a request must have equally many",
            id="no-rows-beside-one",
        ),
        pytest.param(
            request(tensor("a", [0, 2]), tensor("b", [0, 0], "INT64")), PAIR,
            f"input 'b': shape [0, 0] holds no element; {ONLY_ZERO_ROWS}, and 'pair' is not run",
            id="no-rows-of-no-elements",
        ),
        pytest.param(
            request(tensor("x", [1, 2]), outputs=(RequestedOutput("word", classes=1),)), NAMED,
            "output 'word': parameter 'classification' needs numbers to rank, the output is BYTES",
            id="classification-of-strings",
        ),
        pytest.param(
            request(tensor("x", [1, 2]), outputs=(RequestedOutput("flag", classes=1),)), NAMED,
            "output 'flag': parameter 'classification' needs numbers to rank, the output is BOOL",
            id="classification-of-truths",
        ),
        pytest.param(
            request(tensor("b", [2, 0], "INT64"), tensor("a", [2, 2])), PAIR,
            f"input 'b': shape [2, 0] holds no element; {ONLY_ZERO_ROWS}, and 'pair' is not run",
            id="rows-without-elements",
        ),
        pytest.param(
            request(tensor("x", [1, 0])), FIXED,
            f"input 'x': shape [1, 0] holds no element; {ONLY_ZERO_ROWS}, and 'fixed' is not run",
            id="not-batchable-empty",
        ),
        pytest.param(
            request(tensor("x", [9, 3, 224, 224])), RESNET,
            "the request has 9 rows, model 'resnet' takes at most 8 (max_batch_size); split it", id="too-many-rows",
        ),
        pytest.param(
            request(tensor("a", [2, 2]), tensor("b", [3, 1], "INT64")), PAIR,
            "input 'a' has 2 rows, input 'b' has 3; all inputs of a request must have equally many",
            id="rows-disagree",
        ),
        pytest.param(
            request(IMAGE, outputs=(RequestedOutput("probabilities"),)), RESNET,
            "output 'probabilities' is unknown to model 'resnet', which gives 'logits', 'features'",
            id="output-unknown",
        ),
        pytest.param(
            request(IMAGE, outputs=(RequestedOutput("logits"), RequestedOutput("logits"))), RESNET,
            "output 'logits' is requested twice", id="output-twice",
        ),
        pytest.param(
            request(IMAGE, binary=False), RESNET,
            f"output 'features': FP16 does not travel as JSON; {ASK_FOR_BINARY}", id="fp16-as-json-by-default",
        ),
        pytest.param(
            request(IMAGE, outputs=(RequestedOutput("features", binary=False),)), RESNET,
            f"output 'features': FP16 does not travel as JSON; {ASK_FOR_BINARY}", id="fp16-as-json-on-request",
        ),
    ],
)  # fmt: skip
def test_request_that_does_not_fit_is_refused_with_one_exact_line(
    asked: InferenceRequest, model: ModelMetadata, message: str
) -> None:
    with pytest.raises(RequestMismatch) as refusal:
        validate_request(asked, model, 8)
    assert str(refusal.value) == message


def test_fixed_first_dimension_of_a_model_that_is_not_batchable_is_kept() -> None:
    with pytest.raises(RequestMismatch, match=r"shape \[2, 7\] has 2 in dimension 0, model 'fixed' expects \[1, -1\]"):
        validate_request(request(tensor("x", [2, 7])), FIXED, 0)


def test_no_rows_are_answered_with_no_rows() -> None:
    outputs = empty_outputs(RESNET)
    assert {name: (array.shape, array.dtype) for name, array in outputs.items()} == {
        "logits": ((0, 1000), np.float32),
        "features": ((0, 512), np.float16),
    }
