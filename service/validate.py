"""Does this request fit this model? Names, datatypes, shapes, rows, and outputs that can be answered as asked.

Compares a well-formed request with a model's metadata, before the request takes a place in any queue. Looks at no
element of a tensor and knows no bytes, no session, no scheduler.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from service.datatypes import DATATYPES
from service.errors import RequestMismatch, quoted
from service.protocol import InferenceRequest, InputTensor, ModelMetadata, TensorMetadata

_NAMES_SHOWN = 10


def validate_request(request: InferenceRequest, metadata: ModelMetadata, max_batch_size: int) -> int:
    """How many rows the request has: 1 to `max_batch_size`, or 1 for a model that is not batchable (max_batch_size 0).

    Raises RequestMismatch, with one line that names the model and what it expects.
    """
    tensors = {tensor.name: tensor for tensor in request.inputs}
    _check_input_names(tensors, metadata)
    for expected in metadata.inputs:
        _check_input(tensors[expected.name], expected, metadata.name)
    _check_outputs(request, metadata)
    return _count_rows(request.inputs, metadata.name, max_batch_size) if max_batch_size else 1


def _check_input_names(given: Collection[str], metadata: ModelMetadata) -> None:
    expected = [tensor.name for tensor in metadata.inputs]
    if missing := [name for name in expected if name not in given]:
        raise RequestMismatch(
            f"input {missing[0]!r} is missing; model {metadata.name!r} takes {_names(expected)}, "
            f"the request has {_names(given)}"
        )
    if unexpected := [name for name in given if name not in expected]:
        raise RequestMismatch(
            f"input {quoted(unexpected[0])} is unknown to model {metadata.name!r}, which takes {_names(expected)}"
        )


def _check_input(tensor: InputTensor, expected: TensorMetadata, model: str) -> None:
    if tensor.datatype != expected.datatype:
        raise RequestMismatch(
            f"input {tensor.name!r}: datatype is {tensor.datatype}, model {model!r} expects {expected.datatype}"
        )
    if 0 in tensor.shape:
        # Legal in the protocol, but recurrent kernels of ONNX Runtime 1.31 end the whole process on it (std::terminate
        # from LSTM and GRU), and nothing here can tell which models hold one. Unsure how many other kernels do.
        raise RequestMismatch(
            f"input {tensor.name!r}: shape {list(tensor.shape)} holds no element, model {model!r} needs at least one"
        )
    # ONNX Runtime reports an input of unknown rank like a scalar: then only the runtime can tell what fits.
    if not expected.shape:
        return
    if len(tensor.shape) != len(expected.shape):
        raise RequestMismatch(_misfit(tensor, expected, model, f"has rank {len(tensor.shape)}"))
    for axis, (found, wanted) in enumerate(zip(tensor.shape, expected.shape, strict=True)):
        if wanted not in (-1, found):
            raise RequestMismatch(_misfit(tensor, expected, model, f"has {found} in dimension {axis}"))


def _misfit(tensor: InputTensor, expected: TensorMetadata, model: str, what: str) -> str:
    return f"input {tensor.name!r}: shape {list(tensor.shape)} {what}, model {model!r} expects {list(expected.shape)}"


def _check_outputs(request: InferenceRequest, metadata: ModelMetadata) -> None:
    """Also refuses, before the model runs for nothing, what encode could not write afterwards."""
    datatypes = {tensor.name: tensor.datatype for tensor in metadata.outputs}
    forms: dict[str, bool | None] = {}
    for output in request.outputs:
        if output.name not in datatypes:
            raise RequestMismatch(
                f"output {quoted(output.name)} is unknown to model {metadata.name!r}, which gives {_names(datatypes)}"
            )
        if output.name in forms:
            raise RequestMismatch(f"output {output.name!r} is requested twice")
        forms[output.name] = output.binary
    for name, binary in (forms or dict.fromkeys(datatypes)).items():
        if not (request.binary_data_output if binary is None else binary) and not DATATYPES[datatypes[name]].in_json:
            raise RequestMismatch(
                f"output {name!r}: {datatypes[name]} does not travel as JSON; "
                f"request it in binary, with parameters.binary_data true (or binary_data_output for all outputs)"
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
