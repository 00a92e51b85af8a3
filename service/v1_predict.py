"""The V1 protocol's bodies: `{"instances": ...}` or `{"inputs": ...}` to an `InferenceRequest`, and its answer back.

    request                                      answer, one output        answer, several outputs
    {"instances": [value, ...]}                  {"predictions": [value]}  {"predictions": [{output: value}, ...]}
    {"instances": [{input: value, ...}, ...]}    the same                  the same
    {"inputs": tensor}                           {"outputs": tensor}       {"outputs": {output: tensor, ...}}
    {"inputs": {input: tensor, ...}}             the same                  the same

Values are nested as the tensor is, and their nesting is the shape: V1 has no other place for it. So nothing is taken
flat, and nothing is reshaped; but one instance for a model without rows (max_batch_size 0) may be its whole input: the
list around it is taken off where only that fits, and put around the answer. Datatypes are the model's. {"b64": text}
stands for bytes, wherever a string may: in requests (unless the model has an input of that name), and in answers for
what is not UTF-8. Sources: TensorFlow Serving's api_rest.md (row and columnar format, binary values), KServe's V1
protocol. Pure; knows neither HTTP nor a running model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import orjson

from service.datatypes import DATATYPES
from service.decode import LARGE_BODY_BYTES, LONG_JSON_BYTES, MAX_RANK, collector_paused
from service.encode import EncodedResponse
from service.errors import MalformedRequest, RequestMismatch, quoted
from service.json_slices import LongArrays, Unsliceable, read_in_slices
from service.json_tensors import (
    BASE64,
    Json,
    Pause,
    bytes_from_json,
    elements_from_json,
    is_base64,
    kind_of,
    nested_to_text,
    parse_json,
)
from service.protocol import (
    Array,
    InferenceRequest,
    InferenceResponse,
    InputTensor,
    ModelMetadata,
    OutputTensor,
    TensorMetadata,
)

_SIGNATURE = "serving_default"

_BYTES_SUFFIX = "_bytes"
"""Of BYTES outputs whose every element is answered as b64, text or not, so that clients need not look (as there)."""

ROWS = "instances"
COLUMNS = "inputs"


@dataclass(frozen=True, slots=True)
class Predict:
    """What a body asks. `rows`: how many instances came; None when they came as columns. is_whole: the only instance
    went to the model as it is, so outputs come without an axis of instances."""

    request: InferenceRequest
    rows: int | None
    is_whole: bool = False


def decode_predict(
    body: bytes | bytearray | memoryview,
    model: ModelMetadata,
    *,
    is_batchable: bool = True,
    pause: Pause | None = None,
) -> Predict:
    """pause: called now and then while long arrays are read. Raises MalformedRequest, and RequestMismatch for several
    instances where a model takes one."""
    with collector_paused() if len(body) > LARGE_BODY_BYTES else nullcontext():
        view = memoryview(body)
        predict = None
        if pause is not None and len(body) >= LONG_JSON_BYTES:
            predict = read_in_slices(
                view,
                pause,
                lambda text, arrays: _decode(parse_json(text), model, arrays),
                lambda found: found.request.inputs,
            )
        predict = predict or _decode(parse_json(view), model)
    return predict if is_batchable or predict.rows is None else _without_rows(predict, predict.rows, model)


def _decode(members: Json, model: ModelMetadata, arrays: LongArrays | None = None) -> Predict:
    if type(members) is not dict:
        raise MalformedRequest(f"the request is {kind_of(members)}, expected an object with {ROWS!r} or {COLUMNS!r}")
    _refuse_other_signatures(members.get("signature_name"))
    forms = [form for form in (ROWS, COLUMNS) if members.get(form) is not None]
    if len(forms) != 1:
        raise MalformedRequest(
            f"the request has {'both' if forms else 'neither'} {ROWS!r} {'and' if forms else 'nor'} {COLUMNS!r}; "
            f"give one of them"
        )
    (form,) = forms
    is_long = arrays is not None and arrays.stands(members[form])
    values = (
        _by_input_from_rows(members[ROWS], model) if form == ROWS and not is_long else _by_input(members[form], model)
    )
    if arrays is not None and sum(map(arrays.stands, values.values())) != len(arrays):
        raise Unsliceable("a long array that is no input's")
    expected = {tensor.name: tensor for tensor in model.inputs}
    # Names that the model does not know have no datatype to be read as; `validate` tells the missing ones.
    for name in values:
        if name not in expected:
            raise MalformedRequest(f"input {quoted(name)} is unknown to model {model.name!r}, {_takes(model)}")
    tensors = tuple(_tensor(expected[name], value, arrays) for name, value in values.items())
    request = InferenceRequest(inputs=tensors)
    if form == COLUMNS:
        return Predict(request, None)
    return Predict(request, len(tensors[0].data) if is_long else len(members[ROWS]))


def encode_predictions(response: InferenceResponse, predict: Predict, pause: Pause | None = None) -> EncodedResponse:
    """pause: called now and then while long outputs are written.

    Raises RequestMismatch when an output has no JSON form, or not one row for each instance."""
    if predict.rows is None:
        return EncodedResponse(b'{"outputs":%b}' % _columns(response.outputs, pause))
    outputs = response.outputs
    if predict.is_whole:
        outputs = tuple(output._replace(data=output.data[np.newaxis]) for output in outputs)
    return EncodedResponse(b'{"predictions":%b}' % _rows(outputs, predict.rows, pause))


# --- requests -----------------------------------------------------------------------------------------------------


def _without_rows(predict: Predict, rows: int, model: ModelMetadata) -> Predict:
    """`predict` for a model that is not batchable: as it is where that fits, and where nothing does, for `validate`."""
    tensors = predict.request.inputs
    expected = {tensor.name: tensor.shape for tensor in model.inputs}
    if all(_fits(tensor.shape, expected[tensor.name]) for tensor in tensors):
        return predict
    is_whole = all(_fits(tensor.shape[1:], expected[tensor.name]) for tensor in tensors)
    if rows == 1 and is_whole:
        whole = tuple(tensor._replace(data=tensor.data.reshape(tensor.shape[1:])) for tensor in tensors)
        return Predict(InferenceRequest(inputs=whole), rows, is_whole=True)
    if rows > 1 and (is_whole or all(_fits((1, *tensor.shape[1:]), expected[tensor.name]) for tensor in tensors)):
        raise RequestMismatch(
            f"the request has {rows} {ROWS}, model {model.name!r} has no rows (max_batch_size 0) and takes one a "
            f"request; send each by itself, or whole tensors as {COLUMNS!r}"
        )
    return predict


def _fits(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """As `validate` sees it: a model's input of no rank may have any."""
    return not expected or (
        len(shape) == len(expected) and all(wanted in (-1, n) for n, wanted in zip(shape, expected, strict=True))
    )


def _refuse_other_signatures(name: Json) -> None:
    if name not in (None, _SIGNATURE):
        raise MalformedRequest(
            f"signature_name is {quoted(name) if type(name) is str else kind_of(name)}; models here have one way to be "
            f"called, {_SIGNATURE!r}: leave it out"
        )


def _by_input_from_rows(instances: Json, model: ModelMetadata) -> dict[str, Json]:
    """Each input's values, one an instance."""
    if type(instances) is not list:
        raise MalformedRequest(f"{ROWS!r} is {kind_of(instances)}, expected an array with one element a row")
    if not instances:
        raise MalformedRequest(f"{ROWS!r} is empty, expected at least one")
    named = [_is_by_name(instance, model) for instance in instances] if dict in set(map(type, instances)) else []
    if not any(named):
        return {_only_input(model, ROWS).name: instances}
    if not all(named):
        position = named.index(not named[0])
        raise MalformedRequest(
            f"{ROWS}[0] is {_kind_of(instances[0])}, {ROWS}[{position}] is {_kind_of(instances[position])}; "
            f"give all of them as objects with the inputs by name, or none"
        )
    for position, instance in enumerate(instances):
        if instance.keys() != instances[0].keys():
            odd = min(instance.keys() ^ instances[0].keys())
            has, lacks = (position, 0) if odd in instance else (0, position)
            raise MalformedRequest(f"{ROWS}[{has}] has input {quoted(odd)}, {ROWS}[{lacks}] has not")
    return {name: [instance[name] for instance in instances] for name in instances[0]}


def _by_input(inputs: Json, model: ModelMetadata) -> dict[str, Json]:
    return inputs if _is_by_name(inputs, model) else {_only_input(model, COLUMNS).name: inputs}


def _is_by_name(value: Json, model: ModelMetadata) -> bool:
    """Whether `value` holds inputs by their names."""
    return type(value) is dict and not (is_base64(value) and BASE64 not in {tensor.name for tensor in model.inputs})


def _kind_of(instance: Json) -> str:
    return f"bytes as {BASE64!r}" if is_base64(instance) else kind_of(instance)


def _only_input(model: ModelMetadata, member: str) -> TensorMetadata:
    if len(model.inputs) != 1:
        raise MalformedRequest(f"{member!r} gives values without names, {_takes(model)}; give objects with their names")
    return model.inputs[0]


def _takes(model: ModelMetadata) -> str:
    return f"the model takes {', '.join(repr(tensor.name) for tensor in model.inputs[:10]) or 'none'}"


def _tensor(expected: TensorMetadata, value: Json, arrays: LongArrays | None) -> InputTensor:
    where = f"input {expected.name!r}"
    datatype = DATATYPES[expected.datatype]
    if arrays is not None and (long := arrays.take(value)) is not None:
        return InputTensor(expected.name, datatype.name, long.nested(datatype, where))
    shape = _shape_of(value, where)
    values = value if shape else [value]
    if datatype.name == "BYTES":
        flat = bytes_from_json(values, shape, where)
    else:
        flat = elements_from_json(values, datatype, shape, where)
    return InputTensor(expected.name, datatype.name, flat.reshape(shape))


def _shape_of(value: Json, where: str) -> tuple[int, ...]:
    """How `value` is nested, judged by the first element of each level; whether all are alike is seen later."""
    shape: list[int] = []
    while type(value) is list:
        shape.append(len(value))
        if len(shape) > MAX_RANK:
            raise MalformedRequest(f"{where}: data is nested more than {MAX_RANK} deep")
        if not value:
            break
        value = value[0]
    return tuple(shape)


# --- answers ------------------------------------------------------------------------------------------------------


def _columns(outputs: tuple[OutputTensor, ...], pause: Pause | None) -> bytes:
    texts = [_text(output, output.data, pause) for output in outputs]
    return texts[0] if len(texts) == 1 else _object([output.name for output in outputs], texts)


def _rows(outputs: tuple[OutputTensor, ...], rows: int, pause: Pause | None) -> bytes:
    for output in outputs:
        if output.data.shape[:1] != (rows,):
            raise RequestMismatch(
                f"output {output.name!r} has shape {list(output.data.shape)}, which is not one value for each of "
                f"{rows} {ROWS}; send {COLUMNS!r} instead, and outputs come whole"
            )
    if len(outputs) == 1:
        return _text(outputs[0], outputs[0].data, pause)
    names = [output.name for output in outputs]
    objects = [
        _object(names, [_text(output, _row(output.data, row), pause) for output in outputs]) for row in range(rows)
    ]
    return b"[%b]" % b",".join(objects)


def _row(array: Array, row: int) -> Array:
    """Also of one dimension less when there is but one, where indexing would give an element."""
    return array[row : row + 1].reshape(array.shape[1:])


def _object(names: list[str], texts: list[bytes]) -> bytes:
    return b"{%b}" % b",".join(orjson.dumps(name) + b":" + text for name, text in zip(names, texts, strict=True))


def _text(output: OutputTensor, values: Array, pause: Pause | None) -> bytes:
    where = f"output {output.name!r}"
    as_base64 = output.name.endswith(_BYTES_SUFFIX)
    return nested_to_text(values, DATATYPES[output.datatype], where, as_base64=as_base64, pause=pause)
