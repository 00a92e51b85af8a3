"""The model repository on disk: layout, version discovery, the files' schemas. The service reads it, publish writes it.

    models/
      digits/
        config.json           ModelConfig: one for all versions of the name
        config.pbtxt          Triton's configuration; read where there is no config.json (see triton_keys.py)
        labels.txt            as below, for all versions: where Triton has it
        1/                    a version: a directory named by a positive integer
          model.onnx          required; everything below is optional in a repository made by hand
          report.json         VersionReport: hashes of the files beside it, golden tolerance, the build's reports
          golden.npz          "input.<name>": samples along axis 0; "output.<name>": what the *unfolded* model answers
          labels.txt          one label a line, for the output whose config names it

A model of several files may be a directory, model.onnx/, with model.onnx and its external data in it, as in Triton; and
the configuration may give file or directory another name.

A name that starts with "." is invisible: publish prepares there and renames, so a version is whole or absent.
This file knows neither ONNX Runtime nor what a session is; it never writes outside the directory it is given.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from service.datatypes import DATATYPES
from service.errors import ModelRejected
from service.model_knobs import (
    LARGEST_INT32,
    LARGEST_INT64,
    SchedulerConfig,
    Schema,
    TrafficConfig,
    VersionPolicy,
)
from service.schema_errors import first_problem, repeated_keys
from service.triton_config import Translation, translate

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TRITON_CONFIG_FILE = "config.pbtxt"
MODEL_FILE = "model.onnx"
REPORT_FILE = "report.json"
GOLDEN_FILE = "golden.npz"
LABELS_FILE = "labels.txt"
LOAD_CALL = "the load call's configuration"
"""In place of a file's name."""
GOLDEN_INPUT_PREFIX = "input."
GOLDEN_OUTPUT_PREFIX = "output."

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")
_LARGEST_CONFIG_BYTES = 1 << 18


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
    if Path(name).name != name or name.startswith(".") or "\0" in name:
        raise ValueError(f"{name!r} must be a plain file name, without a folder and not starting with '.'")
    return name


ModelName = Annotated[str, AfterValidator(_is_model_name)]
DatatypeName = Annotated[str, AfterValidator(_is_datatype)]
PlainFileName = Annotated[str, AfterValidator(_is_plain_file_name)]
Dimension = Annotated[int, Field(ge=-1, le=LARGEST_INT64)]
SchemaT = TypeVar("SchemaT", bound=BaseModel)


class InputConfig(Schema):
    """One input, as a client sees it. `shape` includes the batch dimension, as -1, when the model is batchable.

    `description`, `minimum` and `maximum` tell a client (or a page) what values to send; they are not enforced.
    `categories`: of an input that holds numbers of categories, what each number stands for, from 0 on. `reshape`: the
    shape in the model file, where it is another (reshape.py).
    """

    name: str
    datatype: DatatypeName
    shape: tuple[Dimension, ...]
    reshape: tuple[Dimension, ...] | None = None
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()


class OutputConfig(Schema):
    """One output. `labels` names a file with one label a line, in index order of the last axis: beside model.onnx, or
    one directory up, for all versions. `reshape` as of inputs."""

    name: str
    datatype: DatatypeName
    shape: tuple[Dimension, ...]
    reshape: tuple[Dimension, ...] | None = None
    description: str = ""
    labels: PlainFileName | None = None


class ModelConfig(Schema):
    """`config.json`. `max_batch_size` counts rows; 0 means the model is not batchable and runs one request at a time.

    `notes`: what a client has to do before it sends inputs, because no model file can. `inputs` and `outputs` empty:
    derived from the model file. `file_name` is where it comes from, for messages; of a configuration that came with a
    load call, what to call that.
    """

    name: ModelName
    description: str = ""
    platform: Literal["onnx_onnxv1"] = "onnx_onnxv1"
    max_batch_size: int | None = Field(
        default=None, ge=0, le=LARGEST_INT32, description="rows; absent: derived from the model file"
    )
    inputs: tuple[InputConfig, ...] = ()
    outputs: tuple[OutputConfig, ...] = ()
    scheduler: SchedulerConfig = SchedulerConfig()
    version_policy: VersionPolicy = VersionPolicy()
    traffic: TrafficConfig = TrafficConfig()
    notes: tuple[str, ...] = ()
    default_model_filename: PlainFileName = MODEL_FILE

    _file_name: str = PrivateAttr(default=CONFIG_FILE)
    _is_batch_size_implied: bool = PrivateAttr(default=False)

    @classmethod
    def from_triton(cls, translation: Translation, file_name: str) -> ModelConfig:
        """Raises ValidationError."""
        config = cls.model_validate(translation.values)
        config._file_name = file_name
        config._is_batch_size_implied = translation.is_batch_size_implied
        return config

    @classmethod
    def from_load_call(cls, content: bytes) -> ModelConfig:
        """Raises ValidationError."""
        config = cls.model_validate_json(content)
        config._file_name = LOAD_CALL
        return config

    def with_parts(self, parts: Mapping[str, Schema]) -> ModelConfig:
        """As this one, but for these fields. Raises ValueError when they do not go together."""
        changed = self.model_copy(update=parts)
        changed._require_company_for_the_version_on_trial()
        return changed

    @property
    def file_name(self) -> str:
        return self._file_name

    @property
    def told_batch_size(self) -> str:
        """What the file says of max_batch_size, for messages."""
        if self._is_batch_size_implied:
            return f"{self.file_name} does not set max_batch_size, which means 0 in Triton"
        return f"{self.file_name} sets max_batch_size to {self.max_batch_size}"

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

    @model_validator(mode="after")
    def _version_on_trial_is_not_alone(self) -> ModelConfig:
        self._require_company_for_the_version_on_trial()
        return self

    def _require_company_for_the_version_on_trial(self) -> None:
        wanted = self.traffic.canary or self.traffic.shadow
        policy = self.version_policy
        loaded = len(policy.specific) if policy.specific else policy.latest
        if wanted and not policy.all and (loaded < 2 or (policy.specific and wanted.version not in policy.specific)):
            raise ValueError(
                f"traffic puts version {wanted.version} on trial beside another, but version_policy does not load "
                f"both; let it say all, latest 2 or more, or the two versions as specific"
            )


class FileRecord(Schema):
    """What publish wrote, so that a swapped or damaged file is noticed at load."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class GoldenRecord(Schema):
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

    A single file served outside a repository has another `model_file`; nothing beside such a file belongs to it, unless
    the configuration has named it so (`named_by_config`).
    """

    path: Path
    version: int
    model_file: str = MODEL_FILE
    named_by_config: bool = False

    @property
    def stands_alone(self) -> bool:
        return self.model_file != MODEL_FILE and not self.named_by_config

    @property
    def model_path(self) -> Path:
        """The ONNX file; in a directory of that name it is model.onnx (Triton, model_repository.md, "ONNX Models")."""
        path = self.path / self.model_file
        return path / MODEL_FILE if path.is_dir() else path

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


def chosen_versions(
    on_disk: Sequence[VersionDirectory], config: ModelConfig, numbers: Collection[int] | None = None
) -> tuple[VersionDirectory, ...]:
    """Those of `on_disk` that the version policy asks for, or those of `numbers` instead, lowest first, with the model
    file that the config names."""
    chosen = config.version_policy.choose([found.version for found in on_disk]) if numbers is None else numbers
    name = config.default_model_filename
    return tuple(
        VersionDirectory(found.path, found.version, name, named_by_config=name != MODEL_FILE)
        for found in on_disk
        if found.version in chosen
    )


def find_labels(version: VersionDirectory, name: str) -> Path:
    """The labels file called `name`: the version's own, otherwise the model's, where Triton has it. May not exist."""
    own, shared = version.path / name, version.path.parent / name
    return shared if os.path.lexists(shared) and not os.path.lexists(own) else own


def has_config(model_directory: Path) -> bool:
    """Whether somebody has meant this directory as a model's."""
    return bool(_config_files(model_directory))


def _config_files(model_directory: Path) -> list[Path]:
    """Those that are there, the one that counts first."""
    paths = (model_directory / CONFIG_FILE, model_directory / TRITON_CONFIG_FILE)
    return [path for path in paths if os.path.lexists(path)]


def read_config(
    model_directory: Path, *, name: str | None = None, stands_alone: bool = False, providers: Sequence[str] = ()
) -> ModelConfig:
    """The configuration in a model directory: config.json, otherwise config.pbtxt, otherwise the default one.

    name: what the model is called when the config does not say; by default as its directory. stands_alone: it is served
    by itself, outside a repository, where the directory's name means nothing; otherwise both names have to agree.
    providers: those that were asked for (config.pbtxt may demand a GPU).
    Raises ModelRejected, naming file and field, when it is not valid or names another model.
    """
    name = name or model_directory.name
    found = _config_files(model_directory)
    if not found:
        return ModelConfig(name=name)
    path = found[0]
    # Opening a named pipe would wait for a writer, for ever. A link that leads nowhere is a mistake, not an absence.
    if not path.is_file():
        raise ModelRejected(f"{path} is not a regular file")
    if path.name == CONFIG_FILE:
        config = _read(path, ModelConfig, _LARGEST_CONFIG_BYTES)
    else:
        config = _read_triton(path, name, providers)
    for ignored in found[1:]:
        log.warning("%s is not read: %s stands beside it", _told(ignored), path.name)
    if config.name != name and not stands_alone:
        raise ModelRejected(f"{path}: name is {config.name!r}, but the directory is {name!r}; make them agree")
    return config


def _read_triton(path: Path, name: str, providers: Sequence[str]) -> ModelConfig:
    try:
        translation = translate(_content(path, _LARGEST_CONFIG_BYTES), name, providers)
    except ModelRejected as error:
        raise ModelRejected(f"{path}: {error}") from error
    try:
        config = ModelConfig.from_triton(translation, path.name)
    except ValidationError as error:
        raise ModelRejected(f"{path}: {first_problem(error, ModelConfig, translation.spell)}") from error
    for warning in translation.warnings:
        log.warning("%s, %s", _told(path), warning)
    return config


def _told(path: Path) -> str:
    """For the log: the model and the file."""
    return f"{path.parent.name}/{path.name}"


def read_report(version: VersionDirectory) -> VersionReport | None:
    """`report.json` of a version; None when there is none (made by hand).

    Raises ModelRejected when it is invalid, or vouches for less than it must: a report that lists no hash of the model
    file, perhaps for a misspelt key, would be believed without anything having been checked.
    """
    if version.stands_alone or not version.report_path.exists():
        return None
    report = _read(version.report_path, VersionReport)
    must = [version.model_file, GOLDEN_FILE] if report.golden else [version.model_file]
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


def _read(path: Path, schema: type[SchemaT], largest_bytes: int | None = None) -> SchemaT:
    content = _content(path, largest_bytes)
    try:
        found = schema.model_validate_json(content)
    except ValidationError as error:
        raise ModelRejected(f"{path}: {first_problem(error, schema)}") from error
    if repeated := repeated_keys(content):
        raise ModelRejected(f"{path}: {repeated[0]} is given more than once in one object; keep one of them")
    return found


def _content(path: Path, largest_bytes: int | None = None) -> bytes:
    """All of a file, if it is not too long. Raises ModelRejected."""
    try:
        with path.open("rb") as file:
            content = file.read() if largest_bytes is None else file.read(largest_bytes + 1)
    except OSError as error:
        raise ModelRejected(f"{path} cannot be read: {error.strerror}") from error
    if largest_bytes is not None and len(content) > largest_bytes:
        raise ModelRejected(f"{path} is longer than {largest_bytes} bytes, the most that is read of a configuration")
    return content
