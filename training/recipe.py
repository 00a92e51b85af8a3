"""The training configuration: a frozen `Recipe`, the shipped recipes as values of it, and `--set a.b=c` overrides.

A recipe says everything that decides what is published; equal recipes on the same machine and tool versions give equal
weights. Knows the names of data sources and architecture families, not what is behind them: importable without torch.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from training.architectures import FAMILIES
from training.datasets import SOURCES
from training.datasets.options import Options
from training.errors import UserError

MAXIMUM = 1e30  # absurd, and still a float32


class RecipeError(UserError):
    """An unknown recipe, an unknown key, or a value its field does not take."""


def _one_of(kind: str, table: Mapping[str, str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"{name!r} is not a known {kind}; known are {', '.join(table)}")
        return name

    return AfterValidator(check)


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Settings):
    """Where the examples come from, and which of them are never trained on."""

    source: Annotated[str, _one_of("data source", SOURCES)]
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of the examples held out for the test")
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="decides which examples are held out")
    shift_pixels: int = Field(
        default=0, ge=0, le=32, description="augmentation: largest random shift of an image, each way"
    )

    def options(self) -> Options:
        """As the sources know them."""
        return Options(self.test_fraction, self.split_seed)


class Architecture(_Settings):
    """The network's code and its dimensions. `eps` and `momentum` are BatchNorm's, in torch's sense."""

    family: Annotated[str, _one_of("architecture family", FAMILIES)]
    widths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(description="output channels of each convolution")
    eps: float = Field(default=1e-5, gt=0, le=MAXIMUM, description="added to the variance")
    momentum: float = Field(default=0.1, gt=0, le=1, description="weight of the new batch in the running statistics")


class Optimiser(_Settings):
    """Stochastic gradient descent with Nesterov momentum; the rate warms up linearly, then follows a cosine to zero."""

    learning_rate: float = Field(gt=0, le=MAXIMUM, description="the peak")
    momentum: float = Field(default=0.9, gt=0, lt=1)
    weight_decay: float = Field(
        default=0.0, ge=0, le=MAXIMUM, description="on weights only: never on gamma, beta or a bias"
    )
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of the steps until the peak")


class Recipe(_Settings):
    """From data to published version. `name` is the model's name in the repository.

    `threads`: for networks this small a second one gains a fifth on an idle machine, and on a busy one loses a factor
    of five (measured: it spins while the other waits for a core).
    """

    name: str
    description: str
    data: Data
    architecture: Architecture
    optimiser: Optimiser
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2, description="rows a step; at least two, because BatchNorm needs a variance")
    seed: int = Field(default=0, ge=0, lt=2**32, description="weights, order of the examples, augmentation")
    threads: int = Field(default=1, ge=1, le=64, description="fixed, because another number rounds differently")
    statistics: Literal["sequential", "minibatch", "running"] = Field(
        default="sequential",
        description="what is frozen: population statistics, by passes in eval form or one over batches, or the running "
        "averages",
    )
    minimum_test_accuracy: float = Field(ge=0, le=1, description="below it nothing is published")
    batchnorms_left: int = Field(default=0, ge=0, description="more of them in the folded graph: nothing is published")
    max_batch_size: int = Field(default=64, ge=1, description="rows the service may join into one run")


RECIPES: Mapping[str, Recipe] = types.MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="digits",
                description="Handwritten digits, 8x8 grey pixels: which of 0 to 9 is it?",
                data=Data(source="digits", shift_pixels=1),
                architecture=Architecture(family="cnn6", widths=(16, 16, 32, 32, 64, 64)),
                optimiser=Optimiser(learning_rate=0.1, weight_decay=5e-4),
                epochs=30,
                batch_size=64,
                minimum_test_accuracy=0.98,
            ),
        )
    }
)


def find_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The shipped recipe `name`, with `overrides` ("optimiser.learning_rate=0.05") applied from left to right.

    Raises RecipeError with one line that names what was given and what is known.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    for override in overrides:
        recipe = _overridden(recipe, override)
    return recipe


def describe_settings(settings: BaseModel = RECIPES["digits"], prefix: str = "") -> list[tuple[str, str, str]]:
    """Every key of `--set`, its value in `settings`, and what it means, if its name does not say."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            rows += describe_settings(value, f"{prefix}{name}.")
        else:
            rows.append(
                (prefix + name, json.dumps(value) if isinstance(value, tuple) else str(value), field.description or "")
            )
    return rows


def _overridden(recipe: Recipe, override: str) -> Recipe:
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, as in --set epochs=10")
    try:
        return Recipe.model_validate(_replaced(recipe, key.split("."), _value(text), key))
    except ValidationError as error:
        raise RecipeError(f"--set {override}: {_first_message(error)}") from None


def _replaced(settings: BaseModel, path: Sequence[str], value: object, key: str) -> dict[str, Any]:
    """`settings` as plain values, with the one at `path` replaced."""
    name, *rest = path
    known = type(settings).model_fields
    if name not in known:
        raise RecipeError(f"--set {key}: unknown key {name!r}; known here are {', '.join(known)}")
    current = getattr(settings, name)
    values = settings.model_dump()
    if isinstance(current, BaseModel):
        if not rest:
            inner = ", ".join(f"{key}.{field}" for field in type(current).model_fields)
            raise RecipeError(f"--set {key}: this is a group of settings; set one of {inner}")
        values[name] = _replaced(current, rest, value, key)
    elif rest:
        raise RecipeError(f"--set {key}: {name!r} is a single value and has no {'.'.join(rest)!r}")
    else:
        values[name] = value
    return values


def _value(text: str) -> object:
    """Lists are written as JSON; everything else stays text, which pydantic turns into the field's own type."""
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # pydantic then says what the field expects


def _first_message(error: ValidationError) -> str:
    return error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
