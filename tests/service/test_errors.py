from __future__ import annotations

import inspect

import pytest

from service import errors
from service.errors import REASONS, STATUS, Overloaded, ServiceError, excerpt, quoted, reason_of, status_of

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
    "MemoryFull": (503, "RESOURCE_EXHAUSTED"),
    "DeadlineExceeded": (503, "DEADLINE_EXCEEDED"),
    "ExpiredInQueue": (503, "DEADLINE_EXCEEDED"),
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
    ("error", "reason"),
    [
        pytest.param(errors.MalformedRequest("x"), "invalid_request", id="bytes-that-form-no-request"),
        pytest.param(errors.RequestMismatch("x"), "invalid_request", id="does-not-fit-the-model"),
        pytest.param(errors.PayloadTooLarge("x"), "too_large", id="too-large"),
        pytest.param(errors.NotFound("x"), "not_found", id="no-such-model"),
        pytest.param(errors.ModelNotReady("x"), "not_ready", id="not-ready"),
        pytest.param(errors.QueueFull("x", retry_after_s=1), "queue_full", id="queue-full"),
        pytest.param(errors.MemoryFull("x", retry_after_s=1), "memory", id="memory"),
        pytest.param(errors.DeadlineExceeded("x", retry_after_s=1), "deadline", id="deadline"),
        pytest.param(errors.ExpiredInQueue("x", retry_after_s=1), "expired_in_queue", id="expired"),
        pytest.param(errors.InferenceFailed("x"), "model_failed", id="model-failed"),
        pytest.param(ZeroDivisionError("x"), "internal", id="defect"),
    ],
)
def test_every_refusal_has_a_word_to_count_it_by(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_words_are_as_many_as_rows() -> None:
    """Two kinds that are counted as one need one row, of their common ancestor."""
    assert len(set(REASONS.values())) == len(REASONS)


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
