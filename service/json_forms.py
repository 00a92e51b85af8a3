"""What a JSON request says besides its numbers, remembered: clients in a loop send the same text around new numbers.

A *form* is the text before and behind the first input's flat `data`. JSON is context-free: where one array was the
value of that member any other may stand, and nothing else of the meaning changes. So a request of a known form needs
only its numbers parsed and checked, which is half of the work. A form is learned from a request that was decoded in
full; anything unusual (several inputs, nested data, a member given twice) has no form and is decoded in full each time.

Changes no result and no refusal; bounded. Knows the request's values, not how they are decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from service.datatypes import DATATYPES, Datatype
from service.errors import quoted
from service.json_tensors import elements_from_json
from service.protocol import InferenceRequest, InputTensor

# Where numbers are many, what stands around them costs nothing in comparison.
_MOST_BYTES = 64 * 1024
_MOST_AROUND_BYTES = 2048
_MOST_FORMS = 1024
_MEMBER = b'"data":'
# No request's own data: a string that JSON can hold and no tensor of numbers.
_STAND_IN = "\x00 stands in for data"


class _Parts(NamedTuple):
    """Where the first `data` begins and ends, and what is around it."""

    start: int
    end: int
    around: bytes


class _Form(NamedTuple):
    """A request without its input, and that input without its elements."""

    request: InferenceRequest
    name: str
    datatype: Datatype
    shape: tuple[int, ...]


_FORMS: dict[bytes, _Form] = {}
"""By the text around the numbers."""


def decode_known_form(text: bytes) -> InferenceRequest | None:
    """The request in `text`, None when its form is not known. Raises MalformedRequest as the full way would."""
    parts = _parts(text)
    form = _FORMS.get(parts.around) if parts else None
    if parts is None or form is None:
        return None
    try:
        values = orjson.loads(text[parts.start : parts.end])
    except orjson.JSONDecodeError:
        # Nested, or bare NaN, or no JSON at all: the full way knows what to say.
        return None
    data = elements_from_json(values, form.datatype, form.shape, f"input {quoted(form.name)}")
    _, outputs, id_, binary_data_output, parameters = form.request
    tensor = InputTensor(form.name, form.datatype.name, data)
    return InferenceRequest((tensor,), outputs, id_, binary_data_output, parameters)


def learn_form(text: bytes, request: InferenceRequest) -> None:
    """`text` was decoded in full and is `request`: remembers its form, if it has one."""
    parts = _parts(text)
    if parts is None or len(parts.around) > _MOST_AROUND_BYTES or len(request.inputs) != 1:
        return
    if not _has_form(text, parts):
        return
    if len(_FORMS) >= _MOST_FORMS:
        _FORMS.clear()
    (tensor,) = request.inputs
    _FORMS[parts.around] = _Form(
        request._replace(inputs=()), tensor.name, DATATYPES[tensor.datatype], tensor.data.shape
    )


def _parts(text: bytes) -> _Parts | None:
    if len(text) > _MOST_BYTES:
        return None
    start = text.find(_MEMBER) + len(_MEMBER)
    if text[start : start + 1] == b" ":
        start += 1
    end = text.find(b"]", start) + 1
    if start < len(_MEMBER) or text[start : start + 1] != b"[" or not end:
        return None
    # JSON holds no raw control character, so the join cannot be mistaken.
    return _Parts(start, end, text[:start] + b"\x00" + text[end:])


def _has_form(text: bytes, parts: _Parts) -> bool:
    """Whether what was found is the value of the input's `data`: another value there is what the parser then finds."""
    other = text[: parts.start] + orjson.dumps([_STAND_IN]) + text[parts.end :]
    try:
        return bool(orjson.loads(other)["inputs"][0]["data"] == [_STAND_IN])
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
        return False
