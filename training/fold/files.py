"""Model files: read with suspicion, write whole or not at all. Knows ONNX's container, nothing of folding.

What may not be in a file is in file_check.py; here it becomes one ModelFileError line that begins with the path.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from training.fold.errors import FoldError, ModelFileError
from training.fold.file_check import check_file

SOURCE_SHA256 = "foldserve.source_sha256"  # in the meta store of a model that was read from a file; not written
_MAX_FILE_BYTES = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB; the rest is for the graph itself


def read_model(path: str | Path) -> ir.Model:
    """The model in `path`, checked; its external data stays on disk and is read when asked for.

    Raises ModelFileError: missing, not ONNX, cyclic or dangling, tensors or shapes that contradict each other,
    external data that is outside the folder, missing or too short.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        proto = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's DecodeError; protobuf itself is onnx's affair
        raise ModelFileError(f"{path}: is not an ONNX model: its {len(data)} bytes do not parse") from error
    try:
        check_file(proto, path.parent)
        model: ir.Model = ir.from_proto(proto)
    except Exception as problem:  # ours, the checker's, inference's, onnx-ir's, UnicodeDecodeError: all about the file
        cause = problem.__cause__ if isinstance(problem, ir.serde.SerdeError) else None
        raise ModelFileError(f"{path}: {_one_line(cause or problem)}") from problem
    ir.external_data.set_base_dir(model.graph, path.parent.absolute())
    model.meta[SOURCE_SHA256] = hashlib.sha256(data).hexdigest()
    return model


def write_model(model: ir.Model, path: str | Path) -> None:
    """Write `model` to `path` as one file, external data included; readers see the old file or the whole new one.

    Raises ModelFileError: larger than one protobuf file can be, external data gone, or the disk refuses.
    """
    path = Path(path)
    size = sum(tensor.nbytes for tensor in _tensors(model))
    if size > _MAX_FILE_BYTES:
        raise ModelFileError(f"{path}: {size} bytes of tensors do not fit into one file of {_MAX_FILE_BYTES} bytes")
    try:
        data = ir.to_proto(_with_tensors_inside(model)).SerializeToString()
        _write_atomically(data, path)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from error
    except (ValueError, ir.serde.SerdeError) as error:
        raise ModelFileError(f"{path}: the model cannot be written: {_one_line(error.__cause__ or error)}") from error


def copy_model(model: ir.Model) -> ir.Model:
    """A copy that shares tensors but no graph. Raises FoldError where the graph is not a graph in order."""
    try:
        copy = model.clone()
    except (RuntimeError, KeyError) as error:
        raise FoldError(
            "the model's nodes read values that no earlier node computes: expected a graph in topological order"
        ) from error
    copy.meta.update(model.meta)
    return copy


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _with_tensors_inside(model: ir.Model) -> ir.Model:
    """The model, or a copy whose external tensors are read into memory."""
    if not any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(model)):
        return model
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _inside(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes.add(ir.AttrTensor(name, _inside(attribute.value), attribute.doc_string))
    return copy


def _inside(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _write_atomically(data: bytes, path: Path) -> None:
    """A sibling temporary file, fsync, rename, fsync of the folder: a crash leaves the old file or the new one."""
    mask = os.umask(0)
    os.umask(mask)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private; a written file follows the user's umask
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 400 else f"{text[:400]} ..."
