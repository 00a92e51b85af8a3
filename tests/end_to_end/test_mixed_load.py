"""A few thousand requests of all kinds at once; a hundred thousand are `make test-load`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.end_to_end.running import foldserve
from tests.load.mixed import KINDS, save_repository, storm


def test_every_request_of_a_mixture_gets_its_own_answer(tmp_path: Path) -> None:
    with foldserve("--model-repository", save_repository(tmp_path)) as service:
        tally = asyncio.run(storm(service, count=3000, seed=1))
        assert tally.wrong == []
        assert "Traceback" not in service.log()
    silent = {"hangs_up_in_the_body", "hangs_up_before_the_answer"}
    assert {name for name, _ in tally.statuses} == {kind.__name__ for kind in KINDS} - silent
