"""Bodies made to crash, to hang, to fill the memory or to be taken for something else. Each row says why it must fail.

They go through the real application to a real model; afterwards the model still answers. Exact messages for ordinary
mistakes are tested in tests/service/test_decode.py; here it counts that a small body cannot cause a large effect.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.decode import decode_request
from service.errors import MalformedRequest
from service.settings import Settings
from tests.service.handmade import DOUBLE, save_model

PATIENCE_S = 60


@dataclass(frozen=True)
class Attack:
    """`told`: what the refusal says. `header`: value of Inference-Header-Content-Length; "json": the true length."""

    name: str
    why_it_fails: str
    told: str
    json: bytes
    tail: bytes = b""
    header: str | None = None

    def request(self) -> tuple[bytes, dict[str, str]]:
        header = str(len(self.json)) if self.header == "json" else self.header
        return self.json + self.tail, {} if header is None else {"Inference-Header-Content-Length": header}


def claim(shape: list[Any], datatype: str = "FP32", **members: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, **members}]}).encode()


def binary(size_bytes: Any) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size_bytes}}


ATTACKS = (
    Attack(
        "terabyte-claimed-in-json",
        "nothing is allocated for a shape before its elements have been counted",
        "has 1000000000000 elements, data has 1",
        claim([10**6, 10**6], data=[0]),
    ),
    Attack(
        "terabyte-claimed-in-binary",
        "the claimed size is compared with the bytes that came",
        "only 4 of the 4 bytes behind the JSON are left",
        claim([10**6, 10**6], **binary(4 * 10**12)),
        tail=b"\0" * 4,
        header="json",
    ),
    Attack(
        "terabyte-claimed-in-strings",
        "every string takes at least four bytes, so the count is bounded by the body",
        "4 bytes cannot hold 1000000000000 elements",
        claim([10**6, 10**6], "BYTES", **binary(4)),
        tail=b"\0" * 4,
        header="json",
    ),
    Attack(
        "string-claims-4-gib",
        "a string's length is compared with the bytes that came",
        "element 0 ends at byte 4294967299, but there are 8 bytes",
        claim([1], "BYTES", **binary(8)),
        tail=b"\xff\xff\xff\xffabcd",
        header="json",
    ),
    Attack(
        "product-wraps-to-the-right-count",
        "2**32 * 2**32 * 2 is 2 in no number of bits here: Python's integers do not wrap",
        "spans more than 2**60 - 1 elements",
        claim([2**32, 2**32, 2], data=[1, 2]),
    ),
    Attack(
        "negative-dimensions-with-positive-product",
        "each dimension is looked at, not only the product",
        "dimension 0 of shape is -1",
        claim([-1, -2], data=[1, 2]),
    ),
    Attack(
        "empty-tensor-of-endless-other-dimensions",
        "NumPy itself would refuse the array with another kind of error",
        "spans more than 2**60 - 1 elements",
        claim([0, 2**50, 2**50], data=[]),
    ),
    Attack(
        "more-dimensions-than-numpy-has",
        "NumPy itself would refuse the array with another kind of error",
        "shape has 100000 dimensions, at most 64 are possible",
        claim([1] * 100_000, data=[1]),
    ),
    Attack(
        "sizes-that-cancel-out",
        "a negative size cannot move the reading position back",
        "'binary_data_size' is -4, expected 0 or more",
        json.dumps(
            {
                "inputs": [
                    {"name": "a", "shape": [1], "datatype": "FP32", **binary(-4)},
                    {"name": "b", "shape": [2], "datatype": "FP32", **binary(8)},
                ]
            }
        ).encode(),
        tail=b"\0" * 4,
        header="json",
    ),
    Attack(
        "tensors-that-overlap",
        "each byte behind the JSON is given out once",
        "input 'b': binary_data_size is 4, but only 0 of the 4 bytes behind the JSON are left",
        json.dumps(
            {
                "inputs": [
                    {"name": "a", "shape": [1], "datatype": "FP32", **binary(4)},
                    {"name": "b", "shape": [1], "datatype": "FP32", **binary(4)},
                ]
            }
        ).encode(),
        tail=b"\0" * 4,
        header="json",
    ),
    Attack(
        "second-request-behind-the-first",
        "what is left over behind the last tensor is not ignored",
        "there are 80 bytes behind the JSON, but the binary inputs take 0",
        claim([1, 2], data=[1, 2]),
        tail=claim([1, 2], data=[3, 4]),
        header="json",
    ),
    Attack(
        "arrays-100000-deep",
        "the parser bounds its depth, and the fall-back for NaN turns RecursionError into a refusal",
        "the body is not JSON",
        b'{"inputs":' + b"[" * 100_000 + b"NaN" + b"]" * 100_000 + b"}",
    ),
    Attack(
        "data-900-deep",
        "shallow enough for the parser; nesting is followed no deeper than the shape goes",
        "data is nested as [1, 1, ...], shape is [1]",
        claim([1], data=[1]).replace(b"[1]}]", b"[" * 900 + b"1" + b"]" * 900 + b"}]"),
    ),
    Attack(
        "exponential-nesting",
        "there is no way to refer to something twice in JSON: the work is proportional to the text",
        "data is nested as [20000, ...], shape is [1]",
        claim([1], data=[[[], []]] * 20_000),
    ),
    Attack(
        "endless-digits",
        "int() of many digits is quadratic in Python: the parsers refuse such a number first",
        "the body is not JSON",
        claim([1], data=[0]).replace(b"[0]", b"[NaN, " + b"9" * 1_000_000 + b"]"),
    ),
    Attack(
        "size-of-4000-digits",
        "a refusal quotes only the beginning of what it was sent",
        "... (4000 characters), but shape [1] of FP32 takes 4 bytes",
        claim([1], parameters={"binary_data_size": 1, "other": float("nan")}).replace(
            b": 1,", b": " + b"9" * 4000 + b","
        ),
        header="json",
    ),
    Attack(
        "endless-name",
        "a refusal quotes only the beginning of what it was sent",
        "(1000002 characters) is unknown to model",
        json.dumps(
            {
                "inputs": [
                    {"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
                    for name in ("x", "n" * 1_000_000)
                ]
            }
        ).encode(),
    ),
    Attack(
        "hundred-thousand-inputs",
        "each input costs microseconds, so their number is bounded",
        "there are 100000 inputs, at most 4096 are read",
        json.dumps({"inputs": [{"name": "x"}] * 100_000}).encode(),
    ),
    Attack(
        "header-length-of-5000-digits",
        "it is checked as text before it becomes a number",
        "expected a number of bytes in decimal digits",
        claim([1, 2], data=[1, 2]),
        header="9" * 5000,
    ),
    Attack(
        "header-length-inside-a-character",
        "the JSON part must be UTF-8 by itself",
        "the JSON is not UTF-8",
        '{"id":"\u00e9"}'.encode()[:8],
        tail='{"id":"\u00e9"}'.encode()[8:],
        header="json",
    ),
    Attack(
        "nul-in-a-name",
        "names are compared whole, not up to a NUL as in C",
        r"input 'x\x00y' is unknown to model",
        json.dumps(
            {"inputs": [{"name": name, "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} for name in ("x", "x\0y")]}
        ).encode(),
    ),
    Attack(
        "bool-of-another-bit-pattern",
        "to C++ a bool that is neither 0 nor 1 is undefined behaviour",
        "a BOOL is 0 or 1",
        claim([1], "BOOL", **binary(1)),
        tail=b"\x80",
        header="json",
    ),
    Attack(
        "utf-16",
        "JSON between systems is UTF-8",
        "the body is not JSON",
        claim([1, 2], data=[1, 2]).decode().encode("utf-16-le"),
    ),
    Attack(
        "pickle",
        "only JSON is parsed",
        "the JSON is not UTF-8",
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    ),
)

GOOD = claim([1, 2], data=[1, 2])


def case(attack: Attack) -> Any:
    return pytest.param(attack, id=attack.name)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = save_model(tmp_path_factory.mktemp("model") / "double.onnx", DOUBLE)
    with TestClient(create_app(Settings(model=path))) as opened:
        give_up = time.monotonic() + PATIENCE_S
        while opened.get("/v2/health/ready").status_code != 200:
            assert time.monotonic() < give_up, opened.get("/v2/health/ready").text
            time.sleep(0.01)
        yield opened


@pytest.mark.parametrize("attack", [case(attack) for attack in ATTACKS])
def test_attack_is_refused_and_the_model_still_answers(attack: Attack, client: TestClient) -> None:
    body, headers = attack.request()
    answer = client.post("/v2/models/double/infer", content=body, headers=headers)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert attack.told in message, attack.why_it_fails
    assert len(message) < 500
    after = client.post("/v2/models/double/infer", content=GOOD)
    assert after.json()["outputs"][0]["data"] == [2, 4]


@pytest.mark.parametrize("attack", [case(attack) for attack in ATTACKS if "claim" in attack.name])
def test_memory_follows_the_body_and_not_its_claims(attack: Attack) -> None:
    body, headers = attack.request()
    header = headers.get("Inference-Header-Content-Length")
    tracemalloc.start()
    try:
        with pytest.raises(MalformedRequest):
            decode_request(body, None if header is None else int(header))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_truncation_at_any_byte_is_refused() -> None:
    """No prefix of a good body is another good body."""
    head = claim([1, 2], **binary(8))
    body = head + b"\0" * 8
    for length in range(len(body)):
        with pytest.raises(MalformedRequest):
            decode_request(body[:length], len(head))
    for length in range(len(GOOD)):
        with pytest.raises(MalformedRequest):
            decode_request(GOOD[:length], None)
