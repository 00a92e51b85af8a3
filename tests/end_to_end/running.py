"""The real command `foldserve` as a child process on a free loopback port: start, wait, talk, stop. Nothing is mocked.

`with foldserve("--model-repository", path) as service:` always ends with the process gone; a body that ends well also
asserts that SIGTERM led to exit code 0. Logs are kept and shown when something goes wrong. Knows nothing of digits.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Hypothesis seeds the global one alike in every process.
_STATE = tempfile.TemporaryDirectory(prefix="foldserve-state-")
_CHANCE = random.SystemRandom()
COMMANDS = Path(sysconfig.get_path("scripts"))
PATIENCE_S = 60.0
"""How long anything may take before a test gives up; generous, because nothing here is a measurement."""

# A proxy of the machine's must not stand between a test and its own loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, errors included."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Foldserve:
    """One running service. `url` has no trailing slash; `address` is host:port, as tritonclient wants it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._log = log

    def log(self) -> str:
        """What the service has written to stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; a refusal is an answer, not an exception. Raises OSError when nobody listens."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=dict(headers or {}))
        try:
            with _OPENER.open(request, timeout=PATIENCE_S) as answer:
                return Answer(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), error.read())

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Answer:
        """POST of `body` as JSON."""
        return self.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def infer(self, model: str, *inputs: Mapping[str, object]) -> Answer:
        return self.post(f"/v2/models/{model}/infer", {"inputs": list(inputs)})

    def resident_bytes(self) -> int:
        """Needs /proc."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def is_ready(self) -> bool:
        return self.get("/v2/health/ready").status == 200

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Polls `condition`, connection errors counting as no. Fails, with the log, on an early end or a minute on."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass  # not listening yet
            code = self.process.poll()
            assert code is None, f"foldserve ended with code {code} before it was {what}:\n{self.log()}"
            assert time.monotonic() < give_up, f"foldserve was not {what} after {PATIENCE_S:.0f} s:\n{self.log()}"
            time.sleep(0.02)

    def wait_until_live(self) -> None:
        self.wait_until(lambda: self.get("/v2/health/live").status == 200, "live")

    def wait_until_ready(self) -> None:
        self.wait_until(self.is_ready, "ready")

    def wait_until_settled(self) -> None:
        """The repository has been read and no model is LOADING any more; the service may be unready for good."""

        def settled() -> bool:
            told = self.get("/v2/health/ready").body.decode()
            return "LOADING" not in told and "no model has been found" not in told

        self.wait_until(settled, "settled")

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Sends the signal, waits for the end, and returns the exit code (negative: killed by that signal)."""
        self.process.send_signal(signal_number)
        return self.process.wait(PATIENCE_S)


@contextmanager
def foldserve(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    launcher: Sequence[str | Path] = (),
    wait: str = "ready",
    port: int | None = None,
) -> Iterator[Foldserve]:
    """A running service. `wait` is how far start-up must have come: "ready", "settled", "live" or "nothing".

    `launcher` stands before the command, as in `strace foldserve ...`; `port` None: a free one. When the body leaves
    the process running, it is stopped with SIGTERM and must then exit with code 0.
    """
    port = port or free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*map(str, launcher), str(COMMANDS / "foldserve"), *map(str, arguments), "--port", str(port)],
                cwd=cwd or folder,
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        service = Foldserve(process, port, log)
        try:
            if wait != "nothing":
                getattr(service, f"wait_until_{wait}")()
            yield service
            if process.poll() is None:
                code = service.stop()
                assert code == 0, f"SIGTERM: exit code {code}, expected 0; log:\n{service.log()}"
        except BaseException as error:
            error.add_note(f"log of foldserve:\n{service.log()}")
            raise
        finally:
            process.kill()  # a no-op when it has ended
            process.wait()


def run_command(name: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`foldtrain ...` or `foldserve ...` to its end, output captured as text."""
    return subprocess.run(
        [str(COMMANDS / name), *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would change the service: its own settings, ONNX Runtime's, and `CI`.

    ONNX Runtime's telemetry is silent where CI is set; a test that it is off must run as on a user's machine. No grace
    at SIGTERM: no load balancer has to learn of it, and every test would wait. One process, however many cores there
    are: what is shared out among workers (limits, lines of the log) is the business of the tests that ask for them.
    What is measured is not remembered among the user's own files.
    """
    kept = {
        key: value for key, value in os.environ.items() if key != "CI" and not key.startswith(("FOLDSERVE_", "ORT_"))
    }
    ours = {"FOLDSERVE_DRAIN_GRACE_S": "0", "FOLDSERVE_WORKERS": "1", "STATE_DIRECTORY": _STATE.name}
    return kept | ours | dict(extra or {})


def free_port() -> int:
    """A loopback port that was free a moment ago, below those that the kernel gives to clients: one of these may be
    taken by a connection in between. (By another server as well; then the start fails, and says so.)"""
    while True:
        port = _CHANCE.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
