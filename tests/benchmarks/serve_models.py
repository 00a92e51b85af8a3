"""The two networks that `make bench-serve` serves, exported and folded by our own tools: `serve_models.py FOLDER`.

`mlp`: 64-64-10 with one BatchNorm. `image`: torchvision's ResNet-18 at 224x224. Random weights, settled statistics.
Run as a process of its own, so that whoever measures holds no torch. Prints nothing; writes NAME.onnx.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from tests.training.fold.architectures import seeded
from tests.training.fold.architectures.preparing import export_raw, settle
from training.fold import fold, write_model
from training.model_source import opened

Network = tuple[Callable[[], nn.Module], tuple[int, ...]]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def resnet18() -> nn.Module:
    with opened("torchvision:resnet18", torchvision_shim=True) as source:
        return source.module


NETWORKS: dict[str, Network] = {"mlp": (mlp, (64,)), "image": (resnet18, (3, 224, 224))}


def write(name: str, folder: Path) -> None:
    build, shape = NETWORKS[name]
    # Without the proof, which takes a minute for the large one: here its answers are only compared with themselves.
    model, report = fold(export_raw(settle(seeded(build), shape, np.random.default_rng(0)), shape))
    assert report.summary()["kept"] == 0
    write_model(model, folder / f"{name}.onnx")


if __name__ == "__main__":
    for network in NETWORKS:
        write(network, Path(sys.argv[1]))
