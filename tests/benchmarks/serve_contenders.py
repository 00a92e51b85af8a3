"""What `make bench-serve` measures: each server's command, how it wants to be asked, and how to read what it answers.

Every server is a process (group) of its own, started on a free port of 127.0.0.1, asked once, and its answer compared
with session.run's; a server that answers something else is not measured. It is gone when the block ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.benchmarks.load import post
from tests.end_to_end.running import COMMANDS, clean_environment, free_port

RIVALS = Path(__file__).with_name("serve_rivals")
START_S = 60.0
STOP_S = 15.0
TOLERANCE = 1e-4  # of an answer: a batch may round otherwise than a row
FORMS = ("json", "binary")
BARE_LOOP = "bare loop"

Array = NDArray[np.float32]


class ContenderFailed(Exception):
    """A server did not start, or does not answer as session.run does. `str(error)` is one line."""


@dataclass(frozen=True)
class Served:
    """A model file with input `x` and output `y`; `rows`: the largest batch that a server is told to make."""

    path: Path
    rows: int

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def is_small(self) -> bool:
        return self.rows >= 64

    @cached_property
    def _run(self) -> tuple[Array, Array]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape[1:]
        x = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
        return x, session.run(None, {"x": x})[0]

    @property
    def x(self) -> Array:
        """One row."""
        return self._run[0]

    @property
    def y(self) -> Array:
        return self._run[1]


Ask = Callable[[Served, str, int | None], bytes]
"""A request: model, form, deadline in microseconds or None."""


@dataclass(frozen=True)
class Contender:
    name: str
    command: Callable[[Served, int], list[str]]
    """Given the model and the port."""
    ask: Ask
    read: Callable[[str, bytes, Mapping[str, str]], Array]
    """Given the form, the body and the headers of an answer."""
    only_small: bool = False
    """It is not meant for a large model."""
    only_alone: bool = False
    """It knows one caller, and binary."""

    def takes(self, form: str, clients: int) -> bool:
        return not self.only_alone or (form == "binary" and clients == 1)


# --- ours ---------------------------------------------------------------------------------------------------------


def ask_ours(served: Served, form: str, deadline_us: int | None) -> bytes:
    path = f"/v2/models/{served.name}/infer"
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(served.x.shape)}
    body: dict[str, Any] = {"inputs": [tensor]}
    if deadline_us is not None:
        body["parameters"] = {"timeout": deadline_us}
    if form == "json":
        tensor["data"] = json_numbers(served.x)
        return post(path, compact(body), {"Content-Type": "application/json"})
    raw = served.x.tobytes()
    tensor["parameters"] = {"binary_data_size": len(raw)}
    body["outputs"] = [{"name": "y", "parameters": {"binary_data": True}}]
    head = compact(body)
    # Whoever writes tensors in place pads the JSON, which may end in spaces, so that they lie on their own boundary.
    head += b" " * (-len(head) % 8)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return post(path, head + raw, headers)


def read_ours(form: str, body: bytes, headers: Mapping[str, str]) -> Array:
    json_bytes = int(headers.get("inference-header-content-length", len(body)))
    (tensor,) = json.loads(body[:json_bytes])["outputs"]
    if form == "json":
        return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
    return np.frombuffer(body[json_bytes:], dtype=np.float32).reshape(tensor["shape"])


def ours(name: str = "ours", *flags: str) -> Contender:
    def command(served: Served, port: int) -> list[str]:
        return [str(COMMANDS / "foldserve"), "--model", str(served.path), "--port", str(port), *flags]

    return Contender(name, command, ask_ours, read_ours)


# --- the others ---------------------------------------------------------------------------------------------------


def ask_rival(served: Served, form: str, deadline_us: int | None) -> bytes:
    """Their own natural form: one row without its batch, as JSON or as the bytes of its numbers."""
    if form == "json":
        body = compact({"input": json_numbers(served.x)})
        return post("/json", body, {"Content-Type": "application/json"})
    return post("/binary", served.x.tobytes(), {"Content-Type": "application/octet-stream"})


def read_rival(form: str, body: bytes, headers: Mapping[str, str]) -> Array:
    if form == "json":
        return np.array(json.loads(body)["output"], dtype=np.float32)[None]
    return np.frombuffer(body, dtype=np.float32)[None]


def rivals(environment: Path, deadline_s: float) -> list[Contender]:
    """Those of `serve_rivals/`, run by the interpreter of `environment`.

    Overload, for the large model: mosec refuses (429) what is beyond one batch that runs and one that waits, LitServe
    gives up at the deadline, FastAPI has nothing of its own. The bare loop is no server but the floor under one.
    """
    python = str(environment / "bin" / "python")

    def script(name: str, *arguments: str) -> list[str]:
        return [python, str(RIVALS / f"{name}.py"), *arguments]

    def mosec(served: Served, port: int) -> list[str]:
        capacity = "1024" if served.is_small else str(2 * served.rows)
        return script(
            "with_mosec", "--address", "127.0.0.1", "--port", str(port), "--timeout", str(int(1e3 * deadline_s)),
            "--capacity", capacity, "--log-level", "warning",
        )  # fmt: skip

    return [
        Contender("FastAPI", lambda _, port: script("plain_fastapi", str(port), "def"), ask_rival, read_rival),
        Contender(
            "FastAPI async",
            lambda _, port: script("plain_fastapi", str(port), "async"),
            ask_rival,
            read_rival,
            only_small=True,
        ),
        Contender("mosec", mosec, ask_rival, read_rival),
        Contender(
            "LitServe", lambda _, port: script("with_litserve", str(port), str(deadline_s)), ask_rival, read_rival
        ),
        Contender(BARE_LOOP, lambda _, port: script("bare_loop", str(port)), ask_rival, read_rival, only_alone=True),
    ]


def compact(body: object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def json_numbers(x: Array) -> list[float]:
    """Each in the shortest form that gives the same float32 again, as a client with a float32 writes it."""
    return [float(str(number)) for number in x.ravel()]


# --- running one --------------------------------------------------------------------------------------------------


@contextmanager
def running(contender: Contender, served: Served, threads: int) -> Iterator[int]:
    """The port of a started server whose answers are right, in every form. Raises ContenderFailed."""
    port = free_port()
    told = {"SERVE_MODEL": str(served.path), "SERVE_THREADS": str(threads), "SERVE_ROWS": str(served.rows)}
    told["FOLDSERVE_WORKERS"] = "0"  # as users have it, chosen: tests have one
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        told["TMPDIR"] = folder  # LitServe's helpers are killed at the end, and leave their sockets
        process = subprocess.Popen(
            contender.command(served, port),
            cwd=folder,
            env=clean_environment(told),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own: whatever it starts can be ended with it
        )
        try:
            for form in FORMS:
                if contender.takes(form, 1) and (served.is_small or form == "binary"):
                    _check(contender, served, form, port, process)
            yield port
        except ContenderFailed as error:
            log.seek(0)
            raise ContenderFailed(f"{error}; {_last_line(log.read())}") from error
        finally:
            _end(process)


def _check(contender: Contender, served: Served, form: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Asks until there is an answer 200, and compares it."""
    request = contender.ask(served, form, None)
    give_up = time.monotonic() + START_S
    while True:
        answer = _asked(port, request)
        if isinstance(answer, tuple):
            break
        if process.poll() is not None or time.monotonic() > give_up:
            raise ContenderFailed(f"{contender.name} does not answer {form}: {answer}, exit code {process.poll()}")
        time.sleep(0.05)
    found = contender.read(form, *answer)
    if found.shape != served.y.shape or not np.allclose(found, served.y, TOLERANCE, TOLERANCE):
        raise ContenderFailed(f"{contender.name} answers {form} with {found.shape} {found.ravel()[:3]}")


def _asked(port: int, request: bytes) -> tuple[bytes, Mapping[str, str]] | str:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    url = f"http://127.0.0.1:{port}{first.split()[1]}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body, headers=headers), timeout=20) as answer:
            return answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read()[:200]!r}"
    except OSError as error:
        return str(error)


def answer_bytes(contender: Contender, served: Served, form: str, port: int) -> int | None:
    """How long every answer must be; None for JSON, whose length depends on its digits."""
    if form == "json":
        return None
    answer = _asked(port, contender.ask(served, form, None))
    if isinstance(answer, str):
        raise ContenderFailed(f"{contender.name} answers {form}: {answer}")
    return len(answer[0])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asked to, first; then the whole group, which is ours alone."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: bytes) -> str:
    lines = log.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
    return lines[-1][:300]


# --- no server ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InProcess:
    """session.run itself: the best plan for one row at a time, and for as many rows as there are clients."""

    plan: str
    rows: int
    rows_per_s: float
    p50_ms: float


def in_process(served: Served, seconds: float, rows: list[int]) -> list[InProcess]:
    script = str(RIVALS / "in_process.py")
    command = [sys.executable, script, str(served.path), str(seconds), *map(str, rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    return [InProcess(**found) for found in json.loads(done.stdout)]
