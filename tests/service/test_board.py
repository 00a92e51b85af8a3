"""Who is ready is read from memory that processes share."""

from __future__ import annotations

import mmap
import tempfile

import pytest

from service.board import Board, Seat

TAKEN, LISTENING, READY = Seat.TAKEN, Seat.LISTENING, Seat.READY
SERVES = TAKEN | LISTENING | READY


def board(*seats: Seat, started: bool = True) -> Board:
    made = Board(mmap.mmap(-1, Board.bytes_for(len(seats))), len(seats))
    for seat, state in enumerate(seats):
        made.write(seat, state)
    if started:
        made.started()
    return made


@pytest.mark.parametrize(
    ("seats", "ready"),
    [
        ([SERVES, SERVES, Seat(0), Seat(0)], True),
        ([SERVES, TAKEN | LISTENING, Seat(0)], False),  # one that is asked cannot answer
        ([SERVES, TAKEN, TAKEN | READY], True),  # new ones that load, and one that leaves: nobody asks them
        ([TAKEN | READY], False),  # nobody listens
        ([LISTENING | READY], False),  # of a process that has ended
        ([Seat(0)], False),
    ],
)
def test_the_server_is_ready_when_all_are_that_are_asked(seats: list[Seat], ready: bool):
    assert board(*seats).is_ready() is ready


def test_it_is_not_before_the_first_of_all_workers_have_loaded_nor_once_it_stops():
    starting, stopping = board(SERVES, started=False), board(SERVES)
    stopping.stopping()

    assert not starting.is_ready()
    assert not stopping.is_ready()
    assert (starting.has_started, stopping.has_started, starting.is_stopping, stopping.is_stopping) == (
        False, True, False, True,
    )  # fmt: skip


def test_flags_of_one_seat_change_alone():
    made = board(TAKEN, TAKEN | READY)
    made.set(0, LISTENING, on=True)
    made.set(1, READY, on=False)

    assert [made.read(seat) for seat in range(2)] == [TAKEN | LISTENING, TAKEN]
    made.write(1, Seat(0))
    assert made.taken() == [0]


def test_whoever_has_mapped_the_same_memory_sees_it():
    with tempfile.TemporaryFile() as file:
        file.truncate(Board.bytes_for(2))
        ours, theirs = (Board(mmap.mmap(file.fileno(), Board.bytes_for(2)), 2) for _ in range(2))
        ours.write(1, TAKEN | READY)
        theirs.started()

        assert theirs.read(1) == TAKEN | READY
        assert ours.has_started
