"""The training loop: recipe and data in, network in eval mode and `TrainReport` out. Knows no ONNX and no repository.

What is reproducible: on one machine, with one build of torch and one number of threads, two runs of a recipe give the
same weights bit for bit. Another processor, torch or thread count sums in another order, and training magnifies the
difference: accuracy then agrees, weights do not. The process's own random state and torch settings are left as found.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from training import architectures
from training.datasets.dataset import Dataset, Examples
from training.errors import UserError
from training.recipe import Recipe

TOOLS = ("torch", "numpy", "scikit-learn")
EVALUATION_ROWS = 256


class TrainingFailed(UserError):
    """The loop cannot go on: the loss is no longer a number, or there is too little data for BatchNorm."""


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What was trained, how, and how good it is. Accuracies are shares of 1, measured in eval mode."""

    epochs: int
    steps: int
    seconds: float
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    n_train: int
    n_test: int
    parameters: int
    settings: Mapping[str, Any]
    versions: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def train(recipe: Recipe, dataset: Dataset, *, show_progress: bool | None = None) -> tuple[nn.Module, TrainReport]:
    """Train the recipe's network on `dataset.train`; returns it in eval mode, on the CPU.

    show_progress: None draws the bar only when stderr is a terminal. Raises TrainingFailed.
    """
    started = time.monotonic()
    with torch_set_up_for(recipe):
        module = _new_module(recipe, dataset)
        loss = _fit(module, recipe, dataset.train, show_progress)
        module.eval()
        train_accuracy, test_accuracy = (accuracy(module, part) for part in (dataset.train, dataset.test))
    report = TrainReport(
        epochs=recipe.epochs,
        steps=recipe.epochs * steps_per_epoch(len(dataset.train), recipe.batch_size),
        seconds=round(time.monotonic() - started, 3),
        train_loss=loss,
        train_accuracy=train_accuracy,
        test_accuracy=test_accuracy,
        n_train=len(dataset.train),
        n_test=len(dataset.test),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        settings=recipe.model_dump(mode="json"),
        versions={"python": platform.python_version()} | {tool: metadata.version(tool) for tool in TOOLS},
    )
    return module, report


def logits(module: nn.Module, inputs: Any) -> torch.Tensor:
    """The module's answers in eval mode for all rows of `inputs` (NumPy), computed in pieces of bounded size."""
    with torch.inference_mode():
        return torch.cat([module(rows) for rows in torch.from_numpy(inputs).split(EVALUATION_ROWS)])


def accuracy(module: nn.Module, examples: Examples) -> float:
    """Share of `examples` whose highest logit is the label's, from 0 to 1."""
    hits = logits(module, examples.inputs).argmax(dim=1) == torch.from_numpy(examples.labels)
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
    options = recipe.architecture.model_dump()
    return architectures.build(
        options.pop("family"),
        input_shape=dataset.train.inputs.shape[1:],
        input_maximum=dataset.input.maximum,
        classes=len(dataset.classes),
        **options,
    )


def _fit(module: nn.Module, recipe: Recipe, examples: Examples, show_progress: bool | None) -> float:
    """All epochs; returns the last epoch's mean loss."""
    if len(examples) < 2:
        raise TrainingFailed(f"{len(examples)} training example: BatchNorm needs at least two rows to have a variance")
    inputs, labels = torch.from_numpy(examples.inputs), torch.from_numpy(examples.labels)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = steps_per_epoch(len(examples), recipe.batch_size)
    optimiser = torch.optim.SGD(
        parameter_groups(module, recipe.optimiser.weight_decay),
        lr=recipe.optimiser.learning_rate,
        momentum=recipe.optimiser.momentum,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: learning_rate_factor(step, steps * recipe.epochs, recipe.optimiser.warmup_fraction),
    )
    module.train()
    mean_loss = math.nan
    with tqdm(total=recipe.epochs, desc="training", unit="epoch", disable=_hidden(show_progress)) as bar:
        for epoch in range(1, recipe.epochs + 1):
            losses = []
            for rows in torch.randperm(len(examples), generator=generator).tensor_split(steps):
                images = shifted(inputs[rows], recipe.data.shift_pixels, generator)
                loss = functional.cross_entropy(module(images), labels[rows])
                losses.append(_finite(loss.item(), epoch, recipe))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            mean_loss = math.fsum(losses) / len(losses)
            bar.set_postfix(loss=f"{mean_loss:.4f}", refresh=False)
            bar.update()
    return mean_loss


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
        torch.manual_seed(recipe.seed)
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
