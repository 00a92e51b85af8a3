"""Do the files of one version agree with each other? Report against bytes, configuration against the model file.

Asked once, at load, before anything is served. A contradiction is a ModelRejected that names both sides.
Knows no requests, and of a session only what it declares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from service.errors import ModelRejected
from service.protocol import PLATFORM, ModelMetadata, TensorMetadata
from service.repository import (
    InputConfig,
    ModelConfig,
    OutputConfig,
    VersionDirectory,
    VersionReport,
    find_labels,
)
from service.session import Session, SessionTensor

# A thousand times the labels of ImageNet.
_LARGEST_LABELS_BYTES = 16 << 20
_CHANGED = ": it was changed after publishing; publish the version again"


def check_files(version: VersionDirectory, report: VersionReport) -> None:
    """Every file that report.json lists is there, with the listed length and sha256. Raises ModelRejected."""
    if not version.model_path.exists():
        raise ModelRejected(f"{version.model_path.relative_to(version.path)} is missing{_others(version)}")
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


def _others(version: VersionDirectory) -> str:
    """Where the configuration has not named the file, the one that it may have to name."""
    found = sorted(path.name for path in version.path.glob("*.onnx"))
    if version.named_by_config or len(found) != 1:
        return ""
    return f"; {found[0]} is there: rename it, or name it as default_model_filename in the configuration"


def _require_regular(path: Path) -> None:
    """Opening a named pipe would wait for a writer, for ever; a folder would fail with less clear words."""
    if not path.is_file():
        raise ModelRejected(f"{path.name} is not a regular file")


def read_labels(version: VersionDirectory, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """By output, the labels of those that the configuration names a file for. Raises ModelRejected.

    One label a line, in index order, UTF-8; what follows the last line's end is no label. Clients are told what stands
    in the file, so a link that leads out of the model's folder is refused.
    """
    labels = {}
    for output in config.outputs:
        if output.labels is not None:
            where = f"{output.labels}, named in {config.file_name} for output {output.name!r},"
            labels[output.name] = _read_labels(version, output.labels, where)
    return labels


def _read_labels(version: VersionDirectory, name: str, where: str) -> tuple[str, ...]:
    path = find_labels(version, name)
    if not path.exists():
        raise ModelRejected(f"{where} is missing: it belongs beside the model file, or one folder up for all versions")
    _require_regular(path)
    # Links within are how Kubernetes mounts a ConfigMap; folders that are themselves links are the operator's word.
    homes = {version.path.resolve(), version.path.parent.resolve()}
    if homes.isdisjoint(path.resolve().parents):
        raise ModelRejected(f"{where} is a link that leads out of the model's folder; put the file itself there")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_LABELS_BYTES + 1)
        if len(content) > _LARGEST_LABELS_BYTES:
            raise ModelRejected(
                f"{where} is longer than {_LARGEST_LABELS_BYTES} bytes, the most that is read of labels"
            )
        return tuple(content.decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n"))
    except OSError as error:
        raise ModelRejected(f"{where} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelRejected(f"{where} is not UTF-8 at byte {error.start}") from error


def derive_metadata(version: VersionDirectory, config: ModelConfig, session: Session) -> ModelMetadata:
    """What clients are told: the configuration where it speaks, the model file where it is silent.

    Raises ModelRejected when they contradict each other.
    """
    return ModelMetadata(
        name=config.name,
        versions=(str(version.version),),
        platform=PLATFORM,
        inputs=_agreed("input", config.inputs, session.inputs, config.file_name),
        outputs=_agreed("output", config.outputs, session.outputs, config.file_name),
    )


def _agreed(
    kind: str, declared: Sequence[InputConfig | OutputConfig], actual: Sequence[SessionTensor], config_file: str
) -> tuple[TensorMetadata, ...]:
    if not declared:
        return tuple(TensorMetadata(tensor.name, tensor.datatype, tensor.shape) for tensor in actual)
    by_name = {tensor.name: tensor for tensor in declared}
    if by_name.keys() != {tensor.name for tensor in actual}:
        raise ModelRejected(
            f"{config_file} declares {kind}s {sorted(by_name)}, the model file has {sorted(t.name for t in actual)}"
        )
    for tensor in actual:
        wanted = by_name[tensor.name]
        if wanted.datatype != tensor.datatype:
            raise ModelRejected(
                f"{kind} {tensor.name!r}: {config_file} says {wanted.datatype}, the model file {tensor.datatype}"
            )
        shape = wanted.shape if wanted.reshape is None else wanted.reshape
        if not _is_narrower(shape, tensor):
            raise ModelRejected(
                f"{kind} {tensor.name!r}: {config_file} says {'shape' if wanted.reshape is None else 'reshape'} "
                f"{list(shape)}, "
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
