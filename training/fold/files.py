"""Model files: read with suspicion, write whole or not at all. Knows ONNX's container, nothing of folding.

Weights stay in their file until somebody looks at them, and are written one after the other: a model may be larger
than memory. What may not be in a file is in file_check.py; here it becomes one ModelFileError line that begins with
the path.

A model is written as one file. What does not fit into one protobuf, or on request, has its weights in a second file
beside it, `NAME.data` (`NAME.1.data`, ... where that exists). Data files are never replaced: the new graph appears, in
one step, when the data it names is complete, and an old graph has its old data until then.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from training.fold.container import LARGE_BYTES, Payload, Splice, cut, write_numbers
from training.fold.errors import FoldError, ModelFileError
from training.fold.file_check import check_file
from training.fold.tensors import (
    IN_MEMORY_BYTES,
    ExternalFileTensor,
    FileTensor,
    Hollow,
    OnDisk,
    Source,
    is_plain,
    source_of,
)

SOURCE_SHA256 = "foldserve.source_sha256"  # in the meta store of a model that was read from a file; not written
_MAX_FILE_BYTES = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB
_ALIGNMENT = 4096  # of external data: what mmap, and so ONNX Runtime, can map


def read_model(path: str | Path) -> ir.Model:
    """The model in `path`, checked. Large weights and external data stay on disk and are read when asked for.

    The file may be replaced or removed while the model is in use, but not overwritten in place.

    Raises ModelFileError: missing, not ONNX, cyclic or dangling, tensors or shapes that contradict each other,
    external data that is outside the folder, missing or too short.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe may never end, and a device never does
            raise ModelFileError(f"{path}: cannot be read: it is a pipe or a device, expected a file")
        source = source_of(path)
        content = memoryview(source.view(0, source.size))
        digest = _sha256(source)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        skeleton, payloads = cut(content)
        proto = onnx.ModelProto.FromString(skeleton)
    except Exception as error:  # protobuf's DecodeError, or ours; protobuf itself is onnx's affair
        raise ModelFileError(f"{path}: is not an ONNX model: its {len(content)} bytes do not parse") from error
    try:
        _put_back_what_is_packed(proto, payloads, content)
        check_file(proto, path.parent, [None if payload is None else payload.length for payload in payloads])
        model: ir.Model = ir.from_proto(proto)
        _forget_shapes_without_types(model)
        _attach(model, [tensor.name for tensor in proto.graph.initializer], payloads, source)
        _leave_on_disk(model, path.parent.absolute())
    except Exception as problem:  # ours, the checker's, inference's, onnx-ir's, UnicodeDecodeError: all about the file
        cause = problem.__cause__ if isinstance(problem, ir.serde.SerdeError) else None
        raise ModelFileError(f"{path}: {_one_line(cause or problem)}") from problem
    model.meta[SOURCE_SHA256] = digest
    return model


def write_model(model: ir.Model, path: str | Path, *, external: bool = False) -> None:
    """Write `model` to `path`; readers see the old model or the whole new one, each with its own weights.

    `external`: large weights go into a file of their own, as they always do where one file could not hold them.

    Raises ModelFileError: the disk refuses, external data is gone, or too much of the model is not initializers.
    """
    with staged_model(model, path, external=external) as staged:
        staged.commit()


class StagedModel:
    """A model that is complete on disk but not in its place yet: `commit` puts it there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary: Path | None = None
        self._data: Path | None = None  # under its own name already, which no other model knows

    def commit(self) -> None:
        """The model appears at `path`; the data file of the one it replaces goes, if it bears that one's name.

        Raises ModelFileError.
        """
        assert self._temporary is not None
        replaced = _data_files_of(self.path)
        with _our_errors(self.path):
            self._temporary.replace(self.path)
            self._temporary = self._data = None
            _sync_folder(self.path.parent)
            for file in replaced:
                file.unlink(missing_ok=True)

    def write(self, model: ir.Model, *, external: bool) -> None:
        """Raises ModelFileError."""
        external = external or sum(tensor.nbytes for tensor in _tensors(model)) > _MAX_FILE_BYTES
        external = external and any(_is_large(tensor) for graph in model.graphs() for tensor in _initializers(graph))
        with _our_errors(self.path):
            if external:
                descriptor, self._data = _fresh_data_file(self.path)
                copy, outside = _prepared(model, self._data.name)
                with os.fdopen(descriptor, "wb") as file:
                    _write_data(outside, file)
                    _sync(file)
                _sync_folder(self.path.parent)  # the data's name lasts before the graph that tells of it
            else:
                copy, outside = _prepared(model, None)
            proto = ir.to_proto(copy)
            inside = {} if external else {tensor.name: tensor for tensor in outside}
            payloads = [inside.get(tensor.name) for tensor in proto.graph.initializer]
            for tensor, payload in zip(proto.graph.initializer, payloads, strict=True):
                if payload is not None:
                    tensor.ClearField("raw_data")  # a hollow tensor's, of no bytes
            splice = Splice(proto.SerializeToString(), payloads)
            if splice.size > _MAX_FILE_BYTES:
                raise ModelFileError(f"{self.path}: {splice.size} bytes do not fit into one file of {_MAX_FILE_BYTES}")
            self._write_graph(splice)

    def _write_graph(self, splice: Splice) -> None:
        mask = os.umask(0)
        os.umask(mask)
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".tmp")
        self._temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            splice.write(file)
            _sync(file)
        self._temporary.chmod(0o666 & ~mask)  # mkstemp makes it private; a written file follows the user's umask

    def discard(self) -> None:
        """Remove what was not committed."""
        for path in (self._temporary, self._data):
            if path is not None:
                path.unlink(missing_ok=True)


@contextmanager
def staged_model(model: ir.Model, path: str | Path, *, external: bool = False) -> Iterator[StagedModel]:
    """As `write_model`, in two steps: inside the block all is written and synced, and `commit` makes it appear."""
    staged = StagedModel(Path(path))
    try:
        staged.write(model, external=external)
        yield staged
    finally:
        staged.discard()


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


def has_external_data(model: ir.Model) -> bool:
    """Does any weight lie in a file beside the model's own?"""
    return any(isinstance(tensor, ir.ExternalTensor) for tensor in _tensors(model))


# --- Reading ---------------------------------------------------------------------------------------------------------


def _put_back_what_is_packed(proto: onnx.ModelProto, payloads: list[Payload | None], content: memoryview) -> None:
    """Tensors whose elements share bytes, or whose type is unknown, are left to onnx-ir and the checker."""
    for index, (tensor, payload) in enumerate(zip(proto.graph.initializer, payloads, strict=True)):
        known = tensor.data_type in ir.DataType._value2member_map_
        if payload is not None and not (known and is_plain(ir.DataType(tensor.data_type))):
            tensor.raw_data = bytes(content[payload.offset : payload.offset + payload.length])
            payloads[index] = None


def _attach(model: ir.Model, names: list[str], payloads: list[Payload | None], source: Source) -> None:
    """Give the initializers whose payload was cut out a look into the file instead."""
    for name, payload in zip(names, payloads, strict=True):
        if payload is not None:
            value = model.graph.initializers[name]
            assert value.const_value is not None
            value.const_value = FileTensor(value.const_value, source, payload.offset)


def _forget_shapes_without_types(model: ir.Model) -> None:
    """ONNX has no place for them: onnx-ir would leave them out of each copy, and log a line for each (serde.py)."""
    for body in (*model.graphs(), *model.functions.values()):
        for value in (output for node in body for output in node.outputs):
            if value.type is None:
                value.shape = None


def _leave_on_disk(model: ir.Model, folder: Path) -> None:
    """External data is looked for in `folder`; a large file is opened once, for all tensors in it."""
    ir.external_data.set_base_dir(model.graph, folder)
    opened: dict[Path, Source] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and is_plain(tensor.dtype):
                path = folder / tensor.location
                if path.stat().st_size > IN_MEMORY_BYTES:
                    opened[path] = opened.get(path) or OnDisk(path)
                    value.const_value = ExternalFileTensor(tensor, opened[path])


def _sha256(source: Source) -> str:
    digest = hashlib.sha256()
    for block in source.blocks(0, source.size):
        digest.update(block)
    return digest.hexdigest()


# --- Writing ---------------------------------------------------------------------------------------------------------


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from _initializers(graph)
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _initializers(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    return (value.const_value for value in graph.initializers.values() if value.const_value is not None)


def _prepared(model: ir.Model, data_name: str | None) -> tuple[ir.Model, list[ir.TensorProtocol]]:
    """A copy without its large weights' bytes, and those weights, in the order in which they are to be written.

    With `data_name` the copy says that they lie in that file, without it they are hollow. External data that is small,
    or is no initializer, is read into the copy.
    """
    copy, outside, offset = model.clone(), [], 0
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and _is_large(tensor) and (data_name or graph is copy.graph):
                tensor.name = value.name
                outside.append(tensor)
                value.const_value = Hollow(tensor) if data_name is None else _reference(tensor, data_name, offset)
                offset += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = _inside(tensor)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes.add(ir.AttrTensor(name, _inside(attribute.value), attribute.doc_string))
    return copy, outside


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > LARGE_BYTES


def _reference(tensor: ir.TensorProtocol, data_name: str, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        data_name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _inside(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _fresh_data_file(path: Path) -> tuple[int, Path]:
    """Create the first of NAME.data, NAME.1.data, ... that does not exist; opened for writing."""
    for number in itertools.count():
        data = path.with_name(f"{path.name}.{number}.data" if number else f"{path.name}.data")
        with suppress(FileExistsError):
            return os.open(data, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), data
    raise AssertionError("unreachable")


def _write_data(tensors: list[ir.TensorProtocol], file: BinaryIO) -> None:
    for tensor in tensors:
        write_numbers(tensor, file)
        file.write(bytes(-file.tell() % _ALIGNMENT))


def _data_files_of(path: Path) -> list[Path]:
    """Data files that the model at `path` uses and that bear its name; none if it is no model."""
    try:
        source = source_of(path)
        skeleton, _ = cut(memoryview(source.view(0, source.size)))
        initializers = onnx.ModelProto.FromString(skeleton).graph.initializer
    except Exception:  # absent, or something else than a model: then it uses nothing of ours
        return []
    locations = {entry.value for tensor in initializers for entry in tensor.external_data if entry.key == "location"}
    ours = re.compile(rf"{re.escape(path.name)}(\.\d+)?\.data")
    return [path.with_name(location) for location in sorted(locations) if ours.fullmatch(location)]


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _our_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be written: {error.strerror or error}") from error
    except (ValueError, TypeError, ir.serde.SerdeError) as error:
        raise ModelFileError(f"{path}: the model cannot be written: {_one_line(error.__cause__ or error)}") from error


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 400 else f"{text[:400]} ..."
