"""The figures of a network: what its layers hold and what batches show, in a pass in training form and one in eval.

In training form each layer normalises by its batch, dropout is off, and nothing is learnt from what comes; the network
is left as it was found. Knows no threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from training.bn.figures import Answers, Array, Examined, LayerFigures, Seen, Statistics
from training.bn.layers import NormLayer, norm_layers
from training.bn.moments import Moments
from training.bn.population import Forward, Forwards, run_batch
from training.bn.structure import Structure
from training.errors import UserError

FEWEST_BATCHES = 6
"""Below that the scatter of batches' means is a guess."""


class CannotExamine(UserError):
    """The network and the batches do not go together."""


Ranks = Sequence[Mapping[str, tuple[torch.Tensor, torch.Tensor]]]
"""Of other processes: running mean and variance by layer."""


def measure(
    model: nn.Module,
    structure: Structure,
    batches: Sequence[Any] = (),
    *,
    labels: Sequence[torch.Tensor] | None = None,
    masks: Sequence[torch.Tensor] | None = None,
    ranks: Ranks = (),
    forward: Forward | None = None,
) -> Examined:
    """labels, masks: one tensor a batch; a mask is True where a row, or a position, counts: [rows] or [rows, ...] in
    the shape of the positions of whatever layers it is to be asked of."""
    layers = norm_layers(model)
    passes, unseen = _Passes(model, layers, forward or run_batch), "needs data"
    if batches and (refused := [layer.name for layer in layers if not layer.module.eps]):
        # Checks of the network's make find it; those of data cannot be made, which is no reason to stop.
        batches, unseen = (), f"torch refuses to normalise by the batch without an epsilon, as in {refused[0]}"
    for number, batch in enumerate(batches):
        with _told():
            passes.add(batch, masks[number] if masks else None, labels[number] if labels else None)
    held = tuple(_held(model, layer, structure, passes.seen(layer)) for layer in layers)
    others = tuple(
        {name: Statistics(_array(mean), _array(variance)) for name, (mean, variance) in rank.items()} for rank in ranks
    )
    answers = passes.answers() if layers and batches else None
    return Examined(held, passes.rows, len(batches), answers, _padded(masks if batches else None), others, unseen)


@contextmanager
def _told() -> Iterator[None]:
    """Whatever a network raises over a batch is one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise CannotExamine(f"the network does not run on the data: {type(error).__name__}: {line[:300]}") from error


def _held(model: nn.Module, layer: NormLayer, structure: Structure, seen: Seen | None) -> LayerFigures:
    module, place = layer.module, structure.places.get(layer.name)
    count = getattr(module, "num_batches_tracked", None)
    momentum = module.momentum
    return LayerFigures(
        layer.name,
        layer.kind,
        Statistics(_array(layer.mean), _array(layer.variance)),
        _parameter(module, "weight", "scale"),
        _parameter(module, "bias"),
        float(module.eps),  # type: ignore[arg-type]
        None if momentum is None else float(momentum),  # type: ignore[arg-type]
        None if count is None else int(count),
        place.clamped if place else None,
        place.closes_block if place else None,
        _weight_norm(model, place.fed_by if place else None),
        seen,
    )


def _array(values: torch.Tensor) -> Array:
    return values.detach().cpu().to(torch.float64).numpy().copy()


def _parameter(module: nn.Module, *names: str) -> Array | None:
    held = next((value for name in names if isinstance(value := getattr(module, name, None), torch.Tensor)), None)
    return None if held is None else _array(held)


def _weight_norm(model: nn.Module, name: str | None) -> float | None:
    weight = getattr(model.get_submodule(name), "weight", None) if name else None
    if not isinstance(weight, torch.Tensor) or isinstance(weight, nn.parameter.UninitializedParameter):
        return None
    transposed = isinstance(model.get_submodule(name or ""), nn.modules.conv._ConvTransposeNd)
    channels = weight.shape[1] if transposed else weight.shape[0]
    return float(weight.detach().double().square().sum()) / max(channels, 1)


def _padded(masks: Sequence[torch.Tensor] | None) -> float | None:
    if not masks:
        return None
    return 1.0 - sum(float(mask.sum()) for mask in masks) / max(sum(mask.numel() for mask in masks), 1)


# --- two passes ---------------------------------------------------------------------------------------------------


class _Passes:
    """Each batch through the network in both forms; sums over the batches."""

    def __init__(self, model: nn.Module, layers: Sequence[NormLayer], forward: Forward) -> None:
        self._answered: list[torch.Tensor | None] = []
        self._forward = forward
        self._plain = Forwards(model, layers, self._run)
        self._masked = Forwards(model, layers, self._run, self._weights)
        self._mask: torch.Tensor | None = None
        self._layers = layers
        self._means: dict[str, list[torch.Tensor]] = {}
        self._pooled: dict[str, Moments] = {}
        self._served: dict[str, Moments] = {}
        self._of_rows: dict[str, Moments] = {}
        self._unpadded: dict[str, Moments] = {}
        self._unfitting: set[str] = set()
        self._sites: dict[str, int] = {}
        self._compared = _Compared()
        self._sizes: list[int] = []

    @property
    def rows(self) -> int:
        return sum(self._sizes)

    def add(self, batch: Any, mask: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        with torch.no_grad():
            seen = self._plain.measure([batch], by_batch=True)
            by_batch = self._answered.pop()
            for name, moments in seen.moments.items():
                _merged(self._pooled, name, moments)
            self._sites = {name: max(sites, self._sites.get(name, 0)) for name, sites in seen.sites.items()}
            if mask is not None:
                self._mask = mask
                for name, moments in self._masked.measure([batch], by_batch=True).moments.items():
                    _merged(self._unpadded, name, moments)
                self._answered.pop()
            # Normalising by the batch would hide how batches differ from all layers but the first.
            with self._means_of_rows(_rows(batch)):
                served = self._plain.measure([batch], by_batch=False)
            for name, moments in served.moments.items():
                self._means.setdefault(name, []).append(moments.mean)
                _merged(self._served, name, moments)
            self._compared.add(self._answered.pop(), by_batch, labels)
        self._sizes.append(_rows(batch))

    def seen(self, layer: NormLayer) -> Seen | None:
        moments = self._pooled.get(layer.name)
        if moments is None or not float(moments.weight) > 1:
            return None
        without = self._unpadded.get(layer.name)
        unpadded = _statistics(without) if without is not None and layer.name not in self._unfitting else None
        sites = self._sites.get(layer.name, 1)
        share = self._scatter(layer.name, self._served)
        effective = 1.0 / share / max(self._sizes) if share else None
        share = self._scatter(layer.name, self._of_rows)
        alikeness = share * max(self._sizes) if share else None
        return Seen(_statistics(moments), float(moments.weight), sites, effective, alikeness, unpadded)

    def _scatter(self, name: str, of: Mapping[str, Moments]) -> float | None:
        """Variance of the batches' means as a share of the variance in `of`, on the average of the channels.

        Of full batches alone; a smaller last one would scatter more."""
        full, means = max(self._sizes, default=0), self._means.get(name, [])
        if len(means) != len(self._sizes) or name not in of:
            return None
        means = [mean for mean, rows in zip(means, self._sizes, strict=True) if rows == full]
        if len(means) < FEWEST_BATCHES:
            return None
        scatter, variance = torch.stack(means).var(dim=0), of[name].variance
        varying = variance > 0
        share = float((scatter[varying] / variance[varying]).mean()) if bool(varying.any()) else math.nan
        return share if math.isfinite(share) and share > 0 else None

    @contextmanager
    def _means_of_rows(self, rows: int) -> Iterator[None]:
        """Inside, the mean over each row's positions is taken into `_of_rows`, where a layer is given the rows."""

        def heard(name: str, values: torch.Tensor) -> None:
            if values.shape[0] == rows:
                _merged(self._of_rows, name, Moments.of(values.flatten(2).mean(2) if values.dim() > 2 else values))

        with ExitStack() as stack:
            for layer in self._layers:
                hook = layer.module.register_forward_pre_hook(
                    lambda _, given, named, name=layer.name: heard(name, (*given, *named.values())[0]),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
            yield

    def answers(self) -> Answers | None:
        return self._compared.answers(self.rows)

    def _run(self, model: nn.Module, batch: Any) -> object:
        answered = self._forward(model, batch)
        self._answered.append(_first_tensor(answered))
        return answered

    def _weights(self, _: Any, name: str, shape: torch.Size) -> torch.Tensor | None:
        assert self._mask is not None
        positions = torch.Size((shape[0], *shape[2:]))
        if self._mask.shape in (positions, positions[:1]):
            return self._mask
        self._unfitting.add(name)
        return None


def _merged(pool: dict[str, Moments], name: str, moments: Moments) -> None:
    if name in pool:
        pool[name].merge(moments)
    else:
        pool[name] = moments


def _statistics(moments: Moments) -> Statistics:
    return Statistics(np.asarray(_array(moments.mean)), np.asarray(_array(moments.variance)))


class _Compared:
    """The network's answers in both forms, as sums: of answers themselves, none is kept."""

    def __init__(self) -> None:
        self._complete = True
        self._difference = self._spread = 0.0
        self._classified = self._labelled = 0
        self._disagreed = self._right_by_running = self._right_by_batch = 0

    def add(self, running: torch.Tensor | None, by_batch: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        if running is None or by_batch is None:
            self._complete = False
            return
        running, by_batch = running.double(), by_batch.double()
        self._difference += float((running - by_batch).square().sum())
        self._spread += float((by_batch - by_batch.mean(dim=0)).square().sum())
        if running.dim() == 2 and running.shape[1] > 1:
            told = (running.argmax(dim=1), by_batch.argmax(dim=1))
            self._classified += len(told[0])
            self._disagreed += int((told[0] != told[1]).sum())
            if labels is not None and labels.shape == told[0].shape:
                self._labelled += len(labels)
                self._right_by_running += int((told[0] == labels).sum())
                self._right_by_batch += int((told[1] == labels).sum())

    def answers(self, rows: int) -> Answers | None:
        if not self._complete:
            return None
        # Not a number where an answer is not; without any spread, a difference of any size is endless.
        gap = 0.0 if not self._difference else math.inf if not self._spread else self._difference / self._spread
        gap = math.sqrt(gap)
        accuracy = None
        if self._labelled:
            accuracy = (self._right_by_running / self._labelled, self._right_by_batch / self._labelled)
        disagreement = self._disagreed / self._classified if self._classified else None
        return Answers(rows, gap if math.isfinite(gap) else math.inf, disagreement, accuracy)


def _first_tensor(answered: object) -> torch.Tensor | None:
    """The first that holds real numbers, whatever it is wrapped in."""
    if isinstance(answered, torch.Tensor):
        return answered if answered.is_floating_point() and answered.dim() else None
    inner: Sequence[object] = ()
    if isinstance(answered, Mapping):
        inner = list(answered.values())
    elif isinstance(answered, (tuple, list)):
        inner = answered
    return next((found for each in inner if (found := _first_tensor(each)) is not None), None)


def _rows(batch: Any) -> int:
    first = batch
    while not isinstance(first, torch.Tensor):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    return len(first)
