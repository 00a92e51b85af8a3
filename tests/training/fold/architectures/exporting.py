"""A network's exported file and torch's own answer, made in worker processes: an export takes seconds of one core.

Knows `NETWORKS` and torchvision's names; a key is (name, is it a default export?).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from tests.training.fold.architectures import MIDDLE, NETWORKS
from tests.training.fold.architectures.preparing import export_default, export_raw, settle
from training.model_source import opened

Key = tuple[str, bool]
ROWS = 2
MOST_WORKERS = 4  # each holds torch in memory


@dataclass(frozen=True)
class Exported:
    """The file's bytes, so that nothing of torch is left in the graph; `y` is what torch makes of `x` in float64."""

    data: bytes
    x: np.ndarray
    y: np.ndarray

    @property
    def model(self) -> ir.Model:
        return ir.from_proto(onnx.ModelProto.FromString(self.data))


def exported(key: Key) -> Exported:
    name, default = key
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch's and torchvision's own
    module, shape = _settled(name)
    model = (export_default if default else export_raw)(module, shape)
    x = np.random.default_rng(1).normal(size=(ROWS, *shape)).astype(np.float32)
    y = module.double()(torch.from_numpy(x).double()).detach().numpy()
    return Exported(ir.to_proto(model).SerializeToString(), x, y)


def _settled(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name in NETWORKS:
        return NETWORKS[name].module(), NETWORKS[name].shape
    torch.manual_seed(0)
    with opened(name, torchvision_shim=True) as source:
        return settle(source.module, MIDDLE, np.random.default_rng(0)), MIDDLE


@contextmanager
def exporting(keys: Iterable[Key]) -> Iterator[Mapping[Key, Future[Exported]]]:
    """All of them under way, each to be waited for when it is needed."""
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield {key: pool.submit(exported, key) for key in dict.fromkeys(keys)}
        pool.shutdown(cancel_futures=True)
