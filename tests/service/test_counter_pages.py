"""Pages of counters, in memory of one process and in memory that a forked child writes, killed in the middle or not."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import counter_pages
from service.counter_pages import PAGE_BYTES, CounterPage, Kind, Labels, PageDamaged, PageReader, Pages, mark_dead
from tests.service.forked import forked

A: Labels = (("model", "a"), ("version", "1"))
B: Labels = (("model", "b"), ("version", "1"))


def shared(size_bytes: int = PAGE_BYTES) -> mmap.mmap:
    return mmap.mmap(-1, size_bytes)


@pytest.fixture(params=[pytest.param(None, id="private"), pytest.param(shared, id="shared")])
def page(request: pytest.FixtureRequest) -> CounterPage:
    return CounterPage(request.param() if request.param else None)


def add(page: CounterPage, labels: Labels, value: float, kind: Kind = Kind.COUNTER, family: str = "f") -> None:
    page.cells[page.series(kind, family, labels)] += value


# --- one page -----------------------------------------------------------------------------------------------------


def test_a_series_that_nobody_has_added_to_is_zero_and_one_that_is_not_there_is_empty(page: CounterPage) -> None:
    page.series(Kind.COUNTER, "f", A, cells=3)
    pages = Pages(page)
    assert pages.value("f", A) == [0, 0, 0]
    assert pages.value("f", B) == []
    assert pages.family("g") == {}


def test_what_is_added_is_read(page: CounterPage) -> None:
    place = page.series(Kind.COUNTER, "f", A, cells=2)
    page.cells[place] += 2**53 - 1
    page.cells[place + 1] += 0.5
    assert Pages(page).value("f", A) == [2**53 - 1, 0.5]


def test_a_series_is_made_once(page: CounterPage) -> None:
    assert page.series(Kind.COUNTER, "f", A) == page.series(Kind.COUNTER, "f", A)
    assert page.series(Kind.COUNTER, "f", A) != page.series(Kind.COUNTER, "f", B)


def test_a_reader_finds_series_that_came_after_it(page: CounterPage) -> None:
    pages = Pages(page)
    for number in range(50):
        labels = (("n", str(number)),)
        add(page, labels, number)
        assert pages.value("f", labels) == [number]
    assert list(pages.family("f").values()) == [[number] for number in range(50)]


def test_a_family_can_be_asked_for_what_begins_with_some_labels(page: CounterPage) -> None:
    for labels in (A, B):
        for rows in ("1", "2"):
            add(page, (*labels, ("rows", rows)), 1)
    assert list(Pages(page).family("f", A)) == [(*A, ("rows", "1")), (*A, ("rows", "2"))]


@pytest.mark.parametrize("name", ['é\n"\\', "\0", "\udcff", "a" * 10_000])
def test_any_name_comes_back_as_it_was(name: str, page: CounterPage) -> None:
    add(page, (("model", name),), 1)
    assert Pages(page).family("f") == {(("model", name),): [1]}


# --- a full page --------------------------------------------------------------------------------------------------


def test_a_full_page_counts_nowhere_says_so_once_and_keeps_what_it_has(caplog: pytest.LogCaptureFixture) -> None:
    page = CounterPage(shared(mmap.PAGESIZE))
    add(page, A, 7)
    with caplog.at_level(logging.ERROR):
        for number in range(200):
            place = page.series(Kind.COUNTER, "f", (("n", str(number)),), cells=20)
            page.cells[place + 19] += 1
    pages = Pages(page)
    assert len(caplog.records) == 1
    assert "full" in caplog.text
    assert 190 < pages.dropped < 200
    assert pages.value("f", A) == [7]
    kept = [values for labels, values in pages.family("f").items() if labels != A]
    assert [values[19] for values in kept] == [1] * (200 - pages.dropped)


# --- memory that is no page ---------------------------------------------------------------------------------------


def test_memory_that_nobody_has_begun_to_write_reads_as_nothing() -> None:
    pages = Pages(CounterPage(), [shared()])
    assert pages.family("f") == {}
    assert pages.living == 1


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(lambda memory: memory.__setitem__(slice(0, 8), b"stranger"), "stranger", id="foreign"),
        pytest.param(
            lambda memory: memory.__setitem__(slice(8, 16), b"\xff" * 8), "uses", id="more-used-than-there-is"
        ),
        pytest.param(lambda memory: memory.__setitem__(slice(-8, None), b"\xff" * 8), None, id="behind-the-end"),
        pytest.param(
            lambda memory: memory.__setitem__(slice(FIRST, FIRST + 4), b"\xff" * 4), "is no series", id="length"
        ),
        pytest.param(lambda memory: memory.__setitem__(slice(FIRST + 20, FIRST + 21), b"!"), "is no series", id="name"),
    ],
)
def test_damaged_memory_is_an_error_with_a_name(damage: Callable[[Any], None], told: str | None) -> None:
    buffer = shared()
    add(CounterPage(buffer), A, 1)
    with memoryview(buffer) as memory:
        damage(memory)
    reader = PageReader(buffer)
    if told is None:
        reader.refresh()
        return
    with pytest.raises(PageDamaged, match=told):
        reader.refresh()
    with pytest.raises(PageDamaged, match=told):
        CounterPage(buffer)


FIRST = counter_pages._SERIES_BEGIN


def test_what_a_killed_writer_had_not_finished_is_not_read_and_is_written_over() -> None:
    buffer = shared()
    page = CounterPage(buffer)
    add(page, A, 1)
    (used,) = memoryview(buffer).cast("B").cast("Q")[1:2]
    memoryview(buffer)[used : used + 64] = b"\xff" * 64
    assert Pages(CounterPage(), [buffer]).family("f") == {A: [1]}
    add(CounterPage(buffer), B, 0)
    assert Pages(CounterPage(), [buffer]).family("f") == {A: [1], B: [0]}


# --- several pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "both", "survivor"),
    [
        pytest.param(Kind.COUNTER, 5, 5, id="counter"),
        pytest.param(Kind.MAXIMUM, 3, 3, id="maximum"),
        pytest.param(Kind.GAUGE, 5, 2, id="gauge"),
        pytest.param(Kind.LARGEST_GAUGE, 3, 2, id="largest-gauge"),
    ],
)
def test_each_kind_is_added_up_in_its_way_and_measures_die_with_their_process(
    kind: Kind, both: float, survivor: float
) -> None:
    other = shared()
    own = CounterPage()
    add(own, A, 2, kind)
    add(CounterPage(other), A, 3, kind)
    pages = Pages(own, [other])
    assert (pages.value("f", A), pages.living) == ([both], 2)
    mark_dead(other)
    assert (pages.value("f", A), pages.living) == ([survivor], 1)


def test_who_takes_over_a_page_counts_on_and_measures_anew() -> None:
    buffer = shared()
    first = CounterPage(buffer)
    add(first, A, 3)
    add(first, A, 3, Kind.GAUGE, "g")
    mark_dead(buffer)
    second = CounterPage(buffer)
    add(second, A, 1)
    pages = Pages(second)
    assert (pages.value("f", A), pages.value("g", A), pages.living) == ([4], [0], 1)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "c"]), st.integers(0, 1000)), max_size=60),
    st.sets(st.integers(0, 2)),
)
def test_any_interleaving_of_writers_sums_to_what_was_recorded(
    steps: list[tuple[int, str, int]], killed: set[int]
) -> None:
    buffers = [shared(16 * mmap.PAGESIZE) for _ in range(3)]
    writers = [CounterPage(buffer) for buffer in buffers]
    pages = Pages(CounterPage(shared(mmap.PAGESIZE)), buffers)
    expected: dict[str, int] = {}
    for writer, name, value in steps:
        add(writers[writer], (("model", name),), value)
        expected[name] = expected.get(name, 0) + value
        assert pages.value("f", (("model", name),)) == [expected[name]]
    for writer in killed:
        mark_dead(buffers[writer])
    assert {labels[0][1]: values for labels, values in pages.family("f").items()} == {
        name: [value] for name, value in expected.items()
    }


# --- other processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def written() -> Iterator[mmap.mmap]:
    """A page in which a child appends series, and adds one to each as soon as it is there, until it is killed."""
    buffer = shared()

    def write() -> None:
        page = CounterPage(buffer)
        number = 0
        while True:
            add(page, (("n", str(number % 20_000)),), 1)
            number += 1

    with forked(write):
        yield buffer


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_page_can_be_read_at_any_moment_while_another_process_writes_it(written: mmap.mmap) -> None:
    pages = Pages(CounterPage(), [written])
    seen, before = 0, 0.0
    give_up = time.monotonic() + 60
    while seen < 5_000:
        found = pages.family("f")
        total = sum(values[0] for values in found.values())
        # The last one may be there already, and not be counted in yet.
        assert len(found) >= seen
        assert total >= max(before, len(found) - 1)
        seen, before = len(found), total
        assert time.monotonic() < give_up


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_what_a_process_has_counted_survives_its_kill() -> None:
    buffer = shared()

    def write() -> None:
        page = CounterPage(buffer)
        for _ in range(1000):
            add(page, A, 1)
        add(page, A, 9, Kind.GAUGE, "g")

    pages = Pages(CounterPage(), [buffer])
    with forked(write) as until_done:
        until_done()
        assert (pages.value("f", A), pages.value("g", A)) == ([1000], [9])
    mark_dead(buffer)
    assert (pages.value("f", A), pages.value("g", A)) == ([1000], [])
