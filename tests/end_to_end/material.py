"""Digits as requests, and copies of a model that may be damaged. Knows nothing of starting a service."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.datasets.dataset import Examples

DIGITS = "digits"
ROWS_A_REQUEST = 60  # below the recipe's max_batch_size; the 360 held-out digits are a multiple of it


def image_input(images: npt.NDArray[np.float32]) -> dict[str, object]:
    """`images` [rows, 1, 8, 8] as the JSON form of the one input of `digits`."""
    return {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}


def accuracy(predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]], examples: Examples) -> float:
    """Share of `examples` whose largest logit is the label's; `predict` maps [rows, 1, 8, 8] to [rows, 10]."""
    right = 0
    for start in range(0, len(examples), ROWS_A_REQUEST):
        rows = slice(start, start + ROWS_A_REQUEST)
        logits = predict(examples.only[rows])
        assert logits.shape == (len(examples.labels[rows]), 10)
        right += int(np.sum(logits.argmax(axis=1) == examples.labels[rows]))
    return right / len(examples)


def copy_model(source: Path, target: Path) -> None:
    """Copies a model's directory; its config takes the new directory's name."""
    shutil.copytree(source, target)
    config = target / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"name": target.name}))


def record_again(version: Path, name: str) -> None:
    """Makes report.json agree with a file that was changed, as somebody with write access could."""
    path = version / "report.json"
    report = json.loads(path.read_text())
    content = (version / name).read_bytes()
    report["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    path.write_text(json.dumps(report))
