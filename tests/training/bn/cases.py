"""The sixteen ways in which estimating population statistics goes wrong, each with its answer in float64.

Read by test_population.py, where ours must pass them all, and by benchmarks/bench_bn.py, where others are asked the
same. The answers come from the inputs alone, by NumPy; no estimator has a part in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

Statistics = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

RELATIVE_ERROR = 1e-4


class Interrupted(Exception):
    """What a broken data set raises in the middle."""


@dataclass(frozen=True)
class Scene:
    """A network, its data, and what its layers must hold afterwards, by their names.

    kept: layers that must not change. options: for `estimate`; others cannot be told. must_raise: the data end with
    Interrupted.
    """

    model: nn.Module
    batches: Callable[[], Iterable[Any]]
    expected: dict[str, Statistics] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    must_raise: bool = False


def population(*values: torch.Tensor) -> Statistics:
    """Mean and unbiased variance of each channel of values [rows, channels, ...], in float64."""
    columns = np.concatenate(
        [np.moveaxis(each.double().numpy(), 1, 0).reshape(each.shape[1], -1) for each in values], 1
    )
    return columns.mean(axis=1), columns.var(axis=1, ddof=1)


def error_of(scene: Scene, run: Callable[[nn.Module, Iterable[Any]], object]) -> float:
    """The largest relative error after `run`: of means against the larger of mean and standard deviation, of variances;
    infinite where a layer that is to be kept has changed, or nothing tells of an interruption."""
    layers = dict(scene.model.named_modules())
    before = {name: [buffer.clone() for buffer in layers[name].buffers()] for name in scene.kept}
    raised = False
    try:
        run(scene.model, scene.batches())
    except Interrupted:
        raised = True
    errors = [0.0 if raised == scene.must_raise else np.inf]
    for name, (mean, variance) in scene.expected.items():
        found_mean, found_variance = (_buffer(layers[name], kind) for kind in ("mean", "var"))
        scale = np.maximum(np.abs(mean), np.sqrt(variance))
        errors += [np.max(np.abs(found_mean - mean) / scale), np.max(np.abs(found_variance / variance - 1))]
    for name, buffers in before.items():
        same = all(torch.equal(old, new) for old, new in zip(buffers, layers[name].buffers(), strict=True))
        errors.append(0.0 if same else np.inf)
    return float(np.max(np.nan_to_num(errors, nan=np.inf, posinf=np.inf)))


def _buffer(layer: nn.Module, kind: str) -> np.ndarray[Any, Any]:
    prefix = "running" if hasattr(layer, "running_mean") else "ra"
    return getattr(layer, f"{prefix}_{kind}").double().numpy()


# --- networks -----------------------------------------------------------------------------------------------------


class Renorm(nn.Module):
    """Built as sb3-contrib's BatchRenorm: other names of buffers and weights, no subclass of torch's. Past its warm-up
    it corrects by r and d (S. Ioffe, arXiv 1702.03275)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("ra_mean", torch.zeros(channels))
        self.register_buffer("ra_var", torch.ones(channels))
        self.register_buffer("steps", torch.tensor(200_000))
        self.scale, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.momentum, self.eps = 0.01, 1e-3

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        mean, variance = self.ra_mean, self.ra_var
        if self.training:
            batch_mean, batch_variance = values.mean(0), values.var(0)
            r = (batch_variance / variance).sqrt().clamp(1 / 3, 3)
            d = ((batch_mean - mean) / variance.sqrt()).clamp(-5, 5)
            mean, variance = batch_mean - d * batch_variance.sqrt() / r, batch_variance / r**2
            with torch.no_grad():
                self.ra_mean += self.momentum * (batch_mean - self.ra_mean)
                self.ra_var += self.momentum * (batch_variance - self.ra_var)
                self.steps += 1
        return self.scale * (values - mean) / (variance + self.eps).sqrt() + self.bias


class NormAct(nn.BatchNorm2d):
    """Built as timm's BatchNormAct2d: a subclass with the activation inside, and a forward of its own."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(values))


class Optional(nn.Module):
    """Has a layer that its forward pass does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.used(values)


class Shared(nn.Module):
    """One layer over two levels of a pyramid, as in a detector's head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.norm(values), self.norm(5.0 + values[..., ::2, ::2])


# --- the cases ----------------------------------------------------------------------------------------------------


def numbers(*shape: int, mean: float = 0.3, std: float = 2.0, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy((mean + std * drawn).astype(np.float32))


def one(layer: nn.Module, batches: list[torch.Tensor], **options: Any) -> Scene:
    """A network of one layer behind nothing."""
    return Scene(nn.Sequential(layer), lambda: batches, {"0": population(*batches)}, options=options)


def iterator() -> Scene:
    """Three batches that come once, and nobody knows how many there will be."""
    batches = [numbers(8, 3, seed=seed) for seed in range(3)]
    scene = one(nn.BatchNorm1d(3), batches)
    return Scene(scene.model, lambda: iter(batches), scene.expected)


def sorted_data() -> Scene:
    """As a folder of classes without shuffling: what differs is between the batches."""
    values = torch.linspace(0, 9, 120)[:, None].repeat(1, 3)
    return one(nn.BatchNorm1d(3), list(values.split(10)))


def unused() -> Scene:
    batches = [numbers(8, 3)]
    return Scene(Optional(), lambda: batches, {"used": population(*batches)}, kept=("unused",))


def shared() -> Scene:
    batches = [numbers(4, 3, 6, 6, seed=seed) for seed in range(2)]
    halves = [5.0 + batch[..., ::2, ::2] for batch in batches]
    return Scene(Shared(), lambda: batches, {"norm": population(*batches, *halves)})


def frozen() -> Scene:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train()
    model[0].running_mean.fill_(0.3)
    model[0].running_var.fill_(4.0)
    model[0].eval()
    batches = [numbers(16, 3, seed=seed) for seed in range(2)]
    return Scene(
        model, lambda: batches, {"1": population(*(_affine(model[0], batch) for batch in batches))}, kept=("0",)
    )


def _affine(layer: nn.BatchNorm1d, values: torch.Tensor) -> torch.Tensor:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return (values - layer.running_mean) / (layer.running_var + layer.eps).sqrt()


def dropout() -> Scene:
    batches = [numbers(64, 3, seed=seed) for seed in range(4)]
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    return Scene(model, lambda: batches, {"1": population(*batches)})


def interrupted() -> Scene:
    def batches() -> Iterator[torch.Tensor]:
        yield from (numbers(8, 3, seed=seed) for seed in range(2))
        raise Interrupted

    return Scene(nn.Sequential(nn.BatchNorm1d(3)), batches, kept=("0",), must_raise=True)


def masked() -> Scene:
    """Padding of a thousand behind texts of different lengths."""
    lengths = torch.tensor([2, 9, 5, 7])
    present = torch.arange(9) < lengths[:, None]
    values = torch.where(present[:, None], numbers(4, 3, 9), torch.tensor(1000.0))
    seen = values.transpose(1, 2)[present]
    batches = [(values, present)]
    return Scene(
        nn.Sequential(nn.BatchNorm1d(3)),
        lambda: batches,
        {"0": population(seen)},
        options={"weights": lambda batch, *_: batch[1]},
    )


def batch_of_one() -> Scene:
    """The last batch has what was left over."""
    return one(nn.BatchNorm1d(3), [numbers(8, 3), numbers(1, 3, mean=9.0, seed=1)])


def two_ranks() -> Scene:
    """Each process has its half of the data, uneven; `bench_bn` and the test start the processes."""
    return one(nn.BatchNorm1d(3), [*rank_batches(0), *rank_batches(1)])


def rank_batches(rank: int) -> list[torch.Tensor]:
    return [numbers(rows, 3, mean=float(rank), seed=10 * rank + rows) for rows in ((16,), (4, 12))[rank]]


CASES: dict[str, Callable[[], Scene]] = {
    "data that come once": iterator,
    "uneven batches": lambda: one(nn.BatchNorm1d(3), [numbers(2, 3, mean=10.0), numbers(100, 3, mean=0.0, seed=1)]),
    "sorted data": sorted_data,
    "a mean of 1e5": lambda: one(nn.BatchNorm1d(3), [numbers(64, 3, mean=1e5, std=1.0, seed=s) for s in range(4)]),
    "a layer that is not used": unused,
    "a layer that is used twice": shared,
    "a frozen layer": frozen,
    "dropout": dropout,
    "an exception": interrupted,
    "two ranks": two_ranks,
    "batch renorm": lambda: one(Renorm(3), [numbers(16, 3, seed=seed) for seed in range(3)]),
    "a subclass with an activation": lambda: one(NormAct(3), [numbers(4, 3, 5, 5, seed=seed) for seed in range(3)]),
    "no beta": lambda: one(nn.BatchNorm2d(3, bias=False), [numbers(4, 3, 5, 5, seed=seed) for seed in range(3)]),
    "a mask": masked,
    "bfloat16": lambda: one(nn.BatchNorm1d(3), [numbers(64, 3, seed=s).bfloat16() for s in range(3)]),
    "a batch of one": batch_of_one,
}
assert len(CASES) == 16
DISTRIBUTED = "two ranks"
