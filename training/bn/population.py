"""Population statistics: what BatchNorm's running mean and variance should have been, measured over given batches.

The running averages of training trail behind the weights, weigh a batch of 2 as much as one of 200, and never see the
variance between batches. Before they are frozen and folded for good they are measured again (S. Ioffe and C. Szegedy,
arXiv 1502.03167, algorithm 2; Y. Wu and J. Johnson, arXiv 2105.07576, section 3):

    minibatch     one pass; layers normalise by their batch meanwhile, as in both papers. The result depends on the
                  size of the batches: a layer is not quite given what it will be given when the network serves.
    sequential    passes in eval form, until none changes anything: what each layer is given is what it will be given.
                  A layer is right as soon as all before it are, so there are as many passes as layers in the longest
                  chain, and one to see that nothing changes.

Values are pooled in float64 over all places where a layer is used (moments.py). Only buffers are written, in place, at
the end of a pass; modes, counters and hooks are left as found, also when something fails. Knows no trainer and no data
set, nor which weights a layer behind a stride or an upsampling deserves: a mask has to come in that layer's own shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from training.bn.layers import NormLayer, frozen_layers, norm_layers, without_statistics
from training.bn.moments import Moments
from training.errors import UserError

Mode = Literal["minibatch", "sequential"]
Forward = Callable[[nn.Module, Any], object]
"""Runs the network on one batch; what it returns is not looked at."""
Weights = Callable[[Any, str, torch.Size], torch.Tensor | None]
"""Of a batch, a layer's name and the shape of its input [rows, channels, ...]: a weight for each row, [rows], or for
each position, [rows, ...]; True or 1 counts and False or 0 does not. None: all count."""

# Of a standard deviation: passes that differ by less have settled. Far above the rounding of float32 buffers, in which
# each pass ends, and far below what a report could show.
_SETTLED = 1e-6


class CannotEstimate(UserError):
    """There is nothing to measure, or what was measured is no number. The network is as it was."""


@dataclass(frozen=True, slots=True)
class LayerEstimate:
    """What became of one layer.

    verdict: `estimated`, `frozen`, `unused` (no batch reached it) or `too few` (a single value a channel, which has no
    variance); only the first has been written. values: that counted, a channel. sites: how often one forward pass uses
    it. mean_shift: largest distance of a channel's old mean from the new, in new standard deviations;
    log_variance_ratio: largest |log(new / old)|. Both are None where nothing was written, infinite where the old or
    new variance is not above 0.
    """

    name: str
    kind: str
    verdict: str
    values: float = 0.0
    sites: int = 0
    mean_shift: float | None = None
    log_variance_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was done. `settled`: the last pass of several changed nothing any more (always true of one pass).

    `alone_batches`: batches in which a layer had one value a channel, and normalised as it does in eval, since one
    value has no variance to normalise by. `without_statistics`: layers that keep none.
    """

    mode: Mode
    batches: int
    passes: int
    settled: bool
    alone_batches: int
    noise: bool
    layers: tuple[LayerEstimate, ...]
    without_statistics: tuple[str, ...]
    _before: Sequence[tuple[torch.Tensor, torch.Tensor]] = field(repr=False, compare=False, default=())

    def undo(self) -> None:
        """The statistics as they were before. May be called again."""
        with torch.no_grad():
            for buffer, value in self._before:
                buffer.copy_(value)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        public = replace(self, _before=())
        return {name: value for name, value in asdict(public).items() if not name.startswith("_")}


def estimate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    mode: Mode = "sequential",
    forward: Forward | None = None,
    weights: Weights | None = None,
    noise: bool = False,
    keep_frozen: bool = True,
    most_passes: int | None = None,
) -> Estimate:
    """Measures the running statistics of all batch norm layers of `model` anew, and writes them in place.

    batches: anything that can be iterated. What can be iterated only once is kept, where several passes need it.
    forward: how a batch is run; without it, a tensor goes in as the only argument, a mapping as keywords, and of a
    tuple or list the first element.
    weights: see `Weights`; for padding, or rows that count more. Without it, what a MaskedBatchNorm has been told is
    padding does not count.
    noise: dropout and other noise stays as the modules' modes have it; without it everything but the layers that are
    measured runs in eval mode.
    keep_frozen: layers in eval mode inside a network in training mode are left alone.
    most_passes: of `sequential`; without it, one more than there are layers.
    Under torch.distributed every process brings batches of its own, and all write the same: one all-reduce a pass.

    Raises CannotEstimate when there is no layer, no batch, or a statistic that is not finite; the model is then as it
    was.
    """
    layers, frozen = norm_layers(model), {*frozen_layers(model)} if keep_frozen else set()
    wanted = [layer for layer in layers if layer.name not in frozen]
    if not wanted:
        raise CannotEstimate(_nothing_to_estimate(model, layers))
    if mode == "sequential" and iter(batches) is batches:
        batches = list(batches)
    runs = Forwards(model, wanted, forward or run_batch, weights, noise=noise)
    before = [(buffer, buffer.clone()) for layer in wanted for buffer in (layer.mean, layer.variance)]
    most = 1 if mode == "minibatch" else most_passes or len(wanted) + 1
    with torch.no_grad(), _undone_on_error(before):
        for passes in range(1, most + 1):  # noqa: B007 - told below
            seen = runs.measure(batches, by_batch=mode == "minibatch")
            changed, not_finite = _write(wanted, seen)
            settled = mode == "minibatch" or changed <= _SETTLED
            if settled:
                break
        # A pass over what is to be measured anew may be of no use behind the first layers; the last one is.
        if not_finite:
            raise CannotEstimate(
                f"layer {not_finite[0]!r} is given values that are not finite; all running statistics are as they were"
            )
    told = _told(layers, {*frozen}, seen, before)
    return Estimate(
        mode, seen.batches, passes, settled, seen.alone_batches, noise, told,
        tuple(name for name, _ in without_statistics(model)), before,
    )  # fmt: skip


def run_batch(model: nn.Module, batch: Any) -> object:
    """The usual ways in which a batch is handed to a network."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (tuple, list)) else batch)


# --- one pass -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What one pass has measured, by the layers' names."""

    batches: int = 0
    alone_batches: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)


class Forwards:
    """Passes over batches during which the layers' inputs are measured. Leaves the network as it was."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[NormLayer],
        forward: Forward,
        weights: Weights | None = None,
        *,
        noise: bool = False,
    ) -> None:
        self._model = model
        self._layers = layers
        self._forward = forward
        self._weights = weights
        self._noise = noise

    def measure(self, batches: Iterable[Any], *, by_batch: bool) -> Seen:
        """One pass. by_batch: the layers normalise by their batch; otherwise by their running statistics."""
        seen = Seen()
        with self._set_up(seen, by_batch=by_batch) as listener:
            for batch in batches:
                seen.batches += 1
                listener.begins(batch)
                self._forward(self._model, batch)
                listener.ends()
        _reduce(self._layers, seen)
        if not seen.batches:
            raise CannotEstimate("there is not a single batch to measure the running statistics with")
        return seen

    @contextmanager
    def _set_up(self, seen: Seen, *, by_batch: bool) -> Iterator[_Listener]:
        listener = _Listener(seen, self._weights)
        with ExitStack() as stack:
            stack.enter_context(_modes_kept(self._model))
            if not self._noise:
                self._model.eval()
            for layer in self._layers:
                stack.enter_context(_normalising(layer, by_batch=by_batch))
                handle = layer.module.register_forward_pre_hook(listener.hook(layer), with_kwargs=True)
                stack.callback(handle.remove)
                if by_batch:
                    after = layer.module.register_forward_hook(_train_again, always_call=True)
                    stack.callback(after.remove)
            yield listener


class _Listener:
    """Hears what each layer is given."""

    def __init__(self, seen: Seen, weights: Weights | None) -> None:
        self._seen = seen
        self._weights = weights
        self._batch: Any = None
        self._calls: dict[str, int] = {}
        self._alone = False

    def begins(self, batch: Any) -> None:
        self._batch, self._calls, self._alone = batch, {}, False

    def ends(self) -> None:
        for name, calls in self._calls.items():
            self._seen.sites[name] = max(self._seen.sites.get(name, 0), calls)
        self._seen.alone_batches += self._alone
        self._batch = None

    def hook(self, layer: NormLayer) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def heard(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            values = arguments[0] if arguments else next(iter(keywords.values()))
            weights = (
                self._weights(self._batch, layer.name, values.shape)
                if self._weights
                else getattr(module, "mask", None)  # a MaskedBatchNorm's own, that its network has set
            )
            found = Moments.of(values, _fitting(weights, values, layer))
            if layer.name in self._seen.moments:
                self._seen.moments[layer.name].merge(found)
            else:
                self._seen.moments[layer.name] = found
            self._calls[layer.name] = self._calls.get(layer.name, 0) + 1
            if module.training and values.numel() == layer.channels:
                # One value a channel: torch refuses to normalise it by itself, and rightly.
                self._alone, module.training = True, False

        return heard


def _fitting(weights: torch.Tensor | None, values: torch.Tensor, layer: NormLayer) -> torch.Tensor | None:
    """`weights` in a shape that broadcasts to [rows, ...]."""
    if weights is None:
        return None
    positions = (values.shape[0], *values.shape[2:])
    if weights.shape == positions[:1]:
        return weights.reshape(-1, *(1 for _ in positions[1:]))
    if weights.shape == positions:
        return weights
    raise CannotEstimate(
        f"layer {layer.name!r} is given {list(values.shape)}, the weights are {list(weights.shape)}; "
        f"expected one for each row, {list(positions[:1])}, or for each position, {list(positions)}"
    )


def _train_again(module: nn.Module, *_: object) -> None:
    module.training = True


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _normalising(layer: NormLayer, *, by_batch: bool) -> Iterator[None]:
    """By the batch, or by the running statistics; without anything being learnt from what comes."""
    module = layer.module
    module.training = by_batch
    if not by_batch:
        yield
        return
    # Its own way of averaging goes on, in buffers that are thrown away.
    kept = {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
    patched = isinstance(module, nn.SyncBatchNorm)
    if patched:
        # Over this process's own batch: torch's waits for the others, and refuses on a CPU.
        module.forward = lambda values: _by_batch(module, values)
    try:
        yield
    finally:
        if patched:
            del module.forward
        for name, buffer in module.named_buffers(recurse=False):
            buffer.copy_(kept[name])


def _by_batch(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    use_batch = module.training
    mean, variance = (None, None) if use_batch else (module.running_mean, module.running_var)
    return functional.batch_norm(values, mean, variance, module.weight, module.bias, use_batch, 0.0, module.eps)  # type: ignore[arg-type]


# --- what comes of it ---------------------------------------------------------------------------------------------


def _reduce(layers: Sequence[NormLayer], seen: Seen) -> None:
    """Under torch.distributed: every process knows what all have seen together. One message a process."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return
    device = layers[0].mean.device
    own = [seen.moments.get(layer.name) or Moments.none(layer.channels, device) for layer in layers]
    counts = [
        float(seen.batches),
        float(seen.alone_batches),
        *(float(seen.sites.get(layer.name, 0)) for layer in layers),
    ]
    message = torch.cat(
        [torch.tensor(counts, dtype=torch.float64, device=device), *(moments.packed().to(device) for moments in own)]
    )
    everybody = [torch.empty_like(message) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everybody, message)
    seen.moments = {layer.name: Moments.none(layer.channels, device) for layer in layers}
    seen.batches = seen.alone_batches = 0
    for message in everybody:
        batches, alone_batches, *sites = message[: len(counts)].tolist()
        seen.batches += int(batches)
        seen.alone_batches += int(alone_batches)
        pieces = message[len(counts) :].split([2 + 2 * layer.channels for layer in layers])
        for layer, count, piece in zip(layers, sites, pieces, strict=True):
            seen.moments[layer.name].merge(Moments.unpacked(piece))
            seen.sites[layer.name] = max(seen.sites.get(layer.name, 0), int(count))


def _write(layers: Sequence[NormLayer], seen: Seen) -> tuple[float, list[str]]:
    """The statistics into the buffers; returns by how much they changed at most, in standard deviations, and the names
    of layers that were left as they are because theirs are not finite."""
    changed, not_finite = 0.0, []
    for layer in layers:
        moments = seen.moments.get(layer.name)
        if moments is None or _verdict(moments) != "estimated":
            continue
        mean, variance = moments.mean, moments.variance
        if not bool(torch.isfinite(mean).all() & torch.isfinite(variance).all()):
            changed = math.inf
            not_finite.append(layer.name)
            continue
        shift, ratio = _drift(layer.mean, layer.variance, mean, variance)
        changed = max(changed, shift, ratio)
        layer.mean.copy_(mean)
        layer.variance.copy_(variance)
    return changed, not_finite


def _verdict(moments: Moments | None) -> str:
    if moments is None or not float(moments.weight) > 0:
        return "unused"
    return "estimated" if float(moments.weight - moments.weight_squared / moments.weight) > 0 else "too few"


def _drift(
    old_mean: torch.Tensor, old_variance: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[float, float]:
    """See LayerEstimate. A channel that is constant, before and now, has not drifted; the others of its layer count."""
    old_mean, old_variance = old_mean.to(mean), old_variance.to(variance)
    constant = (variance == 0) & (old_variance == 0) & (mean == old_mean)
    shift = ((mean - old_mean).abs() / variance.sqrt()).masked_fill(constant | (mean == old_mean), 0.0)
    ratio = (variance / old_variance).log().abs().masked_fill(constant, 0.0)
    return tuple(float(values.nan_to_num(nan=math.inf, posinf=math.inf).max()) for values in (shift, ratio))  # type: ignore[return-value]


def _told(
    layers: Sequence[NormLayer], frozen: set[str], seen: Seen, before: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[LayerEstimate, ...]:
    old = {id(buffer): value for buffer, value in before}
    told = []
    for layer in layers:
        if layer.name in frozen:
            told.append(LayerEstimate(layer.name, layer.kind, "frozen"))
            continue
        moments = seen.moments.get(layer.name)
        verdict = _verdict(moments)
        values = 0.0 if moments is None else float(moments.weight)
        sites = seen.sites.get(layer.name, 0)
        drift: tuple[float | None, float | None] = (None, None)
        if moments is not None and verdict == "estimated":
            drift = _drift(old[id(layer.mean)], old[id(layer.variance)], moments.mean, moments.variance)
        told.append(LayerEstimate(layer.name, layer.kind, verdict, values, sites, *drift))
    return tuple(told)


@contextmanager
def _undone_on_error(before: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise


def _nothing_to_estimate(model: nn.Module, layers: Sequence[NormLayer]) -> str:
    if layers:
        return f"all {len(layers)} batch norm layers are frozen (in eval mode inside a network in training mode)"
    if bare := without_statistics(model):
        return f"the network's {len(bare)} batch norm layers keep no running statistics (track_running_stats=False)"
    return "the network has no batch norm layer that keeps running statistics"
