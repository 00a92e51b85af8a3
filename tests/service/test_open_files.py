from __future__ import annotations

import resource

import pytest

from service.open_files import connections_within, raise_limit


def test_the_soft_limit_becomes_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert raise_limit() == (None if before[1] == resource.RLIM_INFINITY else before[1])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("limit", "wanted", "room"),
    [
        pytest.param(None, 10**9, 10**9, id="no-limit"),
        pytest.param(20_000, 16_384, 16_384, id="enough"),
        pytest.param(4096, 16_384, 3584, id="too-few"),
        pytest.param(256, 16_384, 128, id="hardly-any"),
    ],
)
def test_connections_are_as_many_as_files_leave_room_for(
    limit: int | None, wanted: int, room: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert connections_within(limit, wanted) == room
    assert ("cannot be reached" in caplog.text) is (room < wanted)
