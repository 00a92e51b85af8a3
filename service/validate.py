"""Does this request fit this model? Names, datatypes, shapes, rows, and outputs that can be answered as asked.

Compares a well-formed request with a model's metadata, before the request takes a place in any queue. Looks at no
element of a tensor and knows no bytes, no session, no scheduler.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

import numpy as np

from service.classification import can_be_ranked
from service.datatypes import DATATYPES
from service.errors import RequestMismatch, quoted
from service.protocol import Array, InferenceRequest, InputTensor, ModelMetadata, TensorMetadata

_NAMES_SHOWN = 10


def validate_request(request: InferenceRequest, metadata: ModelMetadata, max_batch_size: int) -> int:
    """How many rows the request has: 0 to `max_batch_size`, or 1 for a model that is not batchable (max_batch_size 0).

    0 rows pass only where the answer is known without running the model: `empty_outputs` makes it.
    Raises RequestMismatch, with one line that names the model and what it expects.
    """
    tensors: Sequence[InputTensor] = request.inputs
    if len(tensors) != 1 or len(metadata.inputs) != 1 or tensors[0].name != metadata.inputs[0].name:
        tensors = _in_declared_order(tensors, metadata)
    for tensor, expected in zip(tensors, metadata.inputs, strict=True):
        _check_input(tensor, expected, metadata, max_batch_size)
    _check_outputs(request, metadata)
    return _count_rows(request.inputs, metadata.name, max_batch_size) if max_batch_size else 1


def empty_outputs(metadata: ModelMetadata) -> dict[str, Array]:
    """What a batchable model answers to 0 rows, by output name; only for requests that `validate_request` let pass."""
    return {
        tensor.name: np.zeros((0, *tensor.shape[1:]), DATATYPES[tensor.datatype].dtype) for tensor in metadata.outputs
    }


def _in_declared_order(given: Sequence[InputTensor], metadata: ModelMetadata) -> list[InputTensor]:
    by_name = {tensor.name: tensor for tensor in given}
    expected = [tensor.name for tensor in metadata.inputs]
    if missing := [name for name in expected if name not in by_name]:
        raise RequestMismatch(
            f"input {missing[0]!r} is missing; model {metadata.name!r} takes {_names(expected)}, "
            f"the request has {_names(by_name)}"
        )
    if unexpected := [name for name in by_name if name not in expected]:
        raise RequestMismatch(
            f"input {quoted(unexpected[0])} is unknown to model {metadata.name!r}, which takes {_names(expected)}"
        )
    return [by_name[name] for name in expected]


def _check_input(tensor: InputTensor, expected: TensorMetadata, metadata: ModelMetadata, max_batch_size: int) -> None:
    shape = tensor.data.shape
    if tensor.datatype != expected.datatype:
        raise RequestMismatch(
            f"input {tensor.name!r}: datatype is {tensor.datatype}, model {metadata.name!r} expects {expected.datatype}"
        )
    if 0 in shape:
        _check_empty(tensor, metadata, max_batch_size)
    # ONNX Runtime reports an input of unknown rank like a scalar: then only the runtime can tell what fits.
    if not expected.shape:
        return
    if len(shape) != len(expected.shape):
        raise RequestMismatch(_misfit(tensor, expected, metadata.name, f"has rank {len(shape)}"))
    for axis, wanted in enumerate(expected.shape):
        if wanted not in (-1, shape[axis]):
            raise RequestMismatch(_misfit(tensor, expected, metadata.name, f"has {shape[axis]} in dimension {axis}"))


def _check_empty(tensor: InputTensor, metadata: ModelMetadata, max_batch_size: int) -> None:
    """Legal in the protocol, but recurrent kernels of ONNX Runtime 1.31 end the whole process on it (std::terminate
    from LSTM and GRU), and nothing here can tell which models hold one. Unsure how many other kernels do. So no model
    runs on nothing; no rows, of which nothing but their number is open, are answered with no rows."""
    shape = tensor.data.shape
    if not max_batch_size or shape[0] or 0 in shape[1:]:
        raise RequestMismatch(
            f"input {tensor.name!r}: shape {list(shape)} holds no element; some operators of ONNX Runtime end the "
            f"process on that, so it is taken only as 0 rows of a batchable model, and {metadata.name!r} is not run"
        )
    for output in metadata.outputs:
        if -1 in output.shape[1:]:
            raise RequestMismatch(
                f"input {tensor.name!r}: shape {list(shape)} holds no row, and the shape {list(output.shape)} of "
                f"output {output.name!r} of model {metadata.name!r} cannot be told without one"
            )


def _misfit(tensor: InputTensor, expected: TensorMetadata, model: str, what: str) -> str:
    return f"input {tensor.name!r}: shape {list(tensor.shape)} {what}, model {model!r} expects {list(expected.shape)}"


def _check_outputs(request: InferenceRequest, metadata: ModelMetadata) -> None:
    """Also refuses, before the model runs for nothing, what could not be written afterwards."""
    if not request.outputs:
        if not request.binary_data_output:
            for tensor in metadata.outputs:
                _check_json_form(tensor)
        return
    known = {tensor.name: tensor for tensor in metadata.outputs}
    seen: set[str] = set()
    for output in request.outputs:
        expected = known.get(output.name)
        if expected is None:
            raise RequestMismatch(
                f"output {quoted(output.name)} is unknown to model {metadata.name!r}, which gives {_names(known)}"
            )
        if output.name in seen:
            raise RequestMismatch(f"output {output.name!r} is requested twice")
        seen.add(output.name)
        if output.classes is not None:
            _check_classes(expected)
        elif not (request.binary_data_output if output.binary is None else output.binary):
            _check_json_form(expected)


def _check_json_form(output: TensorMetadata) -> None:
    if not DATATYPES[output.datatype].in_json:
        raise RequestMismatch(
            f"output {output.name!r}: {output.datatype} does not travel as JSON; "
            f"request it in binary, with parameters.binary_data true (or binary_data_output for all outputs)"
        )


def _check_classes(output: TensorMetadata) -> None:
    if not can_be_ranked(output.datatype):
        raise RequestMismatch(
            f"output {output.name!r}: parameter 'classification' needs numbers to rank, the output is {output.datatype}"
        )


def _count_rows(inputs: tuple[InputTensor, ...], model: str, max_batch_size: int) -> int:
    """Of a batchable model: metadata promises that each input's first dimension is -1, the rows."""
    first, *others = inputs
    rows = first.shape[0]
    for other in others:
        if other.shape[0] != rows:
            raise RequestMismatch(
                f"input {first.name!r} has {rows} rows, input {other.name!r} has {other.shape[0]}; "
                f"all inputs of a request must have equally many"
            )
    if rows > max_batch_size:
        raise RequestMismatch(
            f"the request has {rows} rows, model {model!r} takes at most {max_batch_size} (max_batch_size); split it"
        )
    return rows


def _names(names: Collection[str]) -> str:
    shown = ", ".join(quoted(name) for name in islice(names, _NAMES_SHOWN)) or "none"
    return f"{shown} and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else shown
