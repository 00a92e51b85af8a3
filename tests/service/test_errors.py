from __future__ import annotations

import inspect

import pytest

from service import errors
from service.errors import STATUS, Overloaded, ServiceError, excerpt, quoted, status_of

TREE = {
    "ServiceError": (500, "INTERNAL"),
    "RequestError": (400, "INVALID_ARGUMENT"),
    "MalformedRequest": (400, "INVALID_ARGUMENT"),
    "RequestMismatch": (400, "INVALID_ARGUMENT"),
    "PayloadTooLarge": (413, "INVALID_ARGUMENT"),
    "UnsupportedEncoding": (415, "INVALID_ARGUMENT"),
    "Unauthenticated": (401, "UNAUTHENTICATED"),
    "Forbidden": (403, "PERMISSION_DENIED"),
    "NotFound": (404, "NOT_FOUND"),
    "LoadFailed": (400, "INVALID_ARGUMENT"),
    "MethodNotAllowed": (405, "UNIMPLEMENTED"),
    "NotSupported": (501, "UNIMPLEMENTED"),
    "Unavailable": (503, "UNAVAILABLE"),
    "ModelNotReady": (503, "UNAVAILABLE"),
    "Overloaded": (503, "UNAVAILABLE"),
    "QueueFull": (503, "RESOURCE_EXHAUSTED"),
    "DeadlineExceeded": (503, "DEADLINE_EXCEEDED"),
    "InferenceFailed": (500, "INTERNAL"),
    "ModelRejected": (500, "INTERNAL"),
}
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, ServiceError)
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_error_has_its_status(name: str) -> None:
    kind = KINDS[name]
    error = kind("x", retry_after_s=1) if issubclass(kind, Overloaded) else kind("x")
    assert (status_of(error).http, status_of(error).grpc) == TREE[name]


def test_docstring_draws_every_error() -> None:
    assert errors.__doc__ is not None
    assert [name for name in KINDS if name not in errors.__doc__] == []
    assert KINDS.keys() == TREE.keys()
    assert set(STATUS) <= set(KINDS.values())


def test_error_that_nobody_listed_gets_the_status_of_its_nearest_ancestor() -> None:
    class Novel(errors.NotFound):
        pass

    assert status_of(Novel("x")).http == 404


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("image", "'image'", id="plain"),
        pytest.param("a\nb\0", r"'a\nb\x00'", id="control-characters"),
        pytest.param("n" * 100, f"'{'n' * 59}... (102 characters)", id="long"),
    ],
)
def test_quoted_name_is_one_short_line(name: str, expected: str) -> None:
    assert quoted(name) == expected


def test_short_text_is_not_cut() -> None:
    assert excerpt("x" * 60) == "x" * 60
