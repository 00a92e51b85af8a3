"""Two ends of a real socket pair: what one asks the other answers, in both directions, until one of them ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from service.channel import Channel, ChannelClosed, Handler, RemoteDefect
from service.errors import LoadFailed, NotFound, QueueFull, ServiceError


def talking(
    test: Callable[[Channel, Channel], Awaitable[None]],
    left: Mapping[str, Handler] | None = None,
    right: Mapping[str, Handler] | None = None,
) -> None:
    """Runs `test` on both ends, which answer as `left` and `right` say."""

    async def scenario() -> None:
        ends = [Channel(left or {}), Channel(right or {})]
        begun = [asyncio.Event(), asyncio.Event()]
        served = [
            asyncio.ensure_future(end.serve(sock, begun=event.set))
            for end, sock, event in zip(ends, socket.socketpair(), begun, strict=True)
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        await test(*ends)
        for end in ends:
            end.close()
        await asyncio.gather(*served)

    asyncio.run(asyncio.wait_for(scenario(), 30))


async def double(number: int) -> int:
    return 2 * number


def test_each_end_answers_the_other():
    async def test(left: Channel, right: Channel) -> None:
        assert await right.call("double", number=4) == 8
        assert await left.call("quadruple", number=4) == 16

    async def quadruple(number: int) -> int:
        return 4 * number

    talking(test, {"double": double}, {"quadruple": quadruple})


def test_answers_find_their_questions_in_whatever_order_they_come():
    async def later(number: int) -> int:
        await asyncio.sleep((10 - number) / 1000)
        return number

    async def test(left: Channel, _: Channel) -> None:
        assert await asyncio.gather(*(left.call("later", number=number) for number in range(10))) == list(range(10))

    talking(test, right={"later": later})


def test_a_handler_may_ask_back():
    ends: list[Channel] = []

    async def echo(number: int) -> Any:
        return await ends[1].call("double", number=number)

    async def test(*both: Channel) -> None:
        ends.extend(both)
        assert await both[0].call("echo", number=3) == 6

    talking(test, {"double": double}, {"echo": echo})


def test_what_is_longer_than_any_buffer_arrives():
    async def test(left: Channel, _: Channel) -> None:
        assert await left.call("echo", text="x" * 3_000_000) == "x" * 3_000_000

    async def echo(text: str) -> str:
        return text

    talking(test, right={"echo": echo})


@pytest.mark.parametrize(
    "error", [NotFound("no 'm'"), LoadFailed("it's broken\nby é"), QueueFull("busy", retry_after_s=2.5)]
)
def test_a_service_error_arrives_as_what_it_was_raised_as(error: ServiceError):
    async def fail() -> None:
        raise error

    async def test(left: Channel, _: Channel) -> None:
        with pytest.raises(type(error)) as caught:
            await left.call("fail")
        assert str(caught.value) == str(error)
        assert vars(caught.value) == vars(error)

    talking(test, right={"fail": fail})


def test_a_defect_is_logged_where_it_is_and_told_in_a_line(caplog: pytest.LogCaptureFixture):
    async def fail() -> None:
        raise ZeroDivisionError("oh")

    async def test(left: Channel, _: Channel) -> None:
        with pytest.raises(RemoteDefect, match=r"^ZeroDivisionError: oh$"):
            await left.call("fail")
        with pytest.raises(RemoteDefect, match="KeyError"):
            await left.call("what nobody answers")

    talking(test, right={"fail": fail})
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True] * 2


def test_when_the_other_end_closes_open_calls_end_and_no_new_one_begins():
    async def never() -> None:
        await asyncio.Event().wait()

    async def test(left: Channel, right: Channel) -> None:
        call = asyncio.ensure_future(left.call("never"))
        await asyncio.sleep(0.01)
        right.close()
        with pytest.raises(ChannelClosed):
            await call
        with pytest.raises(ChannelClosed):
            await left.call("never")

    talking(test, right={"never": never})


def test_before_it_is_served_nobody_can_be_asked():
    with pytest.raises(ChannelClosed):
        asyncio.run(Channel({}).call("anything"))


def test_half_a_message_of_a_process_that_was_killed_is_its_end():
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        theirs.sendall(b'{"answer": 0, "val')
        theirs.close()
        await asyncio.wait_for(Channel({}).serve(ours), 10)

    asyncio.run(scenario())
