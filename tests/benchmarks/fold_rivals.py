"""One rival at a time, as its own documentation runs it: `python fold_rivals.py NAME IN.onnx OUT.onnx`.

Run by the interpreter of an environment with `rivals.txt` and nothing of ours: this file imports none of our code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import onnx


def with_onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    optimized: Any = import_module("onnxscript.optimizer").optimize(model)
    return optimized


def with_onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified, holds = import_module("onnxsim").simplify(model)
    if not holds:
        raise SystemExit("onnxsim's own check says that its result is wrong")
    return simplified


def with_onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    onnxoptimizer: Any = import_module("onnxoptimizer")
    return onnxoptimizer.optimize(model, onnxoptimizer.get_fuse_and_elimination_passes(), fixed_point=True)


def with_onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    return import_module("onnxslim").slim(model)


RIVALS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxscript": with_onnxscript,
    "onnxsim": with_onnxsim,
    "onnxoptimizer": with_onnxoptimizer,
    "onnxslim": with_onnxslim,
}


if __name__ == "__main__":
    name, source, target = sys.argv[1:]
    onnx.save(RIVALS[name](onnx.load(source)), target)
