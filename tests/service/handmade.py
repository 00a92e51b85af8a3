"""Small ONNX models written as text, and repositories around them. Knows no HTTP."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from service.load_version import load_version as load_for_serving
from service.model import Model
from service.repository import VersionDirectory, read_config

DOUBLE = "g (float[N,2] x) => (float[N,2] y) { two = Constant<value_float=2.0>() y = Mul(x, two) }"
"""Batchable: y = 2 x."""

LINEAR = """
g (float[N,2] x) => (float[N,3] y)
<float[2,3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { y = MatMul(x, w) }
"""
"""Batchable, with weights that a test can damage."""

FIXED = "g (float[1,2] x) => (float[1,2] y) { y = Neg(x) }"
"""Not batchable: the first dimension is 1."""

MIXING = "g (float[N,2] x) => (float[N,2] y) { y = Softmax<axis=0>(x) }"
"""Looks batchable, but each row's answer depends on the others."""

PICKY = "g (float[N,2] x, int64[N,1] i) => (float[N,1] y) { y = GatherElements<axis=1>(x, i) }"
"""Fails when an index in `i` is not -2, -1, 0 or 1."""

TEXT = "g (string[N,2] x) => (string[N,2] y) { y = Identity(x) }"


def save_model(path: Path, text: str) -> Path:
    """Writes the graph `text` (ONNX text format, without header) to `path`, making its folders."""
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]>\n' + text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def save_version(
    repository: Path, name: str, text: str = LINEAR, *, version: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A version in a repository; returns its folder."""
    folder = repository / name / str(version)
    save_model(folder / "model.onnx", text)
    if config is not None:
        (repository / name / "config.json").write_text(json.dumps({"name": name, **config}))
    return folder


def save_golden(folder: Path, **arrays: np.ndarray[Any, Any]) -> None:
    """golden.npz; `input_x=` becomes "input.x"."""
    np.savez(folder / "golden.npz", **{name.replace("_", ".", 1): array for name, array in arrays.items()})


def save_report(folder: Path, golden: Mapping[str, Any] | None = None) -> None:
    """report.json with the true hash of every file that is in `folder` now."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in folder.iterdir()
        if path.name != "report.json"
    }
    (folder / "report.json").write_text(json.dumps({"files": files, "golden": golden, "train": {"ignored": True}}))


def publish(repository: Path, name: str = "linear") -> Path:
    """A complete LINEAR version, as publishing would leave it: model, golden samples, report; returns its folder."""
    folder = save_version(repository, name, LINEAR)
    x = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    y = np.array([[1, 2, 3], [4, 5, 6], [5, 7, 9]], np.float32)
    save_golden(folder, input_x=x, output_y=y)
    save_report(folder, golden={"samples": 3, "tolerance": {"y": 1e-5}})
    return folder


def load_version(folder: Path) -> Model:
    """What the service makes of a version's folder: the real thing, on one thread."""
    loaded = load_for_serving(
        VersionDirectory(folder, int(folder.name)),
        read_config(folder.parent),
        providers=("CPUExecutionProvider",),
        intra_op_threads=1,
    )
    return Model(loaded)
