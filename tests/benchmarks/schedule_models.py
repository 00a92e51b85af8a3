"""The two networks that `make bench-schedule` serves: what a batch costs compared with a row is all that matters.

`wide`: 1024-4096-4096-1024, 100 MB of weights that every run reads once, whatever its rows: 16 rows take hardly longer
than 1. `conv`: three convolutions at 32x32, whose time is proportional to the rows. Random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (1024, 4096, 4096, 1024)
CHANNELS = (3, 32, 64, 32)
PIXELS = 32


def _save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list, y: list) -> None:
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])] for name, shape in (("x", x), ("y", y))
    )
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)


def save_wide(path: Path) -> None:
    random = np.random.default_rng(0)
    nodes, weights, name = [], {}, "x"
    for index, (width, next_width) in enumerate(pairwise(WIDTHS)):
        weights[f"w{index}"] = random.normal(size=(width, next_width)) / np.sqrt(width)
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [name := f"r{index}"]))
    nodes[-1].output[0] = "y"
    _save(path, nodes, weights, [WIDTHS[0]], [WIDTHS[-1]])


def save_conv(path: Path) -> None:
    random = np.random.default_rng(0)
    nodes, weights, name = [], {}, "x"
    for index, (channels, next_channels) in enumerate(pairwise(CHANNELS)):
        weights[f"w{index}"] = random.normal(size=(next_channels, channels, 3, 3)) / np.sqrt(9 * channels)
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [name := f"r{index}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    _save(path, nodes, weights, [CHANNELS[0], PIXELS, PIXELS], [CHANNELS[-1]])


NETWORKS: dict[str, Callable[[Path], None]] = {"wide": save_wide, "conv": save_conv}
