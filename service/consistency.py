"""Do the files of one version agree with each other? Report against bytes, config.json against the model file.

Asked once, at load, before anything is served. A contradiction is a ModelRejected that names both sides.
Knows no requests, and of a session only what it declares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelRejected
from service.protocol import PLATFORM, ModelMetadata, TensorMetadata
from service.repository import CONFIG_FILE, InputConfig, ModelConfig, OutputConfig, VersionDirectory, VersionReport
from service.session import Session, SessionTensor

_CHANGED = ": it was changed after publishing; publish the version again"


def check_files(version: VersionDirectory, report: VersionReport) -> None:
    """Every file that report.json lists is there, with the listed length and sha256. Raises ModelRejected."""
    if not version.model_path.exists():
        raise ModelRejected(f"{version.model_file} is missing")
    _require_regular(version.model_path)
    for name, record in report.files.items():
        path = version.path / name
        try:
            length = path.stat().st_size
            _require_regular(path)
            if length != record.bytes:
                raise ModelRejected(f"{name} has {length} bytes, report.json lists {record.bytes}{_CHANGED}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise ModelRejected(f"{name} is missing, but report.json lists it") from error
        except OSError as error:
            raise ModelRejected(f"{name} cannot be read: {error.strerror}") from error
        if digest != record.sha256:
            raise ModelRejected(f"{name} has sha256 {digest[:12]}, report.json lists {record.sha256[:12]}{_CHANGED}")


def _require_regular(path: Path) -> None:
    """Opening a named pipe would wait for a writer, for ever; a folder would fail with less clear words."""
    if not path.is_file():
        raise ModelRejected(f"{path.name} is not a regular file")


def check_labels(version: VersionDirectory, config: ModelConfig) -> None:
    """Every labels file that config.json names is beside the model. Raises ModelRejected."""
    for output in config.outputs:
        if output.labels is not None and not (version.path / output.labels).is_file():
            raise ModelRejected(f"{output.labels}, named in {CONFIG_FILE} for output {output.name!r}, is missing")


def derive_metadata(version: VersionDirectory, config: ModelConfig, session: Session) -> ModelMetadata:
    """What clients are told: config.json where it speaks, the model file where it is silent.

    Raises ModelRejected when they contradict each other.
    """
    return ModelMetadata(
        name=config.name,
        versions=(str(version.version),),
        platform=PLATFORM,
        inputs=_agreed("input", config.inputs, session.inputs),
        outputs=_agreed("output", config.outputs, session.outputs),
    )


def _agreed(
    kind: str, declared: Sequence[InputConfig | OutputConfig], actual: Sequence[SessionTensor]
) -> tuple[TensorMetadata, ...]:
    if not declared:
        return tuple(TensorMetadata(tensor.name, tensor.datatype, tensor.shape) for tensor in actual)
    by_name = {tensor.name: tensor for tensor in declared}
    if by_name.keys() != {tensor.name for tensor in actual}:
        raise ModelRejected(
            f"{CONFIG_FILE} declares {kind}s {sorted(by_name)}, the model file has {sorted(t.name for t in actual)}"
        )
    for tensor in actual:
        wanted = by_name[tensor.name]
        if wanted.datatype != tensor.datatype:
            raise ModelRejected(
                f"{kind} {tensor.name!r}: {CONFIG_FILE} says {wanted.datatype}, the model file {tensor.datatype}"
            )
        if not _is_narrower(wanted.shape, tensor):
            raise ModelRejected(
                f"{kind} {tensor.name!r}: {CONFIG_FILE} says shape {list(wanted.shape)}, "
                f"the model file {list(tensor.shape)}"
            )
    return tuple(TensorMetadata(tensor.name, tensor.datatype, tuple(by_name[tensor.name].shape)) for tensor in actual)


def _is_narrower(wanted: Sequence[int], tensor: SessionTensor) -> bool:
    """The same shape, except that config.json may fix a dimension that the file leaves free. Rank 0 may mean that the
    file gives no shape at all (see SessionTensor): then config.json is believed."""
    if not tensor.dims:
        return True
    pairs = zip(wanted, tensor.shape, strict=False)
    return len(wanted) == len(tensor.shape) and all(want == have or have == -1 for want, have in pairs)
