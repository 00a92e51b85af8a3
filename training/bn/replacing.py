"""One kind of normalisation for another, in a network that is there: `replace(model, "ghost:32")`.

bn  ghost:ROWS  renorm  sync  masked  frozen     weights and running statistics are kept, to the bit in eval mode
gn:GROUPS  ln                                    gamma and beta are kept; statistics of each row, which stay when the
                                                 network serves: nothing is left to fold
none                                             nothing in its place; only in networks that have not been trained
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from training.bn.variants import BatchRenorm, FrozenBatchNorm, GhostBatchNorm, MaskedBatchNorm, SyncBatchNorm, _Variant
from training.errors import UserError

_RANKS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Maker = Callable[[nn.modules.batchnorm._BatchNorm, dict[str, Any]], nn.Module]


class AnyBatchNorm(_Variant):
    """BatchNorm of any rank: what `bn` makes of a layer whose rank is not known."""

    def _by_batch(self, values: Any) -> Any:
        return nn.functional.batch_norm(
            values, self.running_mean if self.training else None, self.running_var if self.training else None,
            self.weight, self.bias, True, self._rate(), self.eps,
        )  # fmt: skip

    def _rate(self) -> float:
        if self.num_batches_tracked is None or not self.training:
            return 0.0
        self.num_batches_tracked += 1
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


def replace(model: nn.Module, norm: str) -> nn.Module:
    """Every BatchNorm layer of `model` becomes `norm`; in place, and returned (another object only where the model is
    itself such a layer). Layers that several places share stay shared. Modes are kept.

    Raises UserError for an unknown kind, one that a layer cannot become, and a layer that does more than normalise,
    such as timm's with the activation inside; the model is then as it was.
    """
    make = _maker(norm)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in _KNOWN:
                raise UserError(
                    f"layer {name!r} is a {type(module).__name__}, which may do more than normalise; only torch's own "
                    f"BatchNorm layers and those of training.bn can be replaced"
                )
            made[module] = _made(module, make)
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():  # named_children leaves out a layer's second place
            if child in made:
                setattr(parent, name, made[child])
    return made[model] if isinstance(model, nn.modules.batchnorm._BatchNorm) else model


def _maker(norm: str) -> Maker:
    kind, _, number = norm.partition(":")
    if kind not in _MAKERS:
        raise UserError(f"unknown normalisation {norm!r}; expected one of {', '.join(FORMS)}")
    if (kind in _NUMBERED) != bool(number) or (number and not (number.isascii() and number.isdigit())):
        raise UserError(f"{norm!r} is not understood; expected {next(form for form in FORMS if form.startswith(kind))}")
    return lambda layer, options: _MAKERS[kind](layer, options, int(number or 0))


def _made(layer: nn.modules.batchnorm._BatchNorm, make: Maker) -> nn.Module:
    options = {
        "eps": layer.eps,
        "momentum": layer.momentum,
        "affine": layer.weight is not None,
        "track_running_stats": layer.running_mean is not None,
    }
    made = make(layer, options)
    if isinstance(made, nn.modules.batchnorm._BatchNorm) and layer.weight is not None and layer.bias is None:
        made.register_parameter("bias", None)
    state = layer.state_dict()
    reference = next(iter(state.values()), None)
    if reference is not None:
        made.to(device=reference.device, dtype=reference.dtype if reference.is_floating_point() else None)
    wanted = {name: state[name] for name in made.state_dict() if name in state}
    made.load_state_dict(wanted, strict=False)
    for name, parameter in made.named_parameters():
        if (old := getattr(layer, name)) is not None:
            parameter.requires_grad = old.requires_grad
    return made.train(layer.training)


def _plain(layer: nn.modules.batchnorm._BatchNorm, options: dict[str, Any], _: int) -> nn.Module:
    for kind in _RANKS:
        if isinstance(layer, kind):
            return kind(layer.num_features, **options)
    return AnyBatchNorm(layer.num_features, **options)


def _group(layer: nn.modules.batchnorm._BatchNorm, options: dict[str, Any], groups: int) -> nn.Module:
    if groups < 1 or layer.num_features % groups:
        raise UserError(f"gn:{groups} does not divide a layer of {layer.num_features} channels")
    return nn.GroupNorm(groups, layer.num_features, eps=options["eps"], affine=options["affine"])


_MAKERS: dict[str, Callable[[nn.modules.batchnorm._BatchNorm, dict[str, Any], int], nn.Module]] = {
    "bn": _plain,
    "ghost": lambda layer, options, rows: GhostBatchNorm(layer.num_features, rows, **options),
    "renorm": lambda layer, options, _: BatchRenorm(layer.num_features, **options),
    "sync": lambda layer, options, _: SyncBatchNorm(layer.num_features, **options),
    "masked": lambda layer, options, _: MaskedBatchNorm(layer.num_features, **options),
    "frozen": lambda layer, options, _: FrozenBatchNorm(layer.num_features, **options),
    "gn": _group,
    # Layer normalisation over channels and positions, as for images: one group.
    "ln": lambda layer, options, _: _group(layer, options, 1),
    "none": lambda *_: nn.Identity(),
}
_KNOWN = {
    *_RANKS,
    nn.SyncBatchNorm,
    AnyBatchNorm,
    BatchRenorm,
    FrozenBatchNorm,
    GhostBatchNorm,
    MaskedBatchNorm,
    SyncBatchNorm,
}
_NUMBERED = {"ghost", "gn"}
FORMS = tuple(f"{kind}:{'ROWS' if kind == 'ghost' else 'GROUPS'}" if kind in _NUMBERED else kind for kind in _MAKERS)
"""What `replace` understands."""
