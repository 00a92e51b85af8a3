"""Telling much takes long; others are served meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

from service.metrics_api import metrics_text
from service.registry import Registry
from service.settings import Settings
from service.statistics import ModelStatistics


def test_others_are_served_while_many_versions_are_told_of(tmp_path: Path) -> None:
    registry = Registry(Settings(model_repository=tmp_path))
    for version in range(1, 101):
        ModelStatistics(registry.pages, "m", version)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> bytes:
        beside = asyncio.ensure_future(others())
        text = await metrics_text(registry)
        beside.cancel()
        return text

    text = asyncio.run(run()).decode()
    assert text.count("nv_inference_count{") == 100
    assert turns > 5  # of some forty slices on any machine that takes 40 ms for it
