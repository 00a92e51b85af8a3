"""The training loop: recipe and data in, network in eval mode and `TrainReport` out. Knows no ONNX and no repository.

What is reproducible: on one machine, with one build of torch and one number of threads, two runs of a recipe give the
same weights bit for bit. Another processor, torch or thread count sums in another order, and training magnifies the
difference: accuracy then agrees, weights do not. The process's own random state and torch settings are left as found.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from training import architectures
from training.architectures.norms import Norms
from training.checkpoint import Snapshot
from training.datasets.dataset import Dataset, Examples
from training.engine import run_steps
from training.errors import UserError
from training.fronts import Network, build_front, features_of
from training.randomness import generator, reseed
from training.recipe import Recipe
from training.run_folder import RunFolder

TOOLS = ("torch", "numpy", "scikit-learn")
EVALUATION_ROWS = 256


class TrainingFailed(UserError):
    """The loop cannot go on: the loss is no longer a number, or there is too little data for BatchNorm."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was trained, how, and how good it is. Accuracies are shares of 1, measured in eval mode.

    epochs, total_steps: that the recipe asks for; steps: that were made; seconds: since the start, or since it was
    resumed. train_loss: the last whole epoch's mean, None before its end.
    """

    epochs: int
    steps: int
    total_steps: int
    seconds: float
    train_loss: float | None
    train_accuracy: float
    test_accuracy: float
    n_train: int
    n_test: int
    parameters: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def is_finished(self) -> bool:
        return self.steps == self.total_steps

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    show_progress: bool | None = None,
    run: RunFolder | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[nn.Module, TrainReport]:
    """Train the recipe's network on `dataset.train`; returns it in eval mode, on the CPU.

    show_progress: None draws the bar only when stderr is a terminal. run: where it is kept, and gone on with where it
    stopped; the bits are those of a run that never stopped. should_stop: asked behind each step.
    Raises TrainingFailed, and what RunFolder.last raises.
    """
    started = time.monotonic()
    with torch_set_up_for(recipe):
        module = _new_module(recipe, dataset)
        fit = _Fit(module, recipe, dataset, run)
        fit.go(show_progress, should_stop)
        module.eval()
        train_accuracy, test_accuracy = (accuracy(module, part) for part in (dataset.train, dataset.test))
    report = TrainReport(
        epochs=recipe.epochs,
        steps=fit.steps,
        total_steps=fit.total,
        seconds=round(time.monotonic() - started, 3),
        train_loss=None if math.isnan(fit.loss) else fit.loss,
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        settings=recipe.model_dump(mode="json"),
        versions={"python": platform.python_version()} | {tool: metadata.version(tool) for tool in TOOLS},
    )
    return module, report


def tensors(examples: Examples) -> list[torch.Tensor]:
    """The inputs, in the order in which a network takes them."""
    return [torch.from_numpy(values) for values in examples.inputs.values()]


def logits(module: nn.Module, examples: Examples) -> torch.Tensor:
    """The module's answers in eval mode for all rows, computed in pieces of bounded size."""
    pieces = zip(*(values.split(EVALUATION_ROWS) for values in tensors(examples)), strict=True)
    with torch.inference_mode():
        return torch.cat([module(*piece) for piece in pieces])


def accuracy(module: nn.Module, examples: Examples) -> float:
    """Share of `examples` (of their pixels, where each has a label) whose highest logit is the label's, from 0 to 1."""
    hits = logits(module, examples).argmax(dim=1) == torch.from_numpy(examples.labels)
    return hits.double().mean().item()


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """An epoch is cut into equal batches (to one row) of at least `batch_size`: the remainder is spread over them.

    So BatchNorm never meets a last batch of one row, whose variance is zero, and no example is dropped.
    """
    return max(1, rows // batch_size)


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Share of the peak rate at `step` of `steps`: a linear warm-up to 1, then half a cosine down to 0 (SGDR, arXiv
    1608.03983, without restarts). The first step already moves, and no step stands still."""
    warmup = min(int(warmup_fraction * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on weights only. Told by module type, not by name or rank: a BatchNorm's gamma is also called `weight`.

    L2 on gamma and beta changes what the network can say; L2 on a weight before BatchNorm sets its effective learning
    rate (van Laarhoven, arXiv 1706.05350).
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for owner in module.modules():
        is_norm = isinstance(owner, nn.modules.batchnorm._NormBase)
        for name, parameter in owner.named_parameters(recurse=False):
            (spared if is_norm or name == "bias" else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def shifted(images: torch.Tensor, pixels: int, generator: torch.Generator) -> torch.Tensor:
    """Each image [rows, channels, height, width] moved by up to `pixels` along both axes, zeros moving in."""
    if pixels == 0:
        return images
    rows, _, height, width = images.shape
    padded = functional.pad(images, (pixels, pixels, pixels, pixels))
    down, right = torch.randint(0, 2 * pixels + 1, (2, rows, 1), generator=generator)
    y = (down + torch.arange(height))[:, :, None]
    x = (right + torch.arange(width))[:, None, :]
    # Two index tensors around a slice put the channels last (NumPy's advanced indexing).
    return padded[torch.arange(rows)[:, None, None], :, y, x].permute(0, 3, 1, 2)


def _new_module(recipe: Recipe, dataset: Dataset) -> nn.Module:
    architecture = recipe.architecture
    norms = Norms(eps=architecture.eps, momentum=architecture.momentum)
    body = architectures.build(
        architecture.family, features_of(dataset), len(dataset.classes), norms=norms, widths=architecture.widths
    )
    return Network(build_front(dataset.front), body)


class _Fit:
    """One run's loop. Everything in a step follows from its number and the seed; what carries over is in `snapshot`."""

    def __init__(self, module: nn.Module, recipe: Recipe, dataset: Dataset, run: RunFolder | None) -> None:
        self._module, self._recipe, self._dataset, self._run = module, recipe, dataset, run
        examples = dataset.train
        if len(examples) < 2:
            raise TrainingFailed(
                f"{len(examples)} training example: BatchNorm needs at least two rows to have a variance"
            )
        self._inputs, self._labels = tensors(examples), torch.from_numpy(examples.labels)
        self._per_epoch = steps_per_epoch(len(examples), recipe.batch_size)
        self.total = self._per_epoch * recipe.epochs
        self._optimiser = torch.optim.SGD(
            parameter_groups(module, recipe.optimiser.weight_decay),
            lr=recipe.optimiser.learning_rate,
            momentum=recipe.optimiser.momentum,
            nesterov=True,
        )
        self._order: tuple[int, Sequence[torch.Tensor]] = (-1, ())
        self._losses: list[float] = []
        self.loss = math.nan
        """The last whole epoch's mean."""
        self.steps = 0

    def go(self, show_progress: bool | None, should_stop: Callable[[], bool]) -> None:
        """From where the run is to its end, or to where `should_stop` says so."""
        if self._run is not None and (last := self._run.last(self._dataset)) is not None:
            self._restore(last)
        self._module.train()
        with tqdm(total=self._recipe.epochs, desc="training", unit="epoch", disable=_hidden(show_progress)) as bar:
            bar.update(self.steps // self._per_epoch)

            def goes_on(steps: int) -> bool:
                self.steps = steps
                if steps % self._per_epoch == 0:
                    self._end_epoch()
                    bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
                    bar.update()
                stops = should_stop()
                if self._run is not None and (stops or steps == self.total or self._run.is_due()):
                    self._run.keep(self._snapshot())
                return not stops

            run_steps(self._step, first=self.steps, total=self.total, goes_on=goes_on)

    def _step(self, step: int) -> None:
        recipe = self._recipe
        rows = self._rows(step)
        reseed(recipe.seed, "noise", step)
        inputs = [values[rows] for values in self._inputs]
        if recipe.data.shift_pixels:
            inputs[0] = shifted(inputs[0], recipe.data.shift_pixels, generator(recipe.seed, "augmentation", step))
        factor = learning_rate_factor(step, self.total, recipe.optimiser.warmup_fraction)
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.optimiser.learning_rate * factor
        loss = functional.cross_entropy(self._module(*inputs), self._labels[rows])
        self._losses.append(_finite(loss.item(), step // self._per_epoch + 1, recipe))
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()

    def _rows(self, step: int) -> torch.Tensor:
        epoch, place = divmod(step, self._per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self._labels), generator=generator(self._recipe.seed, "order", epoch))
            self._order = (epoch, order.tensor_split(self._per_epoch))
        return self._order[1][place]

    def _end_epoch(self) -> None:
        self.loss = math.fsum(self._losses) / len(self._losses)
        self._losses = []
        if self._run is not None:
            self._run.tell({"epoch": self.steps // self._per_epoch, "steps": self.steps, "train_loss": self.loss})

    def _snapshot(self) -> Snapshot:
        values = {"losses": self._losses, "loss": None if math.isnan(self.loss) else self.loss}
        return Snapshot(self.steps, self._module.state_dict(), self._optimiser.state_dict(), values)

    def _restore(self, snapshot: Snapshot) -> None:
        self._module.load_state_dict(snapshot.module)
        self._optimiser.load_state_dict(dict(snapshot.optimiser))
        self.steps = snapshot.step
        self._losses = list(snapshot.values["losses"])
        loss = snapshot.values["loss"]
        self.loss = math.nan if loss is None else loss


def _hidden(show_progress: bool | None) -> bool | None:
    return None if show_progress is None else not show_progress  # tqdm: None hides the bar when stderr is no terminal


def _finite(loss: float, epoch: int, recipe: Recipe) -> float:
    if math.isfinite(loss):
        return loss
    rate = recipe.optimiser.learning_rate
    raise TrainingFailed(
        f"recipe {recipe.name!r}: the loss became {loss} in epoch {epoch} of {recipe.epochs}; nothing was published. "
        f"Try a lower peak than optimiser.learning_rate={rate:g}, as in --set optimiser.learning_rate={rate / 10:g}"
    )


@contextmanager
def torch_set_up_for(recipe: Recipe) -> Iterator[None]:
    """Seed, threads and flush-denormal for the loop; all as before afterwards.

    Flush-denormal: once a network fits its data, gradients turn subnormal, and a step can take twice as long. The mode
    belongs to a thread: torch's worker threads keep the one they were born with, which costs nothing but subnormals.
    """
    threads, flushed = torch.get_num_threads(), _flushes_denormals()
    with torch.random.fork_rng(devices=[]):
        reseed(recipe.seed, "weights")
        torch.set_num_threads(recipe.threads)
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(flushed)
            torch.set_num_threads(threads)


def _flushes_denormals() -> bool:
    """torch has a setter and no getter; 1e-40 is subnormal in float32."""
    return (torch.full((), 1e-40) * 1.0).item() == 0.0
