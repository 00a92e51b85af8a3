"""The training configuration: a frozen `Recipe`, and the shipped recipes as values of it.

A recipe says everything that decides what is trained and published; equal recipes on the same machine and tool versions
give equal weights. Where its values come from (YAML, environment, `--set`) is recipe_sources.py, what nobody said is
recipe_defaults.py. Knows the names of data sources and architecture families, not what is behind them: importable
without torch.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from training.architectures import FAMILIES
from training.datasets import SOURCES
from training.datasets.options import Options
from training.errors import UserError
from training.presets import PRESETS

MAXIMUM = 1e30  # absurd, and still a float32
REMEDIES = ("none", "precise", "frozen:SHARE", "renorm", "sync", "ghost:ROWS")
MODEL_KINDS = ("timm", "torchvision", "py", "file")


class RecipeError(UserError):
    """An unknown recipe, an unknown key, or a value its field does not take."""


def _one_of(kind: str, table: Mapping[str, Any]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"{name!r} is not a known {kind}; known are {', '.join(table)}")
        return name

    return AfterValidator(check)


def _is_source(source: str) -> str:
    kind, colon, where = source.partition(":")
    if kind not in SOURCES or (colon and not where):
        raise ValueError(f"{source!r} is not a known data source; known are {', '.join(SOURCES)}")
    return source


def _is_model(spec: str) -> str:
    kind, _, name = spec.partition(":")
    if kind not in MODEL_KINDS or not name:
        raise ValueError(
            f"{spec!r}: expected timm:NAME, torchvision:NAME, py:package.module:factory or file:model.py:factory"
        )
    return spec


def _is_remedy(remedy: str) -> str:
    if remedy != "auto" and remedy.partition(":")[0] not in {form.partition(":")[0] for form in REMEDIES}:
        raise ValueError(f"{remedy!r} is not a known remedy; known are auto, {', '.join(REMEDIES)}")
    return remedy


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Data(_Settings):
    """Where the examples come from, and which of them are never trained on."""

    source: Annotated[str, AfterValidator(_is_source)]
    target: str | None = Field(default=None, description="the column with the labels, where there are columns")
    length: int | None = Field(default=None, ge=1, description="of text, in bytes; null: chosen from the data")
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        default=None, description="of images, [height,width] in pixels; null: chosen from the data"
    )
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="share of the examples held out for the test")
    split_seed: int = Field(default=0, ge=0, lt=2**32, description="decides which examples are held out")
    shift_pixels: int = Field(
        default=0, ge=0, le=32, description="augmentation: largest random shift of an image, each way"
    )

    def options(self) -> Options:
        """As the sources know them."""
        return Options(self.test_fraction, self.split_seed, self.target, self.length, self.size)


class Architecture(_Settings):
    """The network's code: one of our families with its own options, or `model`, somebody else's, behind our front.

    The rest are the flags of `architectures.norms.Norms`, in torch's sense.
    """

    preset: Annotated[str, _one_of("preset", PRESETS)] | None = Field(
        default=None, description="family, options and training as one name; all of it can be overridden"
    )
    family: Annotated[str, _one_of("architecture family", FAMILIES)] | None = None
    options: Mapping[str, Any] = Field(default={}, description="the family's own, as in architecture.options.widths")
    model: Annotated[str, AfterValidator(_is_model)] | None = Field(
        default=None,
        description="instead of a family: timm:NAME, torchvision:NAME, py:module:factory, file:f.py:factory",
    )
    torchvision_shim: bool = Field(default=False, description="for model: as --torchvision-shim of export")
    norm: str = Field(default="bn", description="bn, none, frozen, renorm, sync, ghost:K, gn:G or ln")
    eps: float = Field(default=1e-5, gt=0, le=MAXIMUM, description="added to the variance")
    momentum: float | None = Field(
        default=0.1, gt=0, le=1, description="weight of the new batch in the running statistics; null: all alike"
    )
    affine: bool = Field(default=True, description="gamma and beta are learned")
    bn_bias: bool = Field(default=True, description="beta is")
    conv_bias: bool = Field(default=False, description="of layers that a normalisation follows")
    bn_order: Literal["post", "pre"] = Field(default="post", description="norm behind the layer, or before it")

    @model_validator(mode="after")
    def _one_network(self) -> Architecture:
        if (self.family is None) == (self.model is None):
            raise ValueError("name one network: architecture.family or architecture.model")
        return self

    @property
    def title(self) -> str:
        """For people."""
        return self.model or self.preset or str(self.family)


class Optimiser(_Settings):
    """The rate warms up linearly, then follows a cosine to zero. sgd has Nesterov momentum."""

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(gt=0, le=MAXIMUM, description="the peak; auto: found on a copy before the run begins")
    momentum: float = Field(default=0.9, gt=0, lt=1, description="of sgd; adamw: of the first moment")
    weight_decay: float = Field(
        default=0.0, ge=0, le=MAXIMUM, description="on weights only: never on gamma, beta or a bias"
    )
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1, description="share of the steps until the peak")
    accumulate: int = Field(
        default=1, ge=1, description="batches a step: their gradients are added up, BatchNorm sees each by itself"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, le=MAXIMUM, description="longest gradient of a step; null: as long as it is"
    )
    average: float | None = Field(
        default=None, gt=0, lt=1, description="what an average of the parameters keeps a step, as in 0.99; null: none"
    )


class Stopping(_Settings):
    """When a run ends before its last epoch."""

    patience_epochs: int | None = Field(
        default=None, ge=1, description="epochs without a lower held-out loss; the best epoch is kept; null: never"
    )
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of the TRAINING examples that decides this")
    time_limit_s: float | None = Field(
        default=None, gt=0, le=MAXIMUM, description="of one process; then as after Ctrl-C: resume goes on"
    )


class Recipe(_Settings):
    """From data to published version. `name` is the model's name in the repository. `chosen` is for people.

    `threads`: for networks this small a second one gains a fifth on an idle machine, and on a busy one loses a factor
    of five (measured: it spins while the other waits for a core).
    """

    name: str
    description: str
    data: Data
    architecture: Architecture
    optimiser: Optimiser
    stopping: Stopping = Stopping()
    epochs: int = Field(ge=1)
    batch_size: int = Field(
        ge=2, description="rows a step, of all processes; at least two, because BatchNorm needs a variance"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="weights, order of the examples, augmentation")
    threads: int = Field(default=1, ge=1, le=64, description="fixed, because another number rounds differently")
    statistics: Literal["sequential", "minibatch", "running"] = Field(
        default="sequential",
        description="what is frozen: population statistics, by passes in eval form or one over batches, or the running "
        "averages",
    )
    remedy: Annotated[str, AfterValidator(_is_remedy)] = Field(
        default="none", description="of small batches: " + ", ".join(("auto", *REMEDIES))
    )
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward pass while it trains (bfloat16: torch.autocast)"
    )
    doctor: Literal["refuse", "report"] = Field(
        default="refuse", description="where a finding about BatchNorm is red: publish nothing, or publish and report"
    )
    tensorboard: bool = Field(default=False, description="also write the metrics as TensorBoard reads them")
    minimum_test_accuracy: float = Field(default=0.0, ge=0, le=1, description="below it nothing is published")
    batchnorms_left: int = Field(default=0, ge=0, description="more of them in the folded graph: nothing is published")
    max_batch_size: int = Field(default=64, ge=1, description="rows the service may join into one run")
    chosen: Mapping[str, str] = Field(default={}, description="keys that nobody set, and why they are what they are")

    @model_validator(mode="after")
    def _average_needs_statistics(self) -> Recipe:
        if self.optimiser.average is not None and self.statistics == "running":
            raise ValueError(
                "optimiser.average needs statistics of its own: the running ones are those of other weights; "
                "set statistics to sequential or minibatch"
            )
        if self.optimiser.average is not None and self.remedy.startswith(("frozen", "auto")):
            raise ValueError(
                f"optimiser.average and remedy={self.remedy} exclude each other: frozen statistics are those of the "
                f"weights at that step, not of an average; leave one of them out"
            )
        return self


RECIPES: Mapping[str, Recipe] = types.MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="digits",
                description="Handwritten digits, 8x8 grey pixels: which of 0 to 9 is it?",
                data=Data(source="digits", shift_pixels=1),
                architecture=Architecture(family="cnn6", options={"widths": [16, 16, 32, 32, 64, 64]}),
                optimiser=Optimiser(learning_rate=0.1, weight_decay=5e-4),
                epochs=30,
                batch_size=64,
                minimum_test_accuracy=0.98,
            ),
            Recipe(
                name="breast-cancer",
                description="Thirty measurements of cell nuclei: is the tumour malignant or benign?",
                data=Data(source="sklearn:breast_cancer"),
                architecture=Architecture(
                    preset="mlp-in", family="mlp", options={"normalise_inputs": True, "widths": [64, 64]}
                ),
                optimiser=Optimiser(kind="adamw", learning_rate=3e-3, weight_decay=1e-4),
                epochs=60,
                batch_size=56,
                minimum_test_accuracy=0.94,
            ),
            Recipe(
                name="help-topics",
                description="A passage of Python's own help, 512 bytes at most: which of eleven topics is it from?",
                data=Data(source="help-topics"),
                architecture=Architecture(
                    preset="textcnn",
                    family="textcnn",
                    options={"width": 16, "channels": 64, "windows": [5, 7, 9], "dropout": 0.3},
                ),
                optimiser=Optimiser(kind="adamw", learning_rate=3e-3, weight_decay=1e-4),
                epochs=16,
                batch_size=64,
                minimum_test_accuracy=0.7,
            ),
            Recipe(
                name="digit-scenes",
                description="Scenes of handwritten digits, 48x48 grey pixels: which pixels belong to which digit?",
                data=Data(source="digit-scenes"),
                architecture=Architecture(preset="unet", family="unet", options={"widths": [12, 24, 48]}),
                optimiser=Optimiser(kind="adamw", learning_rate=5e-3, weight_decay=1e-4),
                epochs=20,
                batch_size=16,
                minimum_test_accuracy=0.94,
                max_batch_size=16,
            ),
        )
    }
)


def describe_settings(settings: BaseModel = RECIPES["digits"], prefix: str = "") -> list[tuple[str, str, str]]:
    """Every key of `--set`, its value in `settings`, and what it means, if its name does not say."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            rows += describe_settings(value, f"{prefix}{name}.")
        elif name != "chosen":
            plain = value if isinstance(value, str) else json.dumps(value)
            rows.append((prefix + name, plain, field.description or ""))
    return rows
