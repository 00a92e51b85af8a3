"""Requests of all kinds, good and bad, from many connections at once: each gets its own answer, and memory stays.

Kinds are a table: how the request looks, and what must come back. Connections draw kinds at random and send several on
one socket, so what one kind leaves behind on a connection or in the server meets every other. A refusal (503 with
Retry-After) may answer any request that would have run; any other 5xx is a defect.

    python -m tests.load.mixed --count 100000
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gzip
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.end_to_end.running import Foldserve, foldserve
from tests.service.bad_bodies import BAD_JSON
from tests.service.handmade import DOUBLE, PICKY, save_version

CONNECTIONS = 32
# Requests on one connection, before it is closed.
MOST_ON_ONE = 20
WARM_UP_SHARE = 0.2
"""Of all requests: what memory has grown to by then counts as warm."""

Check = Callable[[int, Mapping[str, str], bytes], bool]


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, and what must come back. `check` None: the sender hangs up without reading."""

    sent: bytes
    check: Check | None
    closes: bool = False


@dataclass(slots=True)
class Tally:
    """What came back, by kind and status; and what was wrong."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    done: int = 0
    resident_bytes: list[tuple[int, int]] = field(default_factory=list)

    def growth_bytes(self) -> int:
        """From the end of the warm-up to the most that was seen behind it."""
        warm = [size for done, size in self.resident_bytes if done >= WARM_UP_SHARE * self.done]
        return max(warm) - warm[0] if warm else 0


# --- kinds --------------------------------------------------------------------------------------------------------


def _post(path: str, body: bytes, *headers: str, framing: str | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", *headers, framing or f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


def _chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def _json_body(x: np.ndarray, **more: object) -> bytes:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


def _binary_body(x: np.ndarray, **more: object) -> tuple[bytes, int]:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + x.tobytes(), len(head)


def _doubled(x: np.ndarray) -> Check:
    def check(status: int, headers: Mapping[str, str], body: bytes) -> bool:
        if status != 200:
            return False
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if length := headers.get("inference-header-content-length"):
            values = np.frombuffer(body[int(length) :], np.float32)
        else:
            values = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
        return np.array_equal(values, 2 * x.ravel())

    return check


def _is(wanted: int) -> Check:
    def check(status: int, headers: Mapping[str, str], body: bytes) -> bool:
        return status == wanted and (wanted == 200 or "error" in json.loads(body))

    return check


def _rows(chance: random.Random) -> np.ndarray:
    values = [chance.uniform(-9, 9) for _ in range(2 * chance.choice([1, 1, 1, 2, 3, 8]))]
    return np.array(values, np.float32).reshape(-1, 2)


PATH = "/v2/models/double/infer"


def good_json(chance: random.Random) -> Request:
    x = _rows(chance)
    return Request(_post(PATH, _json_body(x, id=str(chance.random()))), _doubled(x))


def good_binary(chance: random.Random) -> Request:
    x = _rows(chance)
    body, head = _binary_body(x, parameters={"binary_data_output": chance.random() < 0.7})
    return Request(_post(PATH, body, f"Inference-Header-Content-Length: {head}"), _doubled(x))


def good_large(chance: random.Random) -> Request:
    x = np.full((64, 2000), chance.random(), np.float32)
    body, head = _binary_body(x, parameters={"binary_data_output": True})
    return Request(_post("/v2/models/wide/infer", body, f"Inference-Header-Content-Length: {head}"), _doubled(x))


@functools.cache
def _much(number: int) -> tuple[np.ndarray, bytes]:
    """Enough numbers that they are read in slices, and answered in slices."""
    x = np.random.default_rng(number).random((17, 2000), np.float32)
    return x, _json_body(x)


def good_much_json(chance: random.Random) -> Request:
    x, body = _much(chance.randrange(4))
    return Request(_post("/v2/models/wide/infer", body), _doubled(x))


def bad_much_json(chance: random.Random) -> Request:
    _, body = _much(chance.randrange(4))
    damaged = chance.choice([body[:-1], body.replace(b"[17, 2000]", b"[17, 2001]"), body.replace(b", ", b",,", 9)])
    return Request(_post("/v2/models/wide/infer", damaged), _is(400))


def good_chunked(chance: random.Random) -> Request:
    x = _rows(chance)
    body = _chunked(_json_body(x), chance.choice([1, 7, 1000]))
    return Request(_post(PATH, body, framing="Transfer-Encoding: chunked"), _doubled(x))


def good_gzip(chance: random.Random) -> Request:
    x = _rows(chance)
    body = gzip.compress(_json_body(x))
    return Request(_post(PATH, body, "Content-Encoding: gzip", "Accept-Encoding: gzip"), _doubled(x))


def good_raw(chance: random.Random) -> Request:
    x = _rows(chance)[:1]
    return Request(_post(PATH, x.tobytes(), "Inference-Header-Content-Length: 0"), _doubled(x))


def good_npy(chance: random.Random) -> Request:
    x = _rows(chance)
    file = io.BytesIO()
    np.save(file, x)
    return Request(_post(PATH, file.getvalue(), "Content-Type: application/x-npy"), _doubled(x))


def good_v1(chance: random.Random) -> Request:
    x = _rows(chance)

    def check(status: int, headers: Mapping[str, str], body: bytes) -> bool:
        return status == 200 and np.array_equal(np.array(json.loads(body)["predictions"], np.float32), 2 * x)

    return Request(_post("/v1/models/double:predict", json.dumps({"instances": x.tolist()}).encode()), check)


def good_but_closes(chance: random.Random) -> Request:
    x = _rows(chance)
    return Request(_post(PATH, _json_body(x), "Connection: close"), _doubled(x), closes=True)


def in_a_hurry(chance: random.Random) -> Request:
    """Answered in time, or refused."""
    x = _rows(chance)
    return Request(_post(PATH, _json_body(x, parameters={"timeout": chance.choice([1, 100, 100_000])})), _doubled(x))


def poisoned(chance: random.Random) -> Request:
    """Passes validation, and fails in the model for its values: among others that do not."""
    index = chance.choice([0, 1, 1, 0, 9])
    inputs = [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3, 4]},
        {"name": "i", "shape": [1, 1], "datatype": "INT64", "data": [index]},
    ]

    def check(status: int, headers: Mapping[str, str], body: bytes) -> bool:
        if index == 9:
            return status == 400
        return status == 200 and json.loads(body)["outputs"][0]["data"] == [3 + index]

    return Request(_post("/v2/models/picky/infer", json.dumps({"inputs": inputs}).encode()), check)


def bad_json(chance: random.Random) -> Request:
    body, _ = BAD_JSON[chance.choice(list(BAD_JSON))]
    return Request(_post(PATH, body), _is(400))


def bad_length(chance: random.Random) -> Request:
    body, head = _binary_body(_rows(chance))
    return Request(_post(PATH, body, f"Inference-Header-Content-Length: {head + chance.choice([-1, 1, 4])}"), _is(400))


def bad_model(chance: random.Random) -> Request:
    return Request(_post("/v2/models/nobody/infer", _json_body(_rows(chance))), _is(404))


def bad_coding(chance: random.Random) -> Request:
    return Request(_post(PATH, b"?", "Content-Encoding: br"), _is(415))


def bad_gzip(chance: random.Random) -> Request:
    body = gzip.compress(_json_body(_rows(chance)))
    return Request(_post(PATH, body[: chance.randrange(len(body))], "Content-Encoding: gzip"), _is(400))


def too_large(chance: random.Random) -> Request:
    return Request(_post(PATH, b"", framing="Content-Length: 99999999999"), _is(413), closes=True)


def not_http(chance: random.Random) -> Request:
    return Request(chance.randbytes(30) + b"\r\n\r\n", _is(400), closes=True)


def control(chance: random.Random) -> Request:
    path = chance.choice(
        ["/v2", "/v2/health/ready", "/v2/models/double", "/v2/models/double/stats", "/v2/models/stats"]
    )
    return Request(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode(), _is(200))


def hangs_up_in_the_body(chance: random.Random) -> Request:
    request = _post(PATH, _json_body(_rows(chance)))
    return Request(request[: chance.randrange(20, len(request))], None, closes=True)


def hangs_up_before_the_answer(chance: random.Random) -> Request:
    return Request(_post(PATH, _json_body(_rows(chance))), None, closes=True)


KINDS: dict[Callable[[random.Random], Request], int] = {
    good_json: 30,
    good_binary: 30,
    good_large: 2,
    good_much_json: 1,
    bad_much_json: 1,
    good_chunked: 5,
    good_gzip: 4,
    good_raw: 4,
    good_npy: 4,
    good_v1: 4,
    good_but_closes: 1,
    in_a_hurry: 6,
    poisoned: 10,
    bad_json: 8,
    bad_length: 3,
    bad_model: 2,
    bad_coding: 1,
    bad_gzip: 2,
    too_large: 1,
    not_http: 1,
    control: 3,
    hangs_up_in_the_body: 1,
    hangs_up_before_the_answer: 2,
}
"""Kind to weight."""


# --- sending ------------------------------------------------------------------------------------------------------


async def storm(service: Foldserve, count: int, seed: int) -> Tally:
    """Sends `count` requests to a service of `repository`, and checks every answer."""
    tally = Tally()
    left = iter(range(count))
    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(_client(service, random.Random(f"{seed} {number}"), left, tally))
    return tally


async def _client(service: Foldserve, chance: random.Random, left: object, tally: Tally) -> None:
    host, _, port = service.address.partition(":")
    kinds, weights = list(KINDS), list(KINDS.values())
    while True:
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for _ in range(chance.randrange(1, MOST_ON_ONE)):
                if next(left, None) is None:  # type: ignore[call-overload]
                    return
                kind = chance.choices(kinds, weights)[0]
                request = kind(chance)
                writer.write(request.sent)
                if request.check is not None:
                    status = await _judge(kind.__name__, request, reader, tally)
                    tally.statuses[kind.__name__, status] += 1
                tally.done += 1
                if tally.done % 500 == 0:
                    tally.resident_bytes.append((tally.done, resident_bytes(service.process.pid)))
                if request.closes:
                    break
        finally:
            writer.close()


async def _judge(name: str, request: Request, reader: asyncio.StreamReader, tally: Tally) -> int:
    assert request.check is not None
    try:
        async with asyncio.timeout(60):
            status, headers, body = await read_answer(reader)
    except (OSError, EOFError, TimeoutError) as error:
        tally.wrong.append(f"{name}: {type(error).__name__} instead of an answer")
        return 0
    is_refusal = status == 503 and int(headers.get("retry-after", "0")) >= 1
    if not is_refusal and not request.check(status, headers, body):
        tally.wrong.append(f"{name}: {status} {body[:200]!r}")
    return status


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, Mapping[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (proc(5), status: VmRSS)."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def save_repository(repository: Path) -> Path:
    save_version(repository, "double", DOUBLE)
    save_version(repository, "wide", DOUBLE.replace("[N,2]", "[N,2000]"))
    save_version(repository, "picky", PICKY)
    return repository


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load.mixed", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        foldserve("--model-repository", save_repository(Path(folder))) as service,
    ):
        tally = asyncio.run(storm(service, arguments.count, arguments.seed))
        log = service.log()
    for (name, status), count in sorted(tally.statuses.items()):
        print(f"{name:28} {status or 'none'} {count:7}")
    for line in tally.wrong[:20]:
        print(f"WRONG {line}")
    if "Traceback" in log:
        print(f"WRONG the server logged a traceback:\n{log[-3000:]}")
    print(
        f"{tally.done} requests in {time.monotonic() - began:.0f} s, {len(tally.wrong)} wrong; resident memory grew by "
        f"{tally.growth_bytes() / 2**20:.1f} MiB after warm-up, to {tally.resident_bytes[-1][1] / 2**20:.0f} MiB"
    )
    return 1 if tally.wrong or "Traceback" in log or tally.growth_bytes() > 20 * 2**20 else 0


if __name__ == "__main__":
    sys.exit(main())
