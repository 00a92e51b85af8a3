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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from training import remedies
from training.averages import averaged
from training.checkpoint import Snapshot
from training.datasets.dataset import Dataset, Examples, Pixels
from training.distributed import ALONE, CannotDistribute, Processes
from training.engine import run_steps
from training.errors import UserError
from training.evaluation import EVALUATION_ROWS, measure
from training.networks import opened_network
from training.optimiser import build_optimiser, learning_rate_factor
from training.patience import Patience
from training.randomness import generator, reseed
from training.recipe import Recipe
from training.remedies import remedy_of
from training.run_folder import RunFolder, fingerprint

TOOLS = ("torch", "numpy", "scikit-learn")
_AVERAGE, _BEST = "average.", "best."


class TrainingFailed(UserError):
    """The loop cannot go on: the loss is no longer a number, or there is too little data for BatchNorm."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was trained, how, and how good it is. Accuracies are shares of 1, measured in eval mode.

    epochs, total_steps: that the recipe asks for; steps: that were made; seconds: since the start, or since it was
    resumed. train_loss: the last whole epoch's mean, None before its end. best_epoch: whose weights these are, where
    held-out examples decide; is_finished: nothing is left to do.
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
    is_finished: bool
    best_epoch: int | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(
    recipe: Recipe,
    dataset: Dataset,
    *,
    show_progress: bool | None = None,
    run: RunFolder | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    processes: Processes = ALONE,
) -> tuple[nn.Module, TrainReport]:
    """Train the recipe's network on `dataset.train`; returns it in eval mode, on the CPU.

    show_progress: None draws the bar only when stderr is a terminal. run: where it is kept, and gone on with where it
    stopped; the bits are those of a run that never stopped. should_stop: asked behind each step. processes: that make
    each step together, each by its part of the rows; the first one keeps the run, and any of them may stop it.
    Raises TrainingFailed, CannotDistribute, and what RunFolder.last raises.
    """
    started, limit = clock(), recipe.stopping.time_limit_s or math.inf
    if processes.count > 1:
        _require_one_run(recipe, dataset, processes)
    with torch_set_up_for(recipe), opened_network(recipe, dataset) as module:
        fit = Fit(module.to(recipe.device), recipe, dataset, run, processes)
        fit.go(show_progress, lambda: should_stop() or clock() - started >= limit)
        trained = fit.result().eval()
        processes.finish(trained)
        found = processes.of_first(lambda: [measure(trained, part) for part in (dataset.train, dataset.test)])
    report = TrainReport(
        epochs=recipe.epochs,
        steps=fit.steps,
        total_steps=fit.total,
        seconds=round(clock() - started, 3),
        train_loss=None if math.isnan(fit.loss) else fit.loss,
        train_accuracy=found[0].accuracy,
        test_accuracy=found[1].accuracy,
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        parameters=sum(parameter.numel() for parameter in trained.parameters()),
        is_finished=fit.is_finished,
        best_epoch=fit.best_epoch,
        settings=recipe.model_dump(mode="json"),
        versions={"python": platform.python_version()} | {tool: metadata.version(tool) for tool in TOOLS},
    )
    return trained.cpu(), report


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """An epoch is cut into equal batches (to one row) of at least `batch_size`: the remainder is spread over them.

    So BatchNorm never meets a last batch of one row, whose variance is zero, and no example is dropped.
    """
    return max(1, rows // batch_size)


def shifted(
    images: torch.Tensor, pixels: int, generator: torch.Generator, *, channels_last: bool = False
) -> torch.Tensor:
    """Each image [rows, channels, height, width] moved by up to `pixels` along both axes, zeros moving in.

    channels_last: each is [rows, height, width, channels].
    """
    if pixels == 0:
        return images
    if channels_last:
        return shifted(images.permute(0, 3, 1, 2), pixels, generator).permute(0, 2, 3, 1)
    rows, _, height, width = images.shape
    padded = functional.pad(images, (pixels, pixels, pixels, pixels))
    down, right = torch.randint(0, 2 * pixels + 1, (2, rows, 1), generator=generator)
    y = (down + torch.arange(height))[:, :, None]
    x = (right + torch.arange(width))[:, None, :]
    # Two index tensors around a slice put the channels last (NumPy's advanced indexing).
    return padded[torch.arange(rows)[:, None, None], :, y, x].permute(0, 3, 1, 2)


def steps_of(recipe: Recipe, dataset: Dataset) -> int:
    """In an epoch of such a run."""
    examples, _ = _with_patience(recipe, dataset.train)
    return steps_per_epoch(len(examples), recipe.batch_size * recipe.optimiser.accumulate)


class Fit:
    """One run's loop. Everything in a step follows from its number and the seed; what carries over is in a snapshot.

    A step is one move of the optimiser, by the gradients of one batch or of several (`accumulate`). Of several
    processes each draws the whole step and learns from its part of every batch.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        dataset: Dataset,
        run: RunFolder | None,
        processes: Processes = ALONE,
    ) -> None:
        self._module, self._recipe, self._dataset = module, recipe, dataset
        self._run, self._processes = run if processes.is_first else None, processes
        examples, self._patience = _with_patience(recipe, dataset.train)
        if len(examples) < 2:
            raise TrainingFailed(
                f"{len(examples)} training example: BatchNorm needs at least two rows to have a variance"
            )
        self._inputs = [torch.from_numpy(values) for values in examples.inputs.values()]
        self._labels = torch.from_numpy(examples.labels)
        self._channels_last = isinstance(dataset.front, Pixels) and dataset.front.channels_last
        self._per_epoch = steps_per_epoch(len(examples), recipe.batch_size * recipe.optimiser.accumulate)
        self.total = self._per_epoch * recipe.epochs
        self._remedy = remedy_of(recipe)
        remedies.apply(module, self._remedy, batch_rows=recipe.batch_size, total_steps=self.total)
        processes.prepare(module)
        self._optimiser = build_optimiser(recipe.optimiser, module)
        kept = recipe.optimiser.average
        self._average = None if kept is None else averaged(module, kept)
        self._order: tuple[int, Sequence[torch.Tensor]] = (-1, ())
        self._losses: list[float] = []
        self._accuracies: list[float] = []
        self.loss = math.nan
        """The last whole epoch's mean."""
        self.steps = 0

    @property
    def is_finished(self) -> bool:
        return self.steps == self.total or (self._patience is not None and self._patience.is_over)

    @property
    def best_epoch(self) -> int | None:
        return None if self._patience is None else self._patience.best_epoch

    def result(self) -> nn.Module:
        """The network as it is to be used: the best epoch's, the average, or as the last step left it."""
        if self._average is not None:
            self._module.load_state_dict(self._average.module.state_dict())
        if self._patience is not None and self._patience.best:
            self._module.load_state_dict(dict(self._patience.best))
        return self._module

    def go(self, show_progress: bool | None, should_stop: Callable[[], bool]) -> None:
        """From where the run is to its end, or to where `should_stop` says so."""
        if (last := self._processes.of_first(self._last)) is not None:
            self._restore(last)
        if self.is_finished:
            return
        self._learn_on()
        hidden = _hidden(show_progress) if self._processes.is_first else True
        with tqdm(total=self._recipe.epochs, desc="training", unit="epoch", disable=hidden) as bar:
            bar.update(self.steps // self._per_epoch)

            def goes_on(steps: int) -> bool:
                self.steps = steps
                stops = self._agreed(should_stop())
                if steps % self._per_epoch == 0:
                    self._end_epoch()
                    bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
                    bar.update()
                stops = stops or self.is_finished
                if self._run is not None and (stops or self._run.is_due()):
                    self._run.keep(self._snapshot())
                return not stops

            run_steps(self.step, first=self.steps, total=self.total, goes_on=goes_on)

    def _last(self) -> Snapshot | None:
        return None if self._run is None else self._run.last(self._dataset)

    def _agreed(self, stops: bool) -> bool:
        """Behind a step, in one message: loss and accuracy are those of all rows, and who is to stop stops all."""
        if self._processes.count > 1:
            own = [self._losses[-1], self._accuracies[-1], float(stops)]
            self._losses[-1], self._accuracies[-1], stopping = self._processes.sum(own)
            stops = stopping > 0
        _require_finite(self._losses[-1], (self.steps - 1) // self._per_epoch + 1, self._recipe)
        return stops

    def _learn_on(self) -> None:
        self._module.train()
        if self._remedy.is_frozen(self.steps, self.total):
            remedies.hold(self._module)

    def _freeze(self) -> None:
        """The statistics of all that is trained on, without augmentation, from now on."""
        pieces = list(zip(*(values.split(EVALUATION_ROWS) for values in self._inputs), strict=True))
        remedies.freeze(self._module, pieces[self._processes.rank :: self._processes.count], self._answer)

    def _answer(self, module: nn.Module, batch: Sequence[torch.Tensor]) -> object:
        return module(*(values.to(self._recipe.device) for values in batch))

    def step(self, step: int) -> None:
        """The step of this number."""
        recipe, settings = self._recipe, self._recipe.optimiser
        if step == self._remedy.freezes_at(self.total):
            self._freeze()
        rows = self._rows(step)
        # Each process draws dropout for its own rows, the first as if it were alone.
        reseed(recipe.seed, "noise", self._processes.rank * self.total + step)
        inputs, labels = [values[rows] for values in self._inputs], self._labels[rows]
        if recipe.data.shift_pixels:
            source = generator(recipe.seed, "augmentation", step)
            inputs[0] = shifted(inputs[0], recipe.data.shift_pixels, source, channels_last=self._channels_last)
        factor = learning_rate_factor(step, self.total, settings.warmup_fraction)
        for group in self._optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor
        self._optimiser.zero_grad()
        batches = max(1, min(settings.accumulate, len(rows) // recipe.batch_size))
        pieces = _cut((*inputs, labels), batches)
        if self._processes.count > 1:
            pieces = [[self._processes.share(values) for values in piece] for piece in pieces]
        found = [self._backward(piece, len(piece[-1]) / len(rows)) for piece in pieces]
        self._losses.append(math.fsum(loss for loss, _ in found))
        self._accuracies.append(math.fsum(share for _, share in found))
        self._processes.sum_gradients(self._module)
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._module.parameters(), settings.clip_norm)
        self._optimiser.step()
        if self._average is not None:
            self._average.update_parameters(self._module)

    def _backward(self, batch: Sequence[torch.Tensor], share: float) -> tuple[float, float]:
        """Adds the gradients of one batch, which is so much of the step; its part of loss and accuracy."""
        *inputs, labels = (values.to(self._recipe.device) for values in batch)
        with self._precision():
            scores = self._module(*inputs)
            # Of no rows, as another process may have them all, the mean is no number.
            loss = functional.cross_entropy(scores, labels, reduction="mean" if len(labels) else "sum")
        (loss if share == 1.0 else loss * share).backward()
        hits = (scores.detach().argmax(dim=1) == labels).sum().item() / max(1, labels.numel())
        return loss.item() * share, hits * share

    def _precision(self) -> AbstractContextManager[Any]:
        if self._recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self._recipe.device, dtype=torch.bfloat16)

    def _rows(self, step: int) -> torch.Tensor:
        epoch, place = divmod(step, self._per_epoch)
        if self._order[0] != epoch:
            order = torch.randperm(len(self._labels), generator=generator(self._recipe.seed, "order", epoch))
            self._order = (epoch, order.tensor_split(self._per_epoch))
        return self._order[1][place]

    def _end_epoch(self) -> None:
        self._processes.require_same_bits(self._module)
        epoch = self.steps // self._per_epoch
        self.loss, accuracy = (math.fsum(values) / len(values) for values in (self._losses, self._accuracies))
        self._losses, self._accuracies = [], []
        line: dict[str, Any] = {
            "epoch": epoch,
            "steps": self.steps,
            "train_loss": self.loss,
            "train_accuracy": accuracy,
        }
        if self._patience is not None:
            shown = self._module if self._average is None else self._average.module
            line |= self._patience.judge(shown, epoch, self._processes)
            self._learn_on()
        if self._run is not None:
            self._run.tell(line)

    def _snapshot(self) -> Snapshot:
        values: dict[str, Any] = {
            "losses": self._losses,
            "accuracies": self._accuracies,
            "loss": None if math.isnan(self.loss) else self.loss,
        }
        extra: dict[str, torch.Tensor] = {}
        if self._average is not None:
            extra |= {_AVERAGE + name: value for name, value in self._average.state_dict().items()}
        if self._patience is not None:
            values["patience"] = self._patience.as_values()
            extra |= {_BEST + name: value for name, value in self._patience.best.items()}
        return Snapshot(self.steps, self._module.state_dict(), self._optimiser.state_dict(), values, extra)

    def _restore(self, snapshot: Snapshot) -> None:
        self._module.load_state_dict(snapshot.module)
        self._optimiser.load_state_dict(dict(snapshot.optimiser))
        if self._average is not None:
            self._average.load_state_dict(_named(snapshot.extra, _AVERAGE))
        if self._patience is not None:
            self._patience.restore(snapshot.values["patience"], _named(snapshot.extra, _BEST))
        self.steps = snapshot.step
        self._losses, self._accuracies = list(snapshot.values["losses"]), list(snapshot.values["accuracies"])
        loss = snapshot.values["loss"]
        self.loss = math.nan if loss is None else loss


def _cut(values: Sequence[torch.Tensor], count: int) -> list[Sequence[torch.Tensor]]:
    """So many batches of about as many rows each."""
    return [values] if count == 1 else list(zip(*(each.tensor_split(count) for each in values), strict=True))


def _named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _with_patience(recipe: Recipe, examples: Examples) -> tuple[Examples, Patience | None]:
    """What is trained on, and what judges it: of the training examples, too; the test decides nothing."""
    if recipe.stopping.patience_epochs is None:
        return examples, None
    order = torch.randperm(len(examples), generator=generator(recipe.seed, "held_out")).numpy()
    count = max(1, round(recipe.stopping.held_out * len(examples)))
    return examples.at(order[count:]), Patience(examples.at(order[:count]), recipe.stopping.patience_epochs)


def _hidden(show_progress: bool | None) -> bool | None:
    return None if show_progress is None else not show_progress  # tqdm: None hides the bar when stderr is no terminal


def _require_one_run(recipe: Recipe, dataset: Dataset, processes: Processes) -> None:
    if recipe.device != "cpu":
        raise CannotDistribute(
            f"device={recipe.device}: {processes.count} processes learn together on the CPU only; train with --set "
            f"device=cpu, or with one process"
        )
    processes.require_same(fingerprint(dataset), "training data")


def _require_finite(loss: float, epoch: int, recipe: Recipe) -> None:
    if math.isfinite(loss):
        return
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
    Raises TrainingFailed where the recipe's device is not there.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise TrainingFailed("device=cuda: torch finds no GPU here; train with --set device=cpu")
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
