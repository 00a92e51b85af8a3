"""Six of torchvision's networks, as torchvision builds them: every BatchNorm goes. `make test-zoo` folds them all."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.architectures.preparing import batchnorms
from training.verify import run

# Those of GoogLeNet's auxiliary heads are not exported: they only help to train it.
BATCHNORMS = {
    "resnet18": 20,
    "mobilenet_v2": 52,
    "regnet_y_400mf": 53,
    "shufflenet_v2_x1_0": 56,
    "googlenet": 57,
    "efficientnet_b0": 49,
}
KEYS = [pytest.param((f"torchvision:{name}", False), id=name) for name in BATCHNORMS]


@pytest.mark.parametrize("key", KEYS)
def test_no_batchnorm_is_left_and_torch_agrees(key, exports, folding):
    export = exports[key].result()
    found = BATCHNORMS[key[0].partition(":")[2]]

    model, report = folding(key)

    assert batchnorms(export.model) == found
    assert batchnorms(model) == 0
    assert report.summary()["folded"] == report.summary()["found"] == found, report.as_text()
    before, after = (np.abs(run(each, {"x": export.x})["y"] - export.y).max() for each in (export.model, model))
    assert after < 4 * before + 1e-6 * np.abs(export.y).max()
