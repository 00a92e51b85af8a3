"""The model repository on disk: layout, version discovery, the files' schemas. The service reads it, publish writes it.

    models/
      digits/
        config.json           ModelConfig: one for all versions of the name
        1/                    a version: a directory named by a positive integer
          model.onnx          required; everything below is optional in a repository made by hand
          report.json         VersionReport: hashes of the files beside it, golden tolerance, the build's reports
          golden.npz          "input.<name>": samples along axis 0; "output.<name>": what the *unfolded* model answers
          labels.txt          one label a line, for the output whose config names it

A name that starts with "." is invisible: publish prepares there and renames, so a version is whole or absent.
This file knows neither ONNX Runtime nor what a session is; it never writes outside the directory it is given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.datatypes import DATATYPES
from service.errors import ModelRejected

CONFIG_FILE = "config.json"
MODEL_FILE = "model.onnx"
REPORT_FILE = "report.json"
GOLDEN_FILE = "golden.npz"
LABELS_FILE = "labels.txt"
GOLDEN_INPUT_PREFIX = "input."
GOLDEN_OUTPUT_PREFIX = "output."

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")


def _is_model_name(name: str) -> str:
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a model name: letters, digits, '_', '-' and '.', not starting with '.' or '-'"
        )
    return name


def _is_datatype(name: str) -> str:
    if name not in DATATYPES:
        raise ValueError(f"{name!r} is not a datatype; known are {', '.join(DATATYPES)}")
    return name


def _is_plain_file_name(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r} must be a plain file name inside the version's directory")
    return name


ModelName = Annotated[str, AfterValidator(_is_model_name)]
DatatypeName = Annotated[str, AfterValidator(_is_datatype)]
PlainFileName = Annotated[str, AfterValidator(_is_plain_file_name)]
Dimension = Annotated[int, Field(ge=-1)]
SchemaT = TypeVar("SchemaT", bound=BaseModel)


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class InputConfig(_Schema):
    """One input, as a client sees it. `shape` includes the batch dimension, as -1, when the model is batchable.

    `description`, `minimum` and `maximum` tell a client (or a page) what values to send; they are not enforced.
    """

    name: str
    datatype: DatatypeName
    shape: tuple[Dimension, ...]
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None


class OutputConfig(_Schema):
    """One output. `labels` names a file beside model.onnx with one label a line, in index order of the last axis."""

    name: str
    datatype: DatatypeName
    shape: tuple[Dimension, ...]
    description: str = ""
    labels: PlainFileName | None = None


class SchedulerConfig(_Schema):
    """The dynamic batcher's knobs; the defaults are meant to need no tuning."""

    max_queue_size: int = Field(default=1024, ge=1, description="requests that may wait; one more is answered 503")
    instances: int = Field(default=1, ge=1, le=64, description="batches of this model that may run at the same time")


class VersionPolicy(_Schema):
    """Which versions are loaded: the `latest` highest numbers."""

    latest: int = Field(default=1, ge=1)


class ModelConfig(_Schema):
    """`config.json`. `max_batch_size` counts rows; 0 means the model is not batchable and runs one request at a time.

    `inputs` and `outputs` empty: derived from the model file.
    """

    name: ModelName
    description: str = ""
    platform: Literal["onnx_onnxv1"] = "onnx_onnxv1"
    max_batch_size: int | None = Field(default=None, ge=0, description="rows; absent: derived from the model file")
    inputs: tuple[InputConfig, ...] = ()
    outputs: tuple[OutputConfig, ...] = ()
    scheduler: SchedulerConfig = SchedulerConfig()
    version_policy: VersionPolicy = VersionPolicy()

    @model_validator(mode="after")
    def _names_are_unique_and_batch_dimension_is_free(self) -> ModelConfig:
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError(f"an {kind} is named twice in {names}")
            for tensor in tensors:
                if self.max_batch_size and tensor.shape[:1] != (-1,):
                    raise ValueError(
                        f"max_batch_size is {self.max_batch_size}, so the first dimension of {kind} {tensor.name!r} "
                        f"must be -1; its shape is {list(tensor.shape)}"
                    )
        return self


class FileRecord(_Schema):
    """What publish wrote, so that a swapped or damaged file is noticed at load."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class GoldenRecord(_Schema):
    """How closely golden.npz must be reproduced: for each output, the largest absolute difference allowed."""

    samples: int = Field(ge=1)
    tolerance: dict[str, float]


class VersionReport(BaseModel):
    """The part of `report.json` the service acts on. The build's reports (train, fold, verify) ride along unread."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    files: dict[PlainFileName, FileRecord] = Field(default_factory=dict)
    golden: GoldenRecord | None = None


@dataclass(frozen=True, slots=True)
class VersionDirectory:
    """One version on disk. None of the files needs to exist.

    A single file served outside a repository has another `model_file`; nothing beside such a file belongs to it.
    """

    path: Path
    version: int
    model_file: str = MODEL_FILE

    @property
    def stands_alone(self) -> bool:
        return self.model_file != MODEL_FILE

    @property
    def model_path(self) -> Path:
        return self.path / self.model_file

    @property
    def report_path(self) -> Path:
        return self.path / REPORT_FILE

    @property
    def golden_path(self) -> Path:
        return self.path / GOLDEN_FILE


def model_names(repository: Path) -> tuple[str, ...]:
    """Names of the models in `repository`, sorted. A directory whose name is no model name is not a model.

    Raises ModelRejected when the repository is not a directory that can be read.
    """
    try:
        entries = sorted(entry.name for entry in repository.iterdir() if entry.is_dir())
    except OSError as error:
        raise ModelRejected(f"model repository {str(repository)!r} cannot be read: {error.strerror}") from error
    return tuple(name for name in entries if _MODEL_NAME.fullmatch(name))


def versions(model_directory: Path) -> tuple[VersionDirectory, ...]:
    """The versions of one model, lowest first: directories named by a positive integer without leading zeros."""
    return tuple(sorted(_versions(model_directory), key=lambda found: found.version))


def _versions(model_directory: Path) -> Iterator[VersionDirectory]:
    for entry in model_directory.iterdir():
        if entry.is_dir() and _VERSION_NAME.fullmatch(entry.name):
            yield VersionDirectory(entry, int(entry.name))


def strays(directory: Path, *, of: Literal["models", "versions"]) -> tuple[str, ...]:
    """Directories that somebody may have meant as models or versions, but whose names are none: worth a warning.

    `directory` is the repository or a model's. Names that start with "." are invisible on purpose, and no strays.
    """
    legal = _MODEL_NAME if of == "models" else _VERSION_NAME
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    return tuple(name for name in names if not name.startswith(".") and not legal.fullmatch(name))


def read_config(model_directory: Path) -> ModelConfig:
    """`config.json` of a model directory, or the default one when there is none.

    Raises ModelRejected, naming file and field, when it is not valid or names another model.
    """
    path = model_directory / CONFIG_FILE
    if not os.path.lexists(path):
        return ModelConfig(name=model_directory.name)
    # Opening a named pipe would wait for a writer, for ever. A link that leads nowhere is a mistake, not an absence.
    if not path.is_file():
        raise ModelRejected(f"{path} is not a regular file")
    config = _read(path, ModelConfig)
    if config.name != model_directory.name:
        raise ModelRejected(
            f"{path}: name is {config.name!r}, but the directory is {model_directory.name!r}; make them agree"
        )
    return config


def read_report(version: VersionDirectory) -> VersionReport | None:
    """`report.json` of a version; None when there is none (made by hand).

    Raises ModelRejected when it is invalid, or vouches for less than it must: a report that lists no hash of the model
    file, perhaps for a misspelt key, would be believed without anything having been checked.
    """
    if version.stands_alone or not version.report_path.exists():
        return None
    report = _read(version.report_path, VersionReport)
    must = [MODEL_FILE, GOLDEN_FILE] if report.golden else [MODEL_FILE]
    if missing := [name for name in must if name not in report.files]:
        promise = f" and promises {report.golden.samples} golden samples" if report.golden else ""
        raise ModelRejected(
            f"{version.report_path}: files lists {', '.join(sorted(report.files)) or 'nothing'}{promise}, but not "
            f"{' and '.join(missing)}; publish the version again, or remove {REPORT_FILE} from one made by hand"
        )
    return report


def to_json(value: BaseModel) -> str:
    """The file form of a schema: indented, in field order, unset fields omitted, ending in a newline."""
    return json.dumps(value.model_dump(mode="json", exclude_unset=True), indent=2, ensure_ascii=False) + "\n"


def _read(path: Path, schema: type[SchemaT]) -> SchemaT:
    try:
        return schema.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelRejected(f"{path}: {where}: {first['msg']}") from error
