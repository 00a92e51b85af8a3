"""Forty-five ways in which a BatchNorm network goes wrong, each with how it is injected and which check must find it.

Forty were written before any threshold of the checks was set. Half of them were `held_out`: thresholds were chosen
without looking at whether those are found. One of these, batches_of_one_class, was found in no network, and H7 was then
taught to see rows that are alike: it counts as known since. Five more were written, all held out, after that change and
before any was tried. A fault is found when its check says something about the injured layer (or about the whole
network, where the fault is the network's), at least as severe as `least`, that it did not say of the healthy network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from tests.training.bn.networks import KINDS, ROWS, Kind, batches
from training.bn.facts import Facts, Group
from training.bn.layers import norm_layers

Statistics = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Running mean and variance by a layer's name."""


@dataclass(frozen=True)
class Scene:
    """What a doctor is shown. mask: of each batch, which positions count. ranks: what other processes hold."""

    model: nn.Module
    kind: Kind
    batches: list[torch.Tensor]
    facts: Facts
    masks: list[torch.Tensor] | None = None
    ranks: list[Statistics] = field(default_factory=list)

    @property
    def victim(self) -> nn.BatchNorm2d:
        """The layer that faults of one layer go into; all that is looked at has the same name in every class."""
        layer = self.model.get_submodule(self.kind.victim)
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm)
        return layer  # type: ignore[return-value]

    @property
    def all_norms(self) -> list[nn.BatchNorm2d]:
        return [layer.module for layer in norm_layers(self.model)]  # type: ignore[misc]

    def feeder(self) -> tuple[str, nn.Module]:
        """Name and module of the layer in front of the victim."""
        modules = list(self.model.named_modules())
        place = next(i for i, (name, _) in enumerate(modules) if name == self.kind.victim)
        weighty = [
            (name, module) for name, module in modules[:place] if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv1d))
        ]
        return weighty[-1]

    def exchange(self, name: str, module: nn.Module) -> None:
        """Another module in the place of `name`."""
        parent, _, last = name.rpartition(".")
        setattr(self.model.get_submodule(parent), last, module)


def healthy(kind: str, network: nn.Module, *, steps: int = 150) -> Scene:
    """The network in good health, and all that was true of its training."""
    groups = (Group(parameters=tuple(name for name, _ in network.named_parameters())),)
    facts = Facts(
        steps=steps, accumulation=1, batch_rows=ROWS, rows=1797, drop_last=True, shuffle=True, learning_rate=3e-3,
        groups=groups, fullgraph=False, finished=True,
    )  # fmt: skip
    return Scene(copy.deepcopy(network), KINDS[kind], batches(KINDS[kind].inputs), facts)


Inject = Callable[[Scene], Scene | None]
"""Injures the scene's own copy of a network in place, or returns another scene."""


@dataclass(frozen=True)
class Fault:
    """`check`: the one that must find it. `where`: "victim", "closing", or "" where any place may be named."""

    name: str
    check: str
    held_out: bool
    least: str
    where: str
    inject: Inject


FAULTS: list[Fault] = []


def fault(check: str, *, held_out: bool, least: str = "yellow", where: str = "victim") -> Callable[[Inject], Inject]:
    def noted(inject: Inject) -> Inject:
        FAULTS.append(Fault(inject.__name__, check, held_out, least, where, inject))
        return inject

    return noted


def some(layer: nn.BatchNorm2d) -> slice:
    """A quarter of its channels."""
    return slice(0, max(len(layer.running_mean) // 4, 1))


@fault("H1", held_out=False)
@torch.no_grad()
def channels_without_gamma(scene: Scene) -> None:
    scene.victim.weight[some(scene.victim)] = 1e-6


@fault("H1", held_out=True)
@torch.no_grad()
def channels_below_their_relu(scene: Scene) -> None:
    layer = scene.victim
    layer.bias[some(layer)] = -4 * layer.weight[some(layer)].abs()


@fault("H2", held_out=True, where="closing")
@torch.no_grad()
def a_block_that_never_woke(scene: Scene) -> None:
    """As zero-initialised last gammas are left by a rate too small."""
    assert scene.kind.closing
    scene.model.get_submodule(scene.kind.closing).weight.fill_(1e-5)


@fault("H3", held_out=False, least="red")
def a_variance_of_zero(scene: Scene) -> None:
    scene.victim.running_var[0] = 0


@fault("H3", held_out=False, least="red")
def a_variance_that_is_no_number(scene: Scene) -> None:
    scene.victim.running_var[0] = torch.nan


@fault("H3", held_out=True, least="red")
def a_negative_variance(scene: Scene) -> None:
    """As averaging checkpoints by extrapolation makes it."""
    scene.victim.running_var[0] = -0.1


@fault("H3", held_out=True, least="red")
def an_infinite_mean(scene: Scene) -> None:
    """As one overflow in half precision leaves it."""
    scene.victim.running_mean[0] = torch.inf


@fault("H3", held_out=True)
@torch.no_grad()
def channels_that_hardly_vary(scene: Scene) -> None:
    """The weights before them have shrunk by decay, and the statistics with them: epsilon rules."""
    _, feeder = scene.feeder()
    channels = some(scene.victim)
    factor = 1e-3 / scene.victim.running_var[channels].sqrt()
    feeder.weight[channels] *= factor.reshape(-1, *(1 for _ in feeder.weight.shape[1:]))
    scene.victim.running_mean[channels] *= factor
    scene.victim.running_var[channels] = 1e-6


@fault("H4", held_out=False)
@torch.no_grad()
def a_channel_with_an_enormous_gain(scene: Scene) -> None:
    scene.victim.weight[0] = 1e4 * scene.victim.running_var[0].sqrt()


@fault("H4", held_out=True)
@torch.no_grad()
def gains_of_all_sizes(scene: Scene) -> None:
    """Eight bits cannot hold both the largest and the smallest."""
    spread = scene.victim.running_var.sqrt()
    scene.victim.weight.copy_(spread)
    scene.victim.weight[0] *= 300
    scene.victim.weight[1] /= 100


@fault("H5", held_out=False, least="red")
def statistics_reset(scene: Scene) -> None:
    scene.victim.reset_running_stats()


@fault("H5", held_out=False)
def ten_steps_only(scene: Scene) -> Scene:
    """Ten batches of a run's first statistics: a third of them is still the initial 0 and 1."""
    left = 0.9**10
    for layer in scene.all_norms:
        layer.running_mean *= 1 - left
        layer.running_var.copy_(layer.running_var * (1 - left) + left)
        layer.num_batches_tracked.fill_(10)
    return replace(scene, facts=scene.facts.model_copy(update={"steps": 10}))


@fault("H5", held_out=True)
def a_momentum_too_small_for_the_run(scene: Scene) -> None:
    """1e-3 over 150 steps, in one layer."""
    layer = scene.victim
    left = 0.999**150
    layer.momentum = 1e-3
    layer.running_mean *= 1 - left
    layer.running_var.copy_(layer.running_var * (1 - left) + left)


@fault("H6", held_out=False)
def a_shifted_mean(scene: Scene) -> None:
    layer = scene.victim
    layer.running_mean += 0.5 * layer.running_var.sqrt()


@fault("H6", held_out=False)
def a_doubled_variance(scene: Scene) -> None:
    scene.victim.running_var *= 2


@fault("H6", held_out=True)
def deviations_stored_as_variances(scene: Scene) -> None:
    """A port from a framework or a text that averages the standard deviation."""
    for layer in scene.all_norms:
        layer.running_var.sqrt_()


@fault("H6", held_out=True)
@torch.no_grad()
def weights_that_moved_on(scene: Scene) -> None:
    """Averaged, merged or tuned after the statistics were taken."""
    _, feeder = scene.feeder()
    torch.manual_seed(1)
    feeder.weight += 0.5 * feeder.weight.std() * torch.randn_like(feeder.weight)


@fault("H6", held_out=True, where="")
def data_of_another_domain(scene: Scene) -> Scene:
    """Another camera, another way of writing: less contrast, or other words."""
    if scene.kind.inputs == "words":
        return replace(scene, batches=[batch // 2 for batch in scene.batches])
    return replace(scene, batches=[0.4 * batch + 0.4 for batch in scene.batches])


@fault("H7", held_out=False, where="")
def batches_of_two(scene: Scene) -> Scene:
    return replace(scene, facts=scene.facts.model_copy(update={"batch_rows": 2}))


@fault("H7", held_out=False, where="")
def batches_of_one_class(scene: Scene) -> Scene:
    """Sorted rows: 64 of them say hardly more than a few would. By ink, which every kind of network sees."""
    rows = torch.cat(scene.batches)
    order = rows.flatten(1).double().mean(1).argsort()
    return replace(scene, batches=list(rows[order].split(ROWS)))


@fault("H8", held_out=False, where="")
def answers_far_from_those_of_training(scene: Scene) -> None:
    for layer in scene.all_norms:
        layer.running_var *= 0.25


@fault("H9", held_out=False, where="")
def every_batch_counted_twice(scene: Scene) -> None:
    """Activation checkpointing runs the layer again in the backward pass."""
    for layer in scene.all_norms:
        layer.num_batches_tracked *= 2


@fault("H9", held_out=True, where="")
def passes_beside_the_training(scene: Scene) -> None:
    """A search for a learning rate, or a check before the run, in training mode."""
    for layer in scene.all_norms:
        layer.num_batches_tracked += 40


@fault("H9", held_out=True)
def one_layer_that_counted_twice(scene: Scene) -> Scene:
    """Nobody knows the number of steps; its neighbours do."""
    scene.victim.num_batches_tracked *= 2
    return replace(scene, facts=scene.facts.model_copy(update={"steps": None}))


@fault("H10", held_out=False)
def another_process_holds_others(scene: Scene) -> Scene:
    ranks: Statistics = {layer.name: (layer.mean.clone(), layer.variance.clone()) for layer in norm_layers(scene.model)}
    mean, variance = ranks[scene.kind.victim]
    ranks[scene.kind.victim] = (mean + 0.3 * variance.sqrt(), variance)
    return replace(scene, ranks=[ranks])


@fault("H11", held_out=False)
def frozen_by_its_gradients_alone(scene: Scene) -> Scene:
    scene.victim.train().requires_grad_(False)
    scene.model.train()
    return replace(scene, facts=scene.facts.model_copy(update={"finished": False}))


@fault("H11", held_out=True)
def tracking_switched_off_later(scene: Scene) -> None:
    scene.victim.track_running_stats = False


@fault("H12", held_out=False, where="")
def statistics_over_padding(scene: Scene) -> Scene:
    """A third of all positions (of rows, where a row is one position) was filled up."""
    masks, padded = [], []
    for batch in scene.batches:
        shape = batch.shape[:1] if scene.kind.inputs == "row" else (batch.shape[0], *batch.shape[-2:])
        shape = batch.shape if scene.kind.inputs == "words" else shape
        mask = torch.ones(shape, dtype=torch.bool)
        mask.transpose(0, -1)[: -(-mask.shape[-1] // 3)] = False
        spread = mask[:, None] if scene.kind.inputs != "words" else mask
        masks.append(mask)
        padded.append(batch * spread.to(batch))
    return replace(scene, batches=padded, masks=masks)


@fault("H13", held_out=False, least="note")
def a_bias_that_is_subtracted_again(scene: Scene) -> None:
    _, feeder = scene.feeder()
    feeder.bias = nn.Parameter(torch.zeros(len(scene.victim.running_mean)))


def _scale(scene: Scene, factor: float) -> None:
    with torch.no_grad():
        _, feeder = scene.feeder()
        feeder.weight *= factor
        scene.victim.running_mean *= factor
        scene.victim.running_var *= factor**2


@fault("H14", held_out=False)
def weights_grown_too_large_to_turn(scene: Scene) -> None:
    """Without decay, weights before a BatchNorm only grow, and the effective rate falls with their square."""
    _scale(scene, 1e4)


@fault("H14", held_out=True)
def weights_decayed_to_nothing(scene: Scene) -> None:
    """Too much decay: the effective rate explodes."""
    _scale(scene, 1e-4)


@fault("L1", held_out=False, where="")
def dropout_before_a_batchnorm(scene: Scene) -> None:
    name, feeder = scene.feeder()
    scene.exchange(name, nn.Sequential(nn.Dropout(0.3), feeder))


@fault("L2", held_out=True, where="")
def decay_on_gamma_and_beta(scene: Scene) -> Scene:
    groups = tuple(group.model_copy(update={"weight_decay": 0.05}) for group in scene.facts.groups or ())
    return replace(scene, facts=scene.facts.model_copy(update={"groups": groups}))


@fault("L4", held_out=False)
def momentum_of_another_framework(scene: Scene) -> None:
    scene.victim.momentum = 0.99


@fault("L6", held_out=False, where="")
def one_batchnorm_in_two_places(scene: Scene) -> None:
    """Two layers of equal width that are one module."""
    by_width: dict[int, str] = {}
    for layer in norm_layers(scene.model):
        if layer.channels in by_width:
            scene.exchange(layer.name, scene.model.get_submodule(by_width[layer.channels]))
            return
        by_width[layer.channels] = layer.name


@fault("L7", held_out=False, least="red")
def no_running_statistics(scene: Scene) -> None:
    layer = scene.victim
    bare = type(layer)(len(layer.running_mean), track_running_stats=False)
    scene.exchange(scene.kind.victim, bare.eval())


@fault("L10", held_out=True)
def normalised_after_a_softmax(scene: Scene) -> None:
    name, feeder = scene.feeder()
    scene.exchange(name, nn.Sequential(feeder, nn.Softmax(dim=1)))


@fault("L11", held_out=True)
def no_epsilon(scene: Scene) -> None:
    scene.victim.eps = 0.0


@fault("L12", held_out=True, where="")
def a_last_batch_of_one(scene: Scene) -> Scene:
    """1793 rows in batches of 64."""
    return replace(scene, facts=scene.facts.model_copy(update={"rows": 1793, "drop_last": False}))


@fault("L16", held_out=True)
def a_layer_left_in_training_mode(scene: Scene) -> None:
    scene.victim.train()


# --- written after H7 had been taught to see rows that are alike, and before any of them was tried ---


@fault("H7", held_out=True, where="")
def one_brightness_for_all_rows_of_a_batch(scene: Scene) -> Scene:
    """Augmentation draws once a batch instead of once a row."""
    factors = torch.empty(len(scene.batches)).uniform_(0.4, 1.0, generator=torch.Generator().manual_seed(0))
    changed = [(batch * factor).to(batch.dtype) for batch, factor in zip(scene.batches, factors, strict=True)]
    return replace(scene, batches=changed)


@fault("H7", held_out=True, where="")
def few_rows_repeated_to_fill_a_batch(scene: Scene) -> Scene:
    """Neighbouring frames of few films: four rows, sixteen times each."""
    return replace(scene, batches=[batch[:4].repeat_interleave(ROWS // 4, dim=0) for batch in scene.batches])


@fault("H6", held_out=True)
def channels_in_another_order(scene: Scene) -> None:
    """A port that moved the weights' channels and forgot the statistics'."""
    layer = scene.victim
    layer.running_mean.copy_(layer.running_mean.roll(1))
    layer.running_var.copy_(layer.running_var.roll(1))


@fault("H9", held_out=True, where="")
def a_counter_that_began_again(scene: Scene) -> None:
    """A run resumed half-way from a checkpoint that did not hold it."""
    for layer in scene.all_norms:
        layer.num_batches_tracked //= 2


@fault("H10", held_out=True)
def another_process_holds_other_variances(scene: Scene) -> Scene:
    """Its share of the data has more contrast."""
    ranks: Statistics = {layer.name: (layer.mean.clone(), layer.variance.clone()) for layer in norm_layers(scene.model)}
    mean, variance = ranks[scene.kind.victim]
    ranks[scene.kind.victim] = (mean, 1.5 * variance)
    return replace(scene, ranks=[ranks])


def applicable(kind: Kind) -> Iterator[Fault]:
    """Those that this kind of network can have."""
    yield from (each for each in FAULTS if each.where != "closing" or kind.closing)
