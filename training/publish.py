"""Write one version into the model repository: all of it at once, or nothing.

    lock -> clean up after the killed -> stage every file -> read it back as the service would -> fsync -> one rename
    -> config.json, when it changed

Everything is prepared under names that the service does not see (service/repository.py); whoever is killed anywhere in
between leaves the repository as it was or as it should be, and the next publish cleans up. Knows what a version
consists of, not how its parts were made; what the operating system promises is `training/directories.py`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import TypeAdapter, ValidationError

from service import repository as layout
from service.errors import ModelRejected
from service.repository import FileRecord, GoldenRecord, InputConfig, ModelConfig, OutputConfig
from training import directories
from training.errors import UserError
from training.fold.files import read_model, write_model
from training.golden import Golden

TOOLS = ("foldserve", "numpy", "onnx", "onnx-ir", "onnxruntime")

DATATYPE_NAMES: Mapping[ir.DataType, str] = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.UINT16: "UINT16",
    ir.DataType.UINT32: "UINT32",
    ir.DataType.UINT64: "UINT64",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT16: "INT16",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.STRING: "BYTES",
}
"""ONNX element type -> the Open Inference Protocol's name. A test compares it with service/datatypes.py."""

LABELS_FILE = layout.LABELS_FILE
"""Where `Draft.labels` go: what an output's `labels` in the config must name."""

LONGEST_NAME = 200
"""Of a model: file systems have 255 bytes, of which what is written beside it takes some."""

OPERATORS_KNOBS = ("max_batch_size", "scheduler", "version_policy", "traffic")
"""Fields of config.json that belong to whoever runs the service: set once, they survive later versions."""

STEPS = ("locked", "model", "labels", "golden", "report", "staged", "synced", "renamed", "configured")
"""What `checkpoint` is called with, in order; a tuple so that a test can stop at each of them."""


class PublishRefused(UserError):
    """The repository, the name, the version number or the signature does not allow it. Nothing was changed."""


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """All that a version consists of. `config` is complete; `reports` become sections of report.json (JSON values).

    `golden` is None only where inputs share no rows, so that there is no axis along which samples could lie.
    """

    config: ModelConfig
    model: ir.Model
    golden: Golden | None
    reports: Mapping[str, Any]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a draft goes. `replaces`: the version exists and is exchanged; otherwise it is new."""

    directory: Path
    version: int
    replaces: bool

    @property
    def path(self) -> Path:
        return self.directory / str(self.version)


def publish(
    repository: Path,
    draft: Draft,
    *,
    replace: int | None = None,
    checkpoint: Callable[[str], None] = lambda _: None,
) -> layout.VersionDirectory:
    """Publish `draft` as the next version of its name, or in place of version `replace`; returns where it is now.

    `checkpoint` is told each of `STEPS` as it is done. Raises PublishRefused, or directories.Busy.
    """
    name = draft.config.name
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with directories.exclusive(repository):
            directories.remove_stale_staging(repository)
            if (repository / name).is_dir():
                directories.restore_set_aside(repository / name)
            checkpoint("locked")
            destination = _choose(repository, name, replace)
            config = _config_beside(destination, draft.config)
            with directories.staging(repository, directories.STAGING_PREFIX) as staging:
                staged = staging / name / str(destination.version)
                staged.mkdir(parents=True)
                _write_version(staged, draft, checkpoint)
                (staging / name / layout.CONFIG_FILE).write_text(layout.to_json(config), encoding="utf-8")
                _read_back(staged)
                checkpoint("staged")
                directories.sync_tree(staging)
                checkpoint("synced")
                _go_live(staging / name, destination, checkpoint)
    except OSError as error:
        where = error.filename2 or error.filename or repository
        raise PublishRefused(f"cannot publish {name!r} into {str(repository)!r}: {error.strerror}: {where}") from error
    return layout.VersionDirectory(destination.path, destination.version)


def check_destination(repository: Path, name: str, replace: int | None = None) -> None:
    """Raise PublishRefused now if publishing would be refused later for the place, the name or the version number.

    Leaves nothing behind. For the start of a long build; `publish` asks again, because the answer may have changed.
    """
    if repository.exists() and not repository.is_dir():
        raise PublishRefused(f"model repository {str(repository)!r} is not a directory")
    directory = _choose(repository, name, replace).directory
    for place in (repository.absolute(), directory.absolute()):
        existing = next(path for path in (place, *place.parents) if path.exists())
        try:
            # Tried, not asked: access(2) tells root that a read-only file system is writable.
            with directories.staging(existing):
                pass
        except OSError as error:
            raise PublishRefused(
                f"cannot publish {name!r} into {str(repository)!r}: {existing} is not writable: {error.strerror}"
            ) from error


def config_for(
    model: ir.Model,
    *,
    name: str,
    description: str,
    max_batch_size: int | None,
    about: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> ModelConfig:
    """The `config.json` of `model`: names, datatypes and shapes from its graph, and `about[tensor name]` for the rest
    (description, minimum, maximum, categories, labels). Raises PublishRefused for what the service could not serve.

    max_batch_size: None leaves it to the service, which probes whether rows are independent.
    """
    # An input with an initializer is a constant that a caller may override; ONNX Runtime does not list it.
    given = [value for value in model.graph.inputs if value.const_value is None]
    inputs = tuple(InputConfig(**_tensor_fields(value), **about.get(str(value.name), {})) for value in given)
    outputs = tuple(
        OutputConfig(**_tensor_fields(value), **about.get(str(value.name), {})) for value in model.graph.outputs
    )
    optional: dict[str, Any] = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
    if notes:
        optional["notes"] = tuple(notes)
    try:
        return ModelConfig(name=name, description=description, **optional, inputs=inputs, outputs=outputs)
    except ValidationError as error:
        raise PublishRefused(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _tensor_fields(value: ir.Value) -> dict[str, Any]:
    if value.dtype is None or value.dtype not in DATATYPE_NAMES or value.shape is None:
        raise PublishRefused(
            f"tensor {value.name!r} has type {value.dtype} and shape {value.shape}; the service needs a shape and one "
            f"of the types {', '.join(str(kind) for kind in DATATYPE_NAMES)}"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return {"name": value.name, "datatype": DATATYPE_NAMES[value.dtype], "shape": shape}


def _choose(repository: Path, name: str, replace: int | None) -> Destination:
    try:
        TypeAdapter(layout.ModelName).validate_python(name)
    except ValidationError as error:
        raise PublishRefused(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    if len(name) > LONGEST_NAME:
        raise PublishRefused(f"{name[:40]!r}... has {len(name)} letters, expected a name of {LONGEST_NAME} at most")
    directory = repository / name
    if not directory.exists() and not directory.is_symlink():
        known = []
    elif directory.is_dir():
        known = [found.version for found in layout.versions(directory)]
    else:
        raise PublishRefused(f"{directory} is in the way: a model is a directory")
    if replace is None:
        return Destination(directory, max(known, default=0) + 1, replaces=False)
    if known and replace not in known:
        raise PublishRefused(f"{directory} has no version {replace} to replace; it has {', '.join(map(str, known))}")
    return Destination(directory, replace, replaces=replace in known)


def _config_beside(destination: Destination, new: ModelConfig) -> ModelConfig:
    """The config to write: the new description, under the operator's knobs that are already there.

    Clients rely on the signature, and older versions may be served beside this one: it stays. Raises PublishRefused.
    """
    directory = destination.directory
    if not directory.exists():
        return new
    try:
        old = layout.read_config(directory)
    except ModelRejected as error:
        raise PublishRefused(f"{error}; mend or remove it before publishing another version") from None
    published = _signature(old) or _signature_of_latest(directory)
    if published and published != _signature(new):
        raise PublishRefused(
            f"{directory} is published with {_as_text(published)}, but this version has {_as_text(_signature(new))}; "
            f"clients rely on it, so publish under another name"
        )
    kept = {knob: getattr(old, knob) for knob in OPERATORS_KNOBS if knob in old.model_fields_set}
    config = new.model_copy(update=kept)
    _require_labels_everywhere(destination, old, config)
    return config


def _require_labels_everywhere(destination: Destination, old: ModelConfig, new: ModelConfig) -> None:
    """config.json speaks for all versions: a labels file that it names has to be in each that is served."""
    promised, promises = ({tensor.labels for tensor in config.outputs} - {None} for config in (old, new))
    directory = destination.directory
    if missing := promised - promises:
        raise PublishRefused(f"{directory}: config.json promises {sorted(map(str, missing))}, this version brings none")
    others = [found for found in layout.versions(directory) if found.version != destination.version]
    served = new.version_policy.choose([destination.version, *(found.version for found in others)])
    for label_file in sorted(map(str, promises - promised)):
        without = [
            str(found.version)
            for found in others
            if found.version in served and not layout.find_labels(found, label_file).is_file()
        ]
        if without:
            raise PublishRefused(
                f"{directory}: config.json would promise {label_file} for every version, but version "
                f"{', '.join(without)} has none and could no longer be served; put it there, or use another name"
            )


Signature = Mapping[str, str]


def _signature(config: ModelConfig) -> Signature:
    """Tensor -> datatype and shape, as text; empty when the config leaves them to the model file."""
    sides = (("input", config.inputs), ("output", config.outputs))
    return {
        f"{side} {tensor.name!r}": f"{tensor.datatype} {list(tensor.shape)}"
        for side, tensors in sides
        for tensor in tensors
    }


def _signature_of_latest(directory: Path) -> Signature:
    versions = [found for found in layout.versions(directory) if found.model_path.exists()]
    if not versions:
        return {}
    model = read_model(versions[-1].model_path)
    return _signature(config_for(model, name=directory.name, description="", max_batch_size=0, about={}))


def _as_text(signature: Signature) -> str:
    return ", ".join(f"{tensor} {kind}" for tensor, kind in signature.items())


def _write_version(directory: Path, draft: Draft, checkpoint: Callable[[str], None]) -> None:
    """model.onnx, labels.txt, golden.npz, and report.json with the hashes of all the others."""
    write_model(draft.model, directory / layout.MODEL_FILE)
    checkpoint("model")
    if draft.labels:
        _write_labels(directory / layout.LABELS_FILE, draft.labels)
    checkpoint("labels")
    golden = {}
    if draft.golden:
        with (directory / layout.GOLDEN_FILE).open("wb") as file:
            np.savez(file, allow_pickle=False, **_golden_arrays(draft.golden))
        record = GoldenRecord(samples=draft.golden.samples, tolerance=dict(draft.golden.tolerance))
        golden = {"golden": record.model_dump()}
    checkpoint("golden")
    report = {
        "files": {path.name: _file_record(path).model_dump() for path in sorted(directory.iterdir())},
        **golden,
        "versions": {"python": platform.python_version()} | {tool: metadata.version(tool) for tool in TOOLS},
        **draft.reports,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (directory / layout.REPORT_FILE).write_text(text, encoding="utf-8")
    checkpoint("report")


def _golden_arrays(golden: Golden) -> dict[str, Any]:
    sides = ((layout.GOLDEN_INPUT_PREFIX, golden.inputs), (layout.GOLDEN_OUTPUT_PREFIX, golden.outputs))
    return {prefix + name: values for prefix, tensors in sides for name, values in tensors.items()}


def _write_labels(path: Path, labels: Sequence[str]) -> None:
    broken = [label for label in labels if label.splitlines() != [label]]
    if broken:
        raise PublishRefused(f"label {broken[0]!r} cannot be written as one line of {path.name}")
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")


def _file_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _read_back(staged: Path) -> None:
    """What is about to appear, read by the service's own code: a version it would not see or accept stays invisible."""
    version = layout.VersionDirectory(staged, int(staged.name))
    try:
        config = layout.read_config(staged.parent)
        layout.read_report(version)
    except ModelRejected as error:
        raise PublishRefused(f"the service would not accept this version: {error}") from None
    if version not in layout.versions(staged.parent):
        raise PublishRefused(f"the service would not find version {version.version}")
    for output in config.outputs:
        if output.labels is not None:
            _check_labels(staged / output.labels, output)


def _check_labels(path: Path, output: OutputConfig) -> None:
    """One label for each index of the output's last axis."""
    if not path.exists():
        raise PublishRefused(f"output {output.name!r} has its labels in {path.name}, but the draft brings no such file")
    found, expected = len(path.read_text(encoding="utf-8").splitlines()), output.shape[-1] if output.shape else 0
    if expected not in (-1, found):
        raise PublishRefused(f"{path.name} has {found} labels, but output {output.name!r} has {expected} values a row")


def _go_live(staged: Path, destination: Destination, checkpoint: Callable[[str], None]) -> None:
    """From invisible to visible in one rename; `staged` is the model's directory with one version and its config."""
    if not destination.directory.exists():
        directories.move(staged, destination.directory)
        checkpoint("renamed")
    else:
        step = directories.swap if destination.replaces else directories.move
        step(staged / str(destination.version), destination.path)
        checkpoint("renamed")
        # Last, and only now: the signature is the same, so either config serves the new version.
        config = destination.directory / layout.CONFIG_FILE
        if not config.exists() or config.read_bytes() != (staged / layout.CONFIG_FILE).read_bytes():
            directories.move(staged / layout.CONFIG_FILE, config)
    checkpoint("configured")
