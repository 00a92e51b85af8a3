"""Somebody's own torch network, in a project with packages of our names, exported, published and served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.end_to_end.running import foldserve, run_command
from tests.training.fold.models import build, mild_statistics, rng_of

NETS = """
import torch
from training.layers import block

def net():
    torch.manual_seed(0)
    network = torch.nn.Sequential(block(3, 4), block(4, 5), torch.nn.Flatten(), torch.nn.Linear(80, 2))
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 1.5)
    return network.eval(), torch.rand(1, 3, 4, 4)
"""

LAYERS = """
from torch import nn

def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())
"""

ANSWER = """
import json, sys, torch
from training.nets import net
network, _ = net()
print(json.dumps(network(torch.tensor(json.loads(sys.argv[1]))).tolist()))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a package `training` that works, and modules that break whoever takes them for others."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "training").mkdir()
    for name, text in {"__init__": "", "nets": NETS, "layers": LAYERS}.items():
        (folder / "training" / f"{name}.py").write_text(text)
    for name in ("onnxscript", "recipe", "service"):
        (folder / f"{name}.py").write_text(f"raise ImportError('the user\\'s own {name} was imported')\n")
    return folder


@pytest.mark.parametrize("spec", ["py:training.nets:net", "file:training/nets.py:net"])
def test_a_network_is_exported_published_and_served(project: Path, spec: str) -> None:
    name = spec.partition(":")[0]
    for arguments in (
        ("export", spec, "-o", f"{name}.onnx", "--report", f"{name}.json"),
        ("publish", f"{name}.onnx", "--name", name, "--repository", f"models-{name}"),
    ):
        ran = run_command("foldtrain", *arguments, cwd=project)
        assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads((project / f"{name}.json").read_text())["summary"]["folded"] == 2
    images = np.random.default_rng(0).random((3, 3, 4, 4)).astype(np.float32)
    script = [sys.executable, "-c", ANSWER, json.dumps(images.tolist())]
    own = subprocess.run(script, cwd=project, capture_output=True, text=True, check=True)

    with foldserve("--model-repository", f"models-{name}", cwd=project) as service:
        data = {"name": "input", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
        answer = service.infer(name, data)
        assert answer.status == 200, answer.body
        (output,) = answer.json()["outputs"]

    np.testing.assert_allclose(
        np.reshape(output["data"], output["shape"]), json.loads(own.stdout), rtol=1e-4, atol=1e-5
    )


def test_verify_tells_the_fold_from_other_weights(tmp_path: Path) -> None:
    graph = """g (float[N,3,4,4] x) => (float[N,4,4,4] y) {
        c = Conv <pads = [1,1,1,1]> (x, w)
        y = BatchNormalization (c, g, b, m, v)
    }"""
    statistics = {name: part.astype(np.float32) for name, part in mild_statistics(rng_of(0), 4).items()}
    for name, seed in (("raw", 1), ("other", 2)):
        weight = rng_of(seed).standard_normal((4, 3, 3, 3)).astype(np.float32)
        ir.save(build(graph, w=weight, **statistics), tmp_path / f"{name}.onnx")
    ran = run_command("foldtrain", "fold", "raw.onnx", "-o", "folded.onnx", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr

    same = run_command("foldtrain", "verify", "raw.onnx", "folded.onnx", cwd=tmp_path)
    other = run_command("foldtrain", "verify", "raw.onnx", "other.onnx", cwd=tmp_path)

    assert (same.returncode, other.returncode) == (0, 1), same.stdout + other.stdout
    assert same.stdout.startswith("raw.onnx and folded.onnx agree\n")
    assert "in float64, output 'y': at most " in other.stdout
