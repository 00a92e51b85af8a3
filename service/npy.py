"""A body that is one `.npy` file, as `numpy.save` writes it, becomes a tensor.

The format is numpy's own (numpy.lib.format, versions 1.0 to 3.0): magic bytes, version, length of a header, the header,
which is the text of a Python dictionary, and the elements. The header is never evaluated, only matched: three members,
each of one form. Anything with objects in it (pickle) is refused before its first byte is looked at.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from service.binary_tensors import tensor_from_bytes
from service.datatypes import DATATYPES, Datatype
from service.decode import read_shape
from service.errors import MalformedRequest, excerpt, quoted
from service.protocol import Array

MAGIC = b"\x93NUMPY"
MEDIA_TYPE = b"application/x-npy"

_HEADER_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
"""Major version to the size of the header's length."""

_LONGEST_HEADER_BYTES = 10_000
"""numpy's own limit for files that are not trusted."""

_MEMBER = re.compile(
    r"""\s*(?:'(?P<name>descr|fortran_order|shape)'|"(?P<name2>descr|fortran_order|shape)")\s*:\s*"""
    r"""(?P<value>'[^'"]*'|"[^'"]*"|True|False|\((?:\s*[0-9]{1,19}\s*,)*\s*(?:[0-9]{1,19}\s*)?\))\s*"""
)
_TYPE = re.compile(r"(?P<order>[<>|=])(?P<code>[biufc][0-9]{1,2})")

_DATATYPES = {row.dtype.str[1:]: row for row in DATATYPES.values() if row.item_bytes and row.name != "BF16"}
"""numpy's type code without its byte order, as "f4". BF16 shares its dtype with UINT16, and no `.npy` can say it."""


@dataclass(frozen=True, slots=True)
class _Header:
    """As the file declares it."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]
    end: int
    """Where the elements begin, in bytes from the file's first."""


def read_npy(body: bytes | bytearray | memoryview) -> tuple[Datatype, Array]:
    """The datatype and the tensor of a whole `.npy` file: in row-major order, a view of `body` if it was so there.

    Raises MalformedRequest.
    """
    view = memoryview(body)
    header = _read_header(view)
    datatype, is_big_endian = _read_type(header.descr)
    shape = read_shape(list(header.shape), _WHERE)
    elements = view[header.end :]
    wanted_bytes = math.prod(shape) * datatype.item_bytes
    if len(elements) != wanted_bytes:
        raise MalformedRequest(
            f"{_WHERE}: shape {list(shape)} of {datatype.name} takes {wanted_bytes} bytes, "
            f"{len(elements)} follow the header"
        )
    if is_big_endian:
        elements = np.frombuffer(elements, datatype.dtype.newbyteorder(">")).astype(datatype.dtype).view(np.uint8).data
    if header.fortran_order:
        turned = tensor_from_bytes(elements, datatype, shape[::-1], _WHERE).T
        return datatype, np.ascontiguousarray(turned).reshape(shape)
    return datatype, tensor_from_bytes(elements, datatype, shape, _WHERE)


_WHERE = "the .npy body"


def _read_header(view: memoryview) -> _Header:
    if view[: len(MAGIC)] != MAGIC:
        raise MalformedRequest(f"{_WHERE} begins with {excerpt(bytes(view[:6]).hex(' '))}, not with 93 4e 55 4d 50 59")
    version = view[6] if len(view) > 6 else 0
    length_bytes = _HEADER_LENGTH_BYTES.get(version)
    if length_bytes is None:
        raise MalformedRequest(f"{_WHERE} has version {version}; known are 1, 2 and 3")
    start = 8 + length_bytes
    end = start + int.from_bytes(view[8:start], "little")
    if end - start > _LONGEST_HEADER_BYTES:
        raise MalformedRequest(
            f"{_WHERE} has a header of {end - start} bytes, at most {_LONGEST_HEADER_BYTES} are read"
        )
    if len(view) < max(start, end):
        raise MalformedRequest(f"{_WHERE} is cut off in its header: it has {len(view)} bytes")
    return _parse_header(bytes(view[start:end]).decode("latin-1"), end)


def _parse_header(text: str, end: int) -> _Header:
    stripped = text.strip()
    members: dict[str, str] = {}
    position = 1
    while found := _MEMBER.match(stripped, position):
        members[found["name"] or found["name2"]] = found["value"]
        position = found.end()
        if stripped[position : position + 1] != ",":
            break
        position += 1
    is_whole = stripped[:1] == "{" and stripped[position:].strip() == "}"
    descr, order, shape = (members.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if not is_whole or descr[:1] not in ("'", '"') or order not in ("True", "False") or shape[:1] != "(":
        raise MalformedRequest(
            f"{_WHERE} has the header {quoted(stripped)}; expected are 'descr' with one plain type, 'fortran_order' "
            f"and 'shape'"
        )
    dimensions = tuple(int(digits) for digits in re.findall(r"[0-9]+", shape))
    return _Header(descr[1:-1], order == "True", dimensions, end)


def _read_type(descr: str) -> tuple[Datatype, bool]:
    found = _TYPE.fullmatch(descr)
    datatype = _DATATYPES.get(found["code"]) if found else None
    if found is None or datatype is None:
        why = {
            "O": "objects are never unpickled here",
            "S": "send strings as BYTES in JSON or in binary",
            "U": "send strings as BYTES in JSON or in binary",
        }.get(descr[1:2], f"known are {', '.join(_DATATYPES)}")
        raise MalformedRequest(f"{_WHERE} has elements of type {quoted(descr)}; {why}")
    return datatype, found["order"] == ">"
