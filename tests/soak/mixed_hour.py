"""An hour of everything at once: requests of all kinds, hostile clients, reloads, and processes that die.

Several workers serve tests/load's mixture while, every few seconds, something happens to the server: a worker is
killed, or told to end, all are restarted in turn, the model is loaded again, a new version is published and loaded,
another model comes and goes. A request may be lost only with the worker that is killed while it holds the connection;
each other one gets its own answer, or a refusal with Retry-After. At the end the server stops with exit code 0, and
neither the supervisor's memory and files nor a worker's memory have grown.

    python -m tests.soak.mixed_hour --minutes 60
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.processes import children
from tests.end_to_end.running import Foldserve, foldserve
from tests.load.mixed import KINDS, MOST_ON_ONE, read_answer, resident_bytes, save_repository
from tests.service.handmade import DOUBLE, save_version

WORKERS = 2
CONNECTIONS = 16
SLOW_SENDERS = 8
BETWEEN_TROUBLES_S = (3.0, 9.0)
ANSWER_S = 60.0
# Beyond what it had when a fifth of the time was over: of the supervisor, and of the largest worker.
SUPERVISOR_GROWTH_BYTES = 8 * 2**20
WORKER_GROWTH_BYTES = 40 * 2**20


@dataclass(slots=True)
class Found:
    """What came of it. `kills`: when workers were killed, on the clock of `time.monotonic`."""

    kills: list[float] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost_with_a_killed_worker: int = 0
    wrong: list[str] = field(default_factory=list)
    supervisor: list[tuple[int, int]] = field(default_factory=list)
    """Resident bytes and open files, now and then."""
    workers_bytes: list[int] = field(default_factory=list)
    """Of the largest worker at that moment."""


# --- clients ------------------------------------------------------------------------------------------------------


async def client(service: Foldserve, chance: random.Random, end_s: float, found: Found) -> None:
    """One connection after the other, until the end."""
    host, _, port = service.address.partition(":")
    kinds, weights = list(KINDS), list(KINDS.values())
    while time.monotonic() < end_s:
        opened_s = time.monotonic()
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            for _ in range(chance.randrange(1, MOST_ON_ONE)):
                kind = chance.choices(kinds, weights)[0]
                request = kind(chance)
                writer.write(request.sent)
                if request.check is None:
                    break
                async with asyncio.timeout(ANSWER_S):
                    status, headers, body = await read_answer(reader)
                found.statuses[status] += 1
                is_refusal = status == 503 and int(headers.get("retry-after", "0")) >= 1
                if not is_refusal and not request.check(status, headers, body):
                    found.wrong.append(f"{kind.__name__}: {status} {body[:200]!r}")
                if request.closes or headers.get("connection") == "close":
                    break
        except (OSError, EOFError, TimeoutError) as error:
            if any(killed_s >= opened_s for killed_s in found.kills):
                found.lost_with_a_killed_worker += 1
            else:
                found.wrong.append(f"{type(error).__name__} instead of an answer")
        finally:
            writer.close()


async def slow_sender(service: Foldserve, end_s: float) -> None:
    """A byte a second, of a request that never ends; whatever becomes of it, it begins again."""
    host, _, port = service.address.partition(":")
    while time.monotonic() < end_s:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
            for byte in b"POST /v2/models/double/infer HTTP/1.1\r\nHost: h\r\nX-Slow: " + b"x" * 100:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
                if time.monotonic() > end_s:
                    break
            writer.close()
        except OSError:
            await asyncio.sleep(0.1)


# --- what happens to the server -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Trouble:
    """Each method is one kind. They leave the server complete before the next one comes."""

    service: Foldserve
    repository: Path
    chance: random.Random
    found: Found
    version: int = 1

    async def kill_a_worker(self) -> None:
        victim = self.chance.choice(children(self.service.process.pid))
        self.found.kills.append(time.monotonic())
        os.kill(victim, signal.SIGKILL)
        self.found.kills.append(time.monotonic() + 0.5)  # what the kernel still had for it
        await self._until_replaced({victim})

    async def end_a_worker(self) -> None:
        victim = self.chance.choice(children(self.service.process.pid))
        os.kill(victim, signal.SIGTERM)
        await self._until_replaced({victim})

    async def restart_all(self) -> None:
        before = set(children(self.service.process.pid))
        self.service.process.send_signal(signal.SIGHUP)
        await self._until_replaced(before)

    async def load_again(self) -> None:
        await self._post("/v2/repository/models/double/load")

    async def publish(self) -> None:
        self.version += 1
        await asyncio.to_thread(save_version, self.repository, "double", DOUBLE, version=self.version)
        await self._post("/v2/repository/models/double/load")

    async def come_and_go(self) -> None:
        await asyncio.to_thread(save_version, self.repository, "guest", DOUBLE)
        await self._post("/v2/repository/models/guest/load")
        await self._post("/v2/repository/models/guest/unload")

    async def _post(self, path: str) -> None:
        answer = await asyncio.to_thread(self.service.request, "POST", path)
        if answer.status != 200:
            self.found.wrong.append(f"{path}: {answer.status} {answer.body[:200]!r}")

    async def _until_replaced(self, gone: set[int]) -> None:
        give_up_s = time.monotonic() + ANSWER_S
        while gone & set(now := children(self.service.process.pid)) or len(now) != WORKERS:
            if time.monotonic() > give_up_s:
                self.found.wrong.append(f"processes {gone} were not replaced: there are {now}")
                return
            await asyncio.sleep(0.05)


async def troubles(service: Foldserve, repository: Path, seed: int, end_s: float, found: Found) -> None:
    trouble = Trouble(service, repository, random.Random(seed), found)
    kinds: list[Callable[[], Awaitable[None]]] = [
        trouble.kill_a_worker, trouble.end_a_worker, trouble.restart_all, trouble.load_again, trouble.publish,
        trouble.come_and_go,
    ]  # fmt: skip
    while (left_s := end_s - time.monotonic()) > BETWEEN_TROUBLES_S[1]:
        await asyncio.sleep(min(left_s, trouble.chance.uniform(*BETWEEN_TROUBLES_S)))
        kind = trouble.chance.choice(kinds)
        await kind()
        found.troubles[kind.__name__] += 1
        pid = service.process.pid
        found.supervisor.append((resident_bytes(pid), len(list(Path(f"/proc/{pid}/fd").iterdir()))))
        found.workers_bytes.append(max(resident_bytes(worker) for worker in children(pid)))


# --- all of it ----------------------------------------------------------------------------------------------------


async def soak(service: Foldserve, repository: Path, minutes: float, seed: int) -> Found:
    found = Found()
    end_s = time.monotonic() + 60 * minutes
    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(client(service, random.Random(f"{seed} {number}"), end_s, found))
        for _ in range(SLOW_SENDERS):
            group.create_task(slow_sender(service, end_s))
        group.create_task(troubles(service, repository, seed, end_s, found))
    return found


def judged(found: Found, log: str, code: int) -> list[str]:
    """What is wrong, in lines."""
    wrong = [*found.wrong]
    if code != 0:
        wrong.append(f"SIGTERM led to exit code {code}")
    if "Traceback" in log:
        wrong.append(f"the server logged a traceback: {log[log.index('Traceback') :][:2000]}")
    warm = len(found.supervisor) // 5
    for what, sizes, most in (
        ("the supervisor's memory", [size for size, _ in found.supervisor[warm:]], SUPERVISOR_GROWTH_BYTES),
        ("the supervisor's open files", [count for _, count in found.supervisor[warm:]], 8),
        ("the largest worker's memory", found.workers_bytes[warm:], WORKER_GROWTH_BYTES),
    ):
        if sizes and max(sizes) - sizes[0] > most:
            wrong.append(f"{what} grew from {sizes[0]:,} to {max(sizes):,}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.mixed_hour", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = save_repository(Path(folder))
        flags = ("--workers", str(WORKERS), "--drain-grace-s", "1", "--head-timeout-s", "5")
        with foldserve("--model-repository", repository, *flags) as service:
            found = asyncio.run(soak(service, repository, arguments.minutes, arguments.seed))
            code = service.stop()
            wrong = judged(found, service.log(), code)
    requests = sum(found.statuses.values())
    print(f"{requests} answers in {arguments.minutes:g} minutes: {dict(sorted(found.statuses.items()))}")
    print(f"troubles: {dict(found.troubles)}; requests lost with a killed worker: {found.lost_with_a_killed_worker}")
    if found.supervisor:
        print(
            f"at the end the supervisor held {found.supervisor[-1][0] / 2**20:.0f} MiB and {found.supervisor[-1][1]} "
            f"files, the largest worker {found.workers_bytes[-1] / 2**20:.0f} MiB"
        )
    for line in wrong[:20]:
        print(f"WRONG {line}")
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
