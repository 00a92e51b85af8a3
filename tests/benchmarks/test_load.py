"""The load generator against servers that answer in every way a server may, over real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.benchmarks.load import Load, LoadFailed, NoCompiler, build, post, read, run

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""Writes one answer, given how many requests came before on all connections."""

REQUEST = post("/", b"12345", {"Content-Type": "text/plain"})
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("load"))
    except NoCompiler as error:
        pytest.skip(str(error))


class Server:
    def __init__(self, answer: Answer) -> None:
        self.port = 0
        self.requests: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, ready: threading.Event, end: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            async for request in requests(reader):
                self.requests.append(request)
                await self._answer(len(self.requests) - 1, writer)
                await writer.drain()
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def requests(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            yield head + await reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(ready, end),))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)
        loop.close()


def always(*pieces: bytes, close: bool = False) -> Answer:
    """The same answer each time, written piece by piece, each in a packet of its own as far as one can ask for it."""

    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return answer


def loaded(program: Path, answer: Answer, request: bytes = REQUEST, **options: float | bool | None) -> Load:
    with serving(answer) as server:
        return run(program, server.port, request, **{"seconds": 0.2, "timeout_ms": 5000} | options)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;ignored=1\r\nbc\r\n0\r\nTrailer: x\r\n\r\n"

FRAMINGS = {
    "content length": always(PLAIN),
    "byte by byte": always(*(PLAIN[i : i + 1] for i in range(len(PLAIN)))),
    "names in lower case, spaces, long headers": always(
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 5000 + b"\r\ncontent-length:  3 \r\n\r\nabc"
    ),
    "chunked": always(CHUNKED),
    "chunked, byte by byte": always(*(CHUNKED[i : i + 1] for i in range(len(CHUNKED)))),
    "after 100 Continue": always(b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN),
    "connection closed after each": always(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), close=True),
    "HTTP/1.0, up to the end": always(b"HTTP/1.0 200 OK\r\n\r\nabc", close=True),
}


@pytest.mark.parametrize("answer", FRAMINGS.values(), ids=FRAMINGS)
def test_every_framing_of_an_answer_is_read(program: Path, answer: Answer):
    found = loaded(program, answer, connections=3, expect_bytes=3)

    assert found.refuse_unless_clean().by_status[200] > 3


def test_a_body_is_compared_with_what_it_must_be(program: Path, tmp_path: Path):
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(b"abc")
    wrong.write_bytes(b"abd")
    with serving(always(CHUNKED)) as server:
        found = [run(program, server.port, REQUEST, seconds=0.1, expect_file=file) for file in (right, wrong)]  # type: ignore[arg-type]

    assert found[0].wrong == 0
    assert found[1].wrong == found[1].by_status[200]


@pytest.mark.parametrize("length", [2, 4])
def test_a_body_of_another_length_is_wrong(program: Path, length: int):
    found = loaded(program, always(PLAIN), expect_bytes=length)

    assert found.wrong == found.by_status[200] > 0
    with pytest.raises(LoadFailed, match="of the wrong length"):
        found.refuse_unless_clean()


@pytest.mark.parametrize("connections", [1, 7])
def test_the_server_gets_the_request_unchanged_over_connections_that_are_kept(program: Path, connections: int):
    request = post("/v2", bytes(range(256)) * 2400, {"A": "b"})
    with serving(always(PLAIN)) as server:
        found = run(program, server.port, request, seconds=0.3, connections=connections)
        got = list(server.requests)

    assert set(got) == {request}
    assert len(got) >= found.by_status[200] > 0
    assert server.connections == connections
    assert found.reconnects == 0


def test_closed_connections_are_opened_again_and_counted(program: Path):
    found = loaded(program, FRAMINGS["connection closed after each"])

    assert found.errors == 0
    assert found.reconnects >= found.by_status[200] > 1


def test_refusals_are_apart_from_answers_and_never_good(program: Path):
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSAL if number % 2 else PLAIN)

    found = loaded(program, answer, deadline_ms=5000)

    assert found.by_status.keys() == {200, 503}
    assert found.good == found.by_status[200]
    assert found.refused.p50 is not None
    with pytest.raises(LoadFailed, match=r"others \{503"):
        found.refuse_unless_clean()


BROKEN = {
    "not HTTP": always(b"SSH-2.0\r\n\r\n"),
    "no status": always(b"HTTP/1.1 abc\r\n\r\n"),
    "a length that is no number": always(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"),
    "a chunk that is longer than it says": always(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n"
    ),
    "more than one answer": always(PLAIN + PLAIN),
    "an end in the middle": always(PLAIN[:-1], close=True),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_what_is_not_an_answer_is_an_error(program: Path, answer: Answer):
    found = loaded(program, answer)

    assert found.errors > 0
    assert not found.by_status
    assert found.ok.p50 is None


async def never(number: int, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("rate", [0, 100])
def test_a_server_that_never_answers_is_all_timeouts_and_the_run_ends(program: Path, rate: float):
    found = loaded(program, never, connections=2, rate=rate, timeout_ms=100)

    assert found.timeouts > 0
    assert not found.by_status


def test_a_port_where_nobody_listens_is_all_errors(program: Path):
    with serving(always(PLAIN)) as server:
        port = server.port
    found = run(program, port, REQUEST, seconds=0.1, timeout_ms=100)

    assert found.errors > 0
    assert not found.by_status


def test_the_open_loop_sends_what_is_due_whatever_becomes_of_it(program: Path):
    found = loaded(program, always(PLAIN), rate=500, connections=20)

    assert found.requests == pytest.approx(100, abs=1)
    assert found.by_status == {200: found.requests}


def slow(seconds: float) -> Answer:
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        writer.write(PLAIN)

    return answer


def test_latency_counts_from_the_time_a_request_was_due(program: Path):
    """Thirty requests due within 0.3 s, over one connection that answers one each 0.02 s: the last one has waited."""
    found = loaded(program, slow(0.02), rate=100, connections=1, seconds=0.3, deadline_ms=100)

    assert found.by_status == {200: found.requests}
    assert found.ok.maximum is not None and found.ok.maximum > 1000 * (30 * 0.02 - 0.3) - 20
    assert 0 < found.good < found.by_status[200]


def test_what_never_gets_a_connection_is_a_timeout(program: Path):
    found = loaded(program, slow(0.1), rate=200, connections=1, timeout_ms=150)

    assert found.timeouts > 10
    assert found.requests == pytest.approx(40, abs=1)


def test_random_arrivals_are_the_same_for_the_same_seed_only(program: Path):
    with serving(always(PLAIN)) as server:
        counts = [
            run(program, server.port, REQUEST, seconds=0.3, rate=1000, poisson=True, seed=seed, connections=50).requests
            for seed in (1, 1, 2, 3, 4)
        ]

    assert counts[0] == counts[1]
    assert len(set(counts)) > 1
    assert all(abs(count - 300) < 5 * 300**0.5 for count in counts)


def test_warm_up_is_not_counted(program: Path):
    async def answer(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(PLAIN if number >= 10 else REFUSAL)

    found = loaded(program, answer, rate=100, seconds=0.2, warm_up=0.2)

    assert found.by_status == {200: pytest.approx(20, abs=1)}


def test_the_line_it_prints_is_read_field_by_field():
    times = '{"p50": 1.5, "p90": 2, "p99": 3, "p99.9": 4, "max": 5}'
    nothing = times.replace("1.5", "null")
    found = read(
        '{"by_status": {"200": 6, "503": 2}, "requests": 8, "seconds": 2.0, "good": 4, "errors": 1, "timeouts": 3, '
        '"wrong": 0, "reconnects": 7, "latest_send_ms": 0.5, "cpu_s": 0.25, '
        f'"ok_ms": {times}, "refused_ms": {nothing}}}'
    )

    assert (found.ok_per_s, found.good_per_s, found.requests) == (3.0, 2.0, 12)
    assert (found.ok.p50, found.ok.p99_9, found.refused.p50) == (1.5, 4, None)


def test_a_request_says_how_long_it_is():
    assert post("/a", b"xyz", {"B": "c"}).endswith(b"B: c\r\nContent-Length: 3\r\n\r\nxyz")
