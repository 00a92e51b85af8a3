"""BatchNorm for batches that are too small, too large, spread over processes, padded, or not to be learnt from.

    GhostBatchNorm     normalises pieces of K rows by themselves: the noise of a small batch at the speed of a large one
                       (E. Hoffer, I. Hubara and D. Soudry, arXiv 1705.08741)
    BatchRenorm        corrects a small batch towards the running statistics (S. Ioffe, arXiv 1702.03275)
    SyncBatchNorm      normalises by the batches of all processes together, on any backend, gloo and the CPU included
    MaskedBatchNorm    leaves padded positions out of the statistics
    FrozenBatchNorm    the running statistics only, whatever `train()` is called with

All differ from torch's BatchNorm in training only. In eval mode each is the same affine map of the same running
statistics, by the same operator: what is exported, folded and served knows nothing of them. All subclass torch's, take
its arguments, and keep its names of buffers and weights, so that weights are exchanged freely. `momentum` weighs the
new batch; None, the plain average over all batches, works as well.

The rank of the input is not looked at: [rows, channels, ...].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from training.errors import UserError


class _Variant(nn.modules.batchnorm._BatchNorm):
    """The part that all share: eval mode, and the running averages."""

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002 - torch's name
        if input.dim() < 2:
            raise UserError(f"{type(self).__name__} takes [rows, channels, ...]; it was given {list(input.shape)}")

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return self._by_batch(input)

    def _by_batch(self, values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _learn(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor | float) -> None:
        """Into the running averages. variance: biased, of `count` values a channel; kept unbiased, as torch does."""
        if self.running_mean is None or self.running_var is None or not self.training:
            return
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach().to(self.running_mean), rate)
            unbiased = variance.detach() * count / (count - 1)
            self.running_var.lerp_(unbiased.to(self.running_var), rate)

    def _affine(self, normalised: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            normalised = normalised * _across(self.weight, normalised)
        return normalised if self.bias is None else normalised + _across(self.bias, normalised)


def _across(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[channels] so that it broadcasts over [rows, channels, ...]."""
    return values.reshape(1, -1, *(1 for _ in like.shape[2:]))


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean, biased variance and number of values a channel. Raises UserError for one value, as torch does."""
    count = values.numel() // values.shape[1]
    if count < 2:
        raise UserError(f"one value a channel has no variance; the input was {list(values.shape)}")
    over = [0, *range(2, values.dim())]
    return values.mean(over), values.var(over, unbiased=False), count


class GhostBatchNorm(_Variant):
    """ghost_rows: rows of a piece. What is left over joins the last piece.

    The running averages are of the whole batch: pieces are for the noise of training, and serving has none.
    """

    def __init__(self, num_features: int, ghost_rows: int, **options: Any) -> None:
        """Raises UserError for pieces of fewer than 2 rows."""
        super().__init__(num_features, **options)
        if ghost_rows < 2:
            raise UserError(f"a ghost batch of {ghost_rows} row has no variance; expected at least 2")
        self.ghost_rows = ghost_rows

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_rows={self.ghost_rows}"  # type: ignore[no-untyped-call]

    def _by_batch(self, values: torch.Tensor) -> torch.Tensor:
        pieces = values.tensor_split(max(1, len(values) // self.ghost_rows))
        answer = torch.cat(
            [functional.batch_norm(piece, None, None, self.weight, self.bias, True, 0.0, self.eps) for piece in pieces]
        )
        self._learn(*_moments(values.detach()))
        return answer


class BatchRenorm(_Variant):
    """The batch's mean and deviation, corrected by r and d, which no gradient passes, towards the running ones.

    The bounds of r and d open from plain BatchNorm (1 and 0) to `r_max` and `d_max` between the steps `opens_at` and
    `open_at`, when the running statistics are worth something; the paper's are 5,000 and 40,000 for r, 25,000 for d.
    """

    def __init__(
        self,
        num_features: int,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        opens_at: int = 5_000,
        open_at: int = 25_000,
        **options: Any,
    ) -> None:
        """Raises UserError where the running statistics that it needs are switched off."""
        super().__init__(num_features, **options)
        if self.running_mean is None:
            raise UserError("BatchRenorm corrects towards running statistics; it cannot have track_running_stats=False")
        self.r_max, self.d_max = r_max, d_max
        self.opens_at, self.open_at = opens_at, open_at

    def bounds(self) -> tuple[float, float]:
        """Of r and d at this step."""
        assert self.num_batches_tracked is not None
        share = (float(self.num_batches_tracked) - self.opens_at) / max(1, self.open_at - self.opens_at)
        share = min(max(share, 0.0), 1.0)
        return 1.0 + share * (self.r_max - 1.0), share * self.d_max

    def _by_batch(self, values: torch.Tensor) -> torch.Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance, count = _moments(values)
        deviation = (variance + self.eps).sqrt()
        r_max, d_max = self.bounds()
        with torch.no_grad():
            known = (self.running_var + self.eps).sqrt()
            r = (deviation / known).clamp(1.0 / r_max, r_max)
            d = ((mean - self.running_mean) / known).clamp(-d_max, d_max)
        normalised = (values - _across(mean, values)) / _across(deviation, values)
        answer = self._affine(normalised * _across(r, values) + _across(d, values))
        self._learn(mean, variance, count)
        return answer


class SyncBatchNorm(_Variant):
    """By the batches of all processes of `group` together (None: all), weighted by their number of values.

    torch's own refuses to train on a CPU. Gradients pass through the other processes' losses: each process's is that of
    the sum of all losses, as if all rows had been in one. Without torch.distributed it is plain BatchNorm.
    A process may have any number of rows, but must take part in every step.
    """

    def __init__(self, num_features: int, *, group: Any = None, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.group = group

    def _by_batch(self, values: torch.Tensor) -> torch.Tensor:
        given, over = values.dtype, [0, *range(2, values.dim())]
        if given in (torch.bfloat16, torch.float16):
            values = values.float()  # neither their number nor their sum fits into so few bits
        count = torch.tensor([float(values.numel() // values.shape[1])], dtype=values.dtype, device=values.device)
        together = _sum_of_all(torch.cat([count, values.sum(over)]), self.group)
        total = together[0].detach()
        if total < 2:
            raise UserError(f"one value a channel in all processes has no variance; the input was {list(values.shape)}")
        mean = together[1:] / total
        # In two messages: sums of squares around the common mean lose nothing to a mean that is large.
        centred = values - _across(mean, values)
        variance = _sum_of_all(centred.square().sum(over), self.group) / total
        answer = self._affine(centred / _across((variance + self.eps).sqrt(), values))
        self._learn(mean, variance, total)
        return answer.to(given)


class _SumOfAll(torch.autograd.Function):
    """all_reduce with a gradient: what each process has added appears in every process's sum."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, group: Any) -> torch.Tensor:
        context.group = group
        total = values.clone()
        torch.distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total, group=context.group)
        return total, None


def _sum_of_all(values: torch.Tensor, group: Any) -> torch.Tensor:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size(group) == 1:
        return values
    return cast("torch.Tensor", _SumOfAll.apply(values, group))  # type: ignore[no-untyped-call]


class MaskedBatchNorm(_Variant):
    """Of [rows, channels, positions]; positions that `valid_positions` says are padding do not count.

    They are normalised all the same, by what the others measured. Without a mask all count.
    """

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.mask: torch.Tensor | None = None

    def _by_batch(self, values: torch.Tensor) -> torch.Tensor:
        mean, variance, count = _moments(values if self.mask is None else self._counted(values, self.mask))
        normalised = (values - _across(mean, values)) / _across((variance + self.eps).sqrt(), values)
        self._learn(mean, variance, count)
        return self._affine(normalised)

    @staticmethod
    def _counted(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[values, channels]: those that count."""
        positions = (values.shape[0], *values.shape[2:])
        if mask.shape != positions:
            raise UserError(
                f"a mask of shape {list(mask.shape)} for an input of {list(values.shape)}; expected {list(positions)}"
            )
        return values.movedim(1, -1)[mask.bool()]


@contextmanager
def valid_positions(model: nn.Module, mask: torch.Tensor) -> Iterator[None]:
    """Inside, every MaskedBatchNorm of `model` counts the positions where `mask` [rows, positions] is true."""
    layers = [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]
    before = [layer.mask for layer in layers]
    for layer in layers:
        layer.mask = mask
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.mask = old


class FrozenBatchNorm(_Variant):
    """Stays in eval mode. `requires_grad` of gamma and beta is left to who trains them."""

    def train(self, mode: bool = True) -> FrozenBatchNorm:  # noqa: ARG002 - torch's signature
        return super().train(False)

    def __init__(self, num_features: int, **options: Any) -> None:
        """Raises UserError where there are no statistics to freeze."""
        super().__init__(num_features, **options)
        if self.running_mean is None:
            raise UserError("there are no running statistics to freeze: track_running_stats=False")
        self.training = False
