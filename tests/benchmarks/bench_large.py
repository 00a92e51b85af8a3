"""Folding models of gigabytes: seconds from reading to the written file, and how much memory it took at most.

Run as `python -m tests.benchmarks.bench_large`. Two files are made in a temporary folder and removed again: 1 GB of
weights inside one file, and 2.2 GB beside it, which is more than one protobuf can hold. Each is folded in a process of
its own, so that its peak is its own. Verification, which reports its own time, is left out.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.benchmarks.machine import heading
from training.fold import write_model

LIMIT_S = 15.0  # for 1 GB
LIMIT_OF_FILE = 2.0
NARROW, WIDE = 1024, 4096  # weights of 4, 16 and 64 MB
EMBEDDED = [NARROW] * 48 + [WIDE, NARROW] * 12 + [WIDE] * 7
EXTERNAL = EMBEDDED + [WIDE] * 19

FOLD = """
import json, resource, sys, time
from pathlib import Path
from training.fold import fold, read_model, write_model
source, target, external = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "external"
laps = [time.perf_counter()]
model = read_model(source)
laps.append(time.perf_counter())
folded, report = fold(model)
laps.append(time.perf_counter())
write_model(folded, target, external=external)
laps.append(time.perf_counter())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seconds = [after - before for before, after in zip(laps, laps[1:])]
print(json.dumps({"seconds": seconds, "peak": peak, "summary": report.summary()}))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 12 << 30:
            sys.exit(f"{folder}: {free >> 30} GiB are free, expected 12")
        print(heading("large"))
        print("\n| weights | GB | read s | fold s | write s | all s | peak of file | BN folded |")
        print("|---|---|---|---|---|---|---|---|")
        held = [measure(folder, EMBEDDED, external=False), measure(folder, EXTERNAL, external=True)]
    if not all(held):
        sys.exit(1)


def measure(folder: Path, widths: list[int], *, external: bool) -> bool:
    """One row of the table, and whether time (per GB) and memory hold."""
    source, target = folder / "source.onnx", folder / "folded.onnx"
    write_model(chain(widths), source, external=external)
    size = sum(path.stat().st_size for path in folder.iterdir())
    place = "external" if external else "embedded"
    command = [sys.executable, "-c", FOLD, str(source), str(target), place]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for path in folder.iterdir():
        path.unlink()
    seconds, share = found["seconds"], found["peak"] / size
    laps = " | ".join(f"{lap:.1f}" for lap in (*seconds, sum(seconds)))
    summary = found["summary"]
    print(f"| {place} | {size / 1e9:.2f} | {laps} | {share:.2f} | {summary['folded']} of {summary['found']} |")
    in_time = sum(seconds) <= LIMIT_S * max(size / 1e9, 1.0)
    return in_time and share <= LIMIT_OF_FILE and summary["folded"] == summary["found"]


def chain(widths: list[int]) -> ir.Model:
    """Gemm, BatchNormalization, Relu and so on; weights are drawn while they are written."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(("N", widths[0])))
    value, nodes, initializers = x, [], []
    for number, (into, out) in enumerate(itertools.pairwise(widths)):
        weight = _random(f"weight{number}", number, into, out)
        linear = ir.Node("", "Gemm", [value, weight], name=f"gemm{number}")
        statistics = [_random(f"{name}{number}", number, out) for name in ("gamma", "beta", "mean", "variance")]
        norm = ir.Node("", "BatchNormalization", [linear.outputs[0], *statistics], name=f"bn{number}")
        relu = ir.Node("", "Relu", [norm.outputs[0]], name=f"relu{number}")
        initializers += [weight, *statistics]
        nodes += [linear, norm, relu]
        value = relu.outputs[0]
    value.shape, value.type = ir.Shape(("N", widths[-1])), x.type
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="chain")
    return ir.Model(graph, ir_version=8)


def _random(name: str, seed: int, *shape: int) -> ir.Value:
    def draw() -> ir.Tensor:
        return ir.Tensor(np.random.default_rng(seed).random(shape, dtype=np.float32) + np.float32(0.01), name=name)

    tensor = ir.LazyTensor(draw, ir.DataType.FLOAT, ir.Shape(shape), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)


if __name__ == "__main__":
    main()
