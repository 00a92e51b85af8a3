"""The networks that `make bench-fold` folds, and what each tool makes of one: files, BatchNorms left, nodes, errors.

A network is one of the tests' architectures, in its published size, or a SPEC of timm's or torchvision's.
"""

from __future__ import annotations

import copy
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from tests.benchmarks.fold_rivals import RIVALS
from tests.training.fold.architectures import NETWORKS
from tests.training.fold.architectures.preparing import export_default, export_raw
from tests.zoo.trial import settled
from training.fold import FoldReport, fold
from training.verify import make_samples, verify

FORMS = {"raw": export_raw, "default": export_default}
PROFILES = ("generic", "ort-cpu")
OURS, RUNTIME = "ort-cpu", "onnxruntime"  # the profile that is timed; the file as it is, in ONNX Runtime's own hands
RIVAL_S = 300  # for one rival and one file
NO_PROOF = "NOT PROVED"
WRONG = 1e-2  # of the output's scale: rounding stays below, or below
WORSE = 4.0  # times the source's own error, for networks in which rounding grows


@dataclass(frozen=True)
class Made:
    """What a tool made of a file. `failure`: one line instead, where it made none or a wrong one."""

    path: Path | None
    nodes: int = 0
    batchnorms: int = 0
    failure: str = ""


@dataclass(frozen=True)
class Case:
    """One exported network: the source, and what each tool made of it, by name (`PROFILES`, the rivals, `RUNTIME`)."""

    name: str
    form: str
    x: NDArray[np.float32]
    source: Made
    reports: dict[str, FoldReport]
    made: dict[str, Made] = field(default_factory=dict)


def built(name: str, published: bool) -> tuple[nn.Module, tuple[int, ...]]:
    """A settled module and the shape of one row; the narrow form of a SPEC is the same network on small images."""
    if name in NETWORKS:
        network = NETWORKS[name]
        return network.module(published=published), network.published_shape if published else network.shape
    return settled(name, small=not published)


@contextmanager
def cases(name: str, forms: list[str], rivals: Path) -> Iterator[list[Case]]:
    """The network in each form of export, worked on by every tool; the files are gone afterwards."""
    module, shape = built(name, published=True)
    x = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(torch.from_numpy(x).double()).numpy()
    with tempfile.TemporaryDirectory() as folder:
        yield [_case(name, form, module, x, wanted, Path(folder), rivals) for form in forms]


def _case(name: str, form: str, module: nn.Module, x: NDArray, wanted: NDArray, folder: Path, rivals: Path) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        model = FORMS[form](module, x.shape[1:])
    source = folder / f"{form}.onnx"
    ir.save(model, source)
    case = Case(name, form, x, _counted(source), {})
    judged = partial(_checked, x=x, wanted=wanted, allowed=max(WRONG, WORSE * _error(source, x, wanted)))
    for profile in PROFILES:
        folded, case.reports[profile] = fold(model, profile=profile)
        target = folder / f"{form}-{profile}.onnx"
        ir.save(folded, target)
        case.made[profile] = judged(target)
    for rival in RIVALS:
        case.made[rival] = _of_rival(rival, source, folder / f"{form}-{rival}.onnx", rivals, judged)
    case.made[RUNTIME] = _of_runtime(source, folder / f"{form}-{RUNTIME}.onnx")
    return case


def _of_rival(rival: str, source: Path, target: Path, rivals: Path, judged: Callable[[Path], Made]) -> Made:
    script = Path(__file__).with_name("fold_rivals.py")
    command = [str(rivals / "bin" / "python"), str(script), rival, str(source), str(target)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=RIVAL_S)
    except subprocess.CalledProcessError as error:
        return Made(None, failure=(error.stderr.strip().splitlines() or ["no message"])[-1][:100])
    except subprocess.TimeoutExpired:
        return Made(None, failure=f"not done in {RIVAL_S} s")
    return judged(target)


def _of_runtime(source: Path, target: Path) -> Made:
    """ONNX Runtime's own optimisations, counted in what it writes; those of its last level are for one machine only."""
    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    counted = _counted(target)
    return Made(source, counted.nodes, counted.batchnorms)  # it is the source that is run


def _checked(path: Path, x: NDArray, wanted: NDArray, allowed: float) -> Made:
    counted = _counted(path)
    try:
        error = _error(path, x, wanted)
    except Exception as refusal:  # whatever ONNX Runtime says of a file that a tool wrote
        return Made(None, counted.nodes, counted.batchnorms, f"does not run: {str(refusal)[:80]}")
    failure = "" if error <= allowed else f"WRONG by {error:.1g}"
    return Made(path, counted.nodes, counted.batchnorms, failure)


def _error(path: Path, x: NDArray, wanted: NDArray) -> float:
    """Of the output's scale."""
    (found,) = session(path, threads=1).run(None, {"x": x})
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _counted(path: Path) -> Made:
    """Nodes that do something when the file is run: constants do not."""
    graph = ir.from_proto(onnx.load(path, load_external_data=False)).graph
    operators = Counter(node.op_type for node in graph.all_nodes())
    return Made(path, operators.total() - operators["Constant"], operators["BatchNormalization"])


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # A pool that spins after its own run would take the cores from the next session's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """As a user opens it: every optimisation of ONNX Runtime's on top of whatever the tool did."""
    return onnxruntime.InferenceSession(path, session_options(threads), providers=["CPUExecutionProvider"])


def rounding_ratio(name: str) -> str:
    """Folded to original error, as the proof measures it on the raw export of the narrow network; or what it says."""
    module, shape = built(name, published=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = export_raw(module, shape)
    try:
        report = verify(model, fold(model, profile=OURS)[0], make_samples(model))
    except Exception as error:  # whatever it is, it belongs into the table, and hours of measuring go on
        return f"{NO_PROOF}: {type(error).__name__}: {str(error)[:100]}"
    found = report.as_dict()["rounding_ratio"]
    return "" if found is None else f"{found:.2f}"
