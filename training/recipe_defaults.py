"""What nobody said, chosen from the data and the machine, each choice with its reason: from `Asked` to `Recipe`.

A preset decides what suits a kind of data; here is only what the number of rows and the machine have to do with it.
Pure: knows facts about data, not data. Importable without torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from training.presets import PRESETS, Preset
from training.recipe import Recipe, RecipeError
from training.recipe_sources import Asked, preset_values

FEWEST_STEPS = 600
"""Of a whole run: with fewer of them a small set is not learned, however often it is seen."""
MOST_EPOCHS = 300
LARGEST_SMALL_IMAGE = 16
MOST_NAMED = 10
BATCHES_AN_EPOCH = 8
SMALLEST_BATCH = 16
"""Below it BatchNorm's statistics are noise: bn/health.py asks for 32 values, and most layers see several a row."""

_USUAL: Mapping[str, Mapping[str, Any]] = {
    "sgd": {"kind": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
    "adamw": {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01},
}
_FOREIGN: Mapping[str, Any] = {"optimiser": _USUAL["adamw"], "epochs": 30, "batch_size": 64}
_FOREIGN_REASON = "for a network that no preset knows: AdamW asks least of the rate"

_KINDS = {"image": "images", "clip": "clips", "row": "rows of numbers", "tokens": "texts"}


@dataclass(frozen=True, slots=True)
class Facts:
    """kind, shape, task: see `Features` and `Task`. rows: to train on. bfloat16: the GPU gains by it."""

    kind: Literal["image", "clip", "row", "tokens"]
    task: str
    rows: int
    cuda: bool = False
    bfloat16: bool = False
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()


def complete(asked: Asked, facts: Facts) -> Recipe:
    """The recipe in full; `chosen` has a reason for each key that nobody set. Raises RecipeError."""
    if asked.base:
        return asked.recipe({})
    defaults: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for key, value, reason in _choices(asked, facts):
        group = defaults
        *above, last = key.split(".")
        for name in above:
            group = group.setdefault(name, {})
        group[last] = value
        if reason and not asked.says(key):
            reasons[key] = reason
    return asked.recipe(defaults | {"chosen": reasons})


def _choices(asked: Asked, facts: Facts) -> Iterator[tuple[str, Any, str]]:
    """(key, value, why); without a reason where the key says it all."""
    source = asked.data().source
    yield "name", _name(source), "after the data"
    yield "description", _description(_name(source), facts), "after the data"
    values, reason = _of_network(asked, facts)
    for key, value in values.get("architecture", {}).items():
        yield f"architecture.{key}", value, reason if key in ("preset", "family") else ""
    optimiser, of_rate = values["optimiser"], reason
    kind = asked.said.get("optimiser", {}).get("kind", optimiser["kind"])
    if kind != optimiser["kind"] and kind in _USUAL:
        optimiser, of_rate = _USUAL[kind], f"usual for {kind}"
    batch_size, why = _batch_size(values["batch_size"], facts.rows)
    yield "batch_size", batch_size, why or reason
    batch_size = _number(asked.said.get("batch_size", batch_size))
    yield "optimiser.kind", optimiser["kind"], reason
    rate, why = _rate(optimiser, batch_size, values["batch_size"])
    yield "optimiser.learning_rate", rate, why or of_rate
    yield "optimiser.weight_decay", optimiser["weight_decay"], of_rate
    epochs, why = _epochs(values["epochs"], facts.rows, batch_size)
    yield "epochs", epochs, why or reason
    yield "device", *(("cuda", "there is a GPU") if facts.cuda else ("cpu", "there is no GPU that torch can use"))
    on_gpu = facts.cuda and asked.said.get("device", "cuda") == "cuda"
    if on_gpu and facts.bfloat16:
        yield "precision", "bfloat16", "this GPU computes in it several times as fast"
    elif on_gpu:
        yield "precision", "float32", "this GPU has no units for bfloat16"
    else:
        yield "precision", "float32", "bfloat16 makes networks of this size no faster on a CPU"


def _of_network(asked: Asked, facts: Facts) -> tuple[Mapping[str, Any], str]:
    """The layer of a preset, or what stands for one, and the reason for its numbers."""
    said = asked.said.get("architecture", {})
    if (name := said.get("preset")) is not None:
        preset = PRESETS[name]
        if (preset.takes, preset.task) != (facts.kind, facts.task):
            raise RecipeError(
                f"preset {name!r} is there to {preset.task} {_KINDS[preset.takes]}; the task of "
                f"{asked.data().source} is to {facts.task} {_KINDS[facts.kind]}; {_fitting(facts)}"
            )
        return preset_values(name, preset), f"preset {name}: {preset.reason}"
    if said.get("model") or said.get("family"):
        return _FOREIGN, _FOREIGN_REASON
    if not (fitting := _names(facts)):
        raise RecipeError(f"{asked.data().source}: {_fitting(facts)}; name a network: --set architecture.model=SPEC")
    name = next((name for name in _wishes(facts) if name in fitting), fitting[0])
    return preset_values(name, PRESETS[name]), f"preset {name}, for {_KINDS[facts.kind]}: {PRESETS[name].reason}"


def _wishes(facts: Facts) -> tuple[str, ...]:
    """Presets to look for before the first that fits."""
    if facts.kind == "row":
        return ("mlp-in",)  # columns as clients send them are of all sizes
    if facts.kind == "image" and max(facts.shape[1:], default=0) > LARGEST_SMALL_IMAGE:
        return ("resnet8",)  # averages over whatever size is left, where cnn6 has a weight for each pixel
    return ()


def _names(facts: Facts) -> list[str]:
    def fits(preset: Preset) -> bool:
        return (preset.takes, preset.task) == (facts.kind, facts.task)

    return [name for name, preset in PRESETS.items() if fits(preset)]


def _fitting(facts: Facts) -> str:
    return f"presets that {facts.task} {_KINDS[facts.kind]}: {', '.join(_names(facts)) or 'none'}"


def _batch_size(usual: int, rows: int) -> tuple[int, str]:
    fewer = max(SMALLEST_BATCH, rows // BATCHES_AN_EPOCH)
    if fewer >= usual:
        return usual, ""
    return (
        fewer,
        f"{rows} rows make {max(1, rows // fewer)} batches of it; below {SMALLEST_BATCH} BatchNorm's are noise",
    )


def _number(said: object) -> int:
    """Of the batch, however it was written; checked it has been."""
    return int(str(said))


def _rate(optimiser: Mapping[str, Any], batch_size: int, usual: int) -> tuple[float, str]:
    """With the batch for SGD (Goyal et al., arXiv 1706.02677), with its root for AdamW (Malladi et al., arXiv
    2205.10287)."""
    rate = float(optimiser["learning_rate"])
    if batch_size == usual:
        return rate, ""
    share = batch_size / usual
    factor = share if optimiser["kind"] == "sgd" else math.sqrt(share)
    # Two digits: a rate is no measurement.
    return float(f"{rate * factor:.2g}"), f"{rate:g} for batches of {usual}, scaled to {batch_size}"


def _epochs(usual: int, rows: int, batch_size: int) -> tuple[int, str]:
    steps = max(1, rows // batch_size)
    if steps * usual >= FEWEST_STEPS:
        return usual, ""
    epochs = min(MOST_EPOCHS, -(-FEWEST_STEPS // steps))
    return epochs, f"{rows} rows are {steps} steps an epoch, and {FEWEST_STEPS} steps are wanted"


def _description(name: str, facts: Facts) -> str:
    """For clients: so without the path to the data."""
    among = ", ".join(facts.classes) if len(facts.classes) <= MOST_NAMED else f"{len(facts.classes)} classes"
    return f"{name}: which of {among} is {'each pixel' if facts.task == 'segment' else 'it'}?"


def _name(source: str) -> str:
    """A name that the repository takes: letters, digits, and what stands between them."""
    kind, _, where = source.partition(":")
    last = where.rstrip("/").rpartition("/")[2]
    stem = last.partition(".")[0] or last
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or kind
