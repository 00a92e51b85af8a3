"""What to do where a batch is too small for its own statistics. Whatever is done, what is served is BatchNorm with
running statistics: nothing of it is left when the network is folded.

    none          BatchNorm as it is: from 32 values a channel on
    precise       the same, and population statistics at the end, which every run has anyway: from 8 values on
    frozen:SHARE  statistics are measured once and then stay for this share of the steps, at the end; 0.9 where a batch
                  says next to nothing: the network then learns with what it will be served with
    renorm        a batch corrected towards the running statistics, by more and more
    sync          by the rows of all processes, where these are enough together
    ghost:ROWS    pieces of a batch by themselves; for batches that are too LARGE, of no use where they are small

Of two rows, (x - mean) / deviation is 1 and -1 whatever they hold: what reaches the weights before is next to nothing,
and enormous where two values happen to be nearly equal. Renorm scales that, and cannot mend it; statistics that are not
the batch's do. So `auto` freezes early, and not for the last fifth alone, as Y. Wu and J. Johnson (arXiv 2105.07576) do
with larger batches; the figures of tests/benchmarks/bench_remedies.py are why. Knows no loop: that asks `freezes_at`,
and calls `apply`, `freeze` and `hold`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from training.bn.layers import norm_layers
from training.bn.population import Forward, estimate
from training.bn.replacing import replace
from training.bn.variants import BatchRenorm
from training.errors import UserError
from training.recipe import REMEDIES, Recipe

Kind = Literal["none", "precise", "frozen", "renorm", "sync", "ghost"]
KINDS: tuple[Kind, ...] = ("none", "precise", "frozen", "renorm", "sync", "ghost")
FORMS = ("auto", *REMEDIES)

ENOUGH_VALUES, FEW_VALUES = 32.0, 8.0
"""Free values a channel in a batch, as the doctor's check of the effective batch size has them: their mean is then 0.18
and 0.35 standard deviations off."""

USUAL_ROWS = 32
"""For which momenta are meant: running averages of smaller batches look back over as many rows, not as many batches."""

EARLY, FINISH = 0.9, 0.2
"""Shares of the steps with frozen statistics: where a batch says next to nothing, and where it says little."""

RENORM_OPENS, RENORM_OPEN = 0.05, 0.25
"""Shares of the steps between which batch renorm's bounds open; the paper's steps are those of much longer runs."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """amount: the share of `frozen`, the rows of `ghost`. reason: why, for people; empty where it was asked for."""

    kind: Kind
    amount: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}" if self.kind in ("frozen", "ghost") else self.kind

    def freezes_at(self, total_steps: int) -> int | None:
        """The step before which statistics are measured and frozen; None: never. At least one step goes before it."""
        if self.kind != "frozen":
            return None
        return max(1, total_steps - math.ceil(self.amount * total_steps))

    def is_frozen(self, step: int, total_steps: int) -> bool:
        """Whether `step` is made with frozen statistics."""
        first = self.freezes_at(total_steps)
        return first is not None and step >= first

    @property
    def measures_at_end(self) -> bool:
        """Otherwise the weights have been fitted to the statistics as they are, and others would be wrong."""
        return self.kind != "frozen"


def parse_remedy(text: str) -> Remedy:
    """All of `FORMS` but auto. Raises UserError."""
    kind, _, number = text.partition(":")
    wanted = f"remedy {text!r}: expected one of {', '.join(FORMS)}"
    if kind not in KINDS or bool(number) != (kind in ("frozen", "ghost")):
        raise UserError(wanted)
    try:
        amount = float(number or 0)
    except ValueError:
        raise UserError(wanted) from None
    if kind == "frozen" and not 0 < amount < 1:
        raise UserError(
            f"remedy {text!r}: the share of the steps is to be above 0 and below 1, as in frozen:{FINISH:g}"
        )
    if kind == "ghost" and not (amount >= 2 and amount == int(amount)):
        raise UserError(f"remedy {text!r}: pieces are to have two rows or more, as in ghost:{USUAL_ROWS}")
    return Remedy(kind, amount)


def choose_remedy(batch_rows: int, *, values_per_row: float = 1.0, processes: int = 1) -> Remedy:
    """For one process's batch of so many rows.

    values_per_row: how many free values of a channel one row is worth (the doctor measures it); 1 is the worst case,
    and true of layers without positions. Never a normalisation that stays when the network serves.
    """
    values = batch_rows * values_per_row
    said = f"a batch of {batch_rows} rows is worth {values:.3g} values a channel"
    if values >= ENOUGH_VALUES:
        return Remedy("none", reason=f"{said}, {ENOUGH_VALUES:g} are enough")
    if processes > 1 and processes * values >= ENOUGH_VALUES:
        return Remedy("sync", reason=f"{said}, those of {processes} processes together {processes * values:.3g}")
    if values >= FEW_VALUES:
        return Remedy("precise", reason=f"{said}: enough to learn by, too few to serve by")
    return Remedy("frozen", EARLY, f"{said}: too few to learn by")


def remedy_of(recipe: Recipe) -> Remedy:
    """What the recipe asks for, `auto` decided. Raises UserError."""
    return choose_remedy(recipe.batch_size) if recipe.remedy == "auto" else parse_remedy(recipe.remedy)


def apply(module: nn.Module, remedy: Remedy, *, batch_rows: int, total_steps: int) -> nn.Module:
    """Before the first step: layers as the remedy wants them, in place, and returned. Raises UserError for layers that
    cannot become that."""
    if remedy.kind in ("renorm", "sync"):
        module = replace(module, remedy.kind)
    elif remedy.kind == "ghost":
        module = replace(module, str(remedy))
    for layer in norm_layers(module):
        inner = layer.module
        momentum = inner.momentum
        if remedy.kind in ("precise", "frozen", "renorm") and isinstance(momentum, float):
            inner.momentum = momentum * min(1.0, batch_rows / USUAL_ROWS)  # type: ignore[assignment]
        if isinstance(inner, BatchRenorm):
            inner.opens_at, inner.open_at = (int(share * total_steps) for share in (RENORM_OPENS, RENORM_OPEN))
    return module


def freeze(module: nn.Module, batches: Iterable[Any], forward: Forward | None = None) -> None:
    """Before step `freezes_at`: statistics of `batches`, which stay. Raises CannotEstimate."""
    estimate(module, batches, forward=forward, keep_frozen=False)
    hold(module)


def hold(module: nn.Module) -> None:
    """Behind every `module.train()` while `is_frozen`: layers normalise by their running statistics. Gamma and beta are
    learned as before."""
    for layer in norm_layers(module):
        layer.module.eval()
