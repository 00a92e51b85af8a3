"""A run's metrics are what TensorBoard's own reader finds. `make test-extras` has the package, `make test` has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.__main__ import main
from training.tensorboard import FOLDER

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_a_run_tells_tensorboard_what_its_metrics_hold(tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ["train", "breast-cancer", "--set", "tensorboard=true", "--set", "epochs=3", "--out", str(run)]
    assert main(asked) == 0

    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events = accumulator.EventAccumulator(str(run / FOLDER))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss", "train_accuracy"}
    for name in events.Tags()["scalars"]:
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["steps"], pytest.approx(line[name])) for line in told
        ]
