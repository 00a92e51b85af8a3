"""`hfdisk:DIR`: what `save_to_disk` of Hugging Face's `datasets` has written: images, texts or a table.

The labels are in `data.target`, or else in `label` or `labels`. Of a dictionary of parts `train` is learned from, and
`test` or `validation` held out. Images are decoded by us, from their bytes. Needs `datasets`.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.datasets import parquet_file, pictures_by_class, texts
from training.datasets.class_folders import HELD_OUT, TRAIN
from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.datasets.pictures import Picture
from training.errors import UserError, check_the_path


def load(where: str, options: Options) -> Dataset:
    """Raises UserError."""
    library = _library(where)
    parts = _parts(where, library)
    features = parts[0].features
    target = _target(where, features, options)
    whole, n_test = parts[0], None
    if len(parts) == 2:
        whole, n_test = library.concatenate_datasets(parts), len(parts[1])
    image = next((name for name, one in features.items() if isinstance(one, library.Image)), None)
    words = [name for name, one in features.items() if name != target and getattr(one, "dtype", "") in _TEXT]
    if image is not None:
        cells = whole.cast_column(image, library.Image(decode=False))[image]
        pictures = [_picture(f"{where}, row {row}", cell) for row, cell in enumerate(cells, 1)]
        return pictures_by_class.dataset_of(where, pictures, _labels(where, whole, target), options, n_test)
    if "text" in words or (len(words) == 1 and len(features) == 2):
        name = "text" if "text" in words else words[0]
        content = [_text(f"{where}, row {row}", cell) for row, cell in enumerate(whole[name], 1)]
        return texts.dataset_of(where, content, _labels(where, whole, target), options, n_test)
    table = whole.with_format("arrow")[:]
    return parquet_file.dataset_of(where, table, replace(options, target=target), n_test)


_TEXT = ("string", "large_string")


def _library(where: str) -> Any:
    try:
        library = importlib.import_module("datasets")
        if hasattr(library, "load_from_disk"):
            return library
    except ImportError:
        pass
    raise UserError(f"hfdisk:{where}: this needs datasets, which is not installed: pip install 'foldserve[hfdisk]'")


def _parts(where: str, library: Any) -> list[Any]:
    if not Path(where).is_dir():
        raise UserError(f"{where}: not there, expected a folder that save_to_disk has written; {check_the_path(where)}")
    try:
        saved = library.load_from_disk(where)
    except Exception as error:  # the library's own reasons, Arrow's and JSON's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: unreadable, expected a folder that save_to_disk has written ({reason})") from error
    if not isinstance(saved, dict):
        return [saved]
    held_out = next((name for name in HELD_OUT if name in saved), None)
    if TRAIN not in saved:
        raise UserError(f"{where}: has the parts {', '.join(saved)}, expected one named {TRAIN}; rename it")
    return [saved[TRAIN]] if held_out is None else [saved[TRAIN], saved[held_out]]


def _target(where: str, features: Any, options: Options) -> str:
    names = ("label", "labels") if options.target is None else (options.target,)
    found = next((name for name in names if name in features), None)
    if found is None:
        raise UserError(
            f"{where}: there is no column {names[0]!r}, expected the one with the labels; columns are "
            f"{', '.join(features)}: choose one with data.target"
        )
    return found


def _labels(where: str, whole: Any, target: str) -> list[str]:
    names = getattr(whole.features[target], "names", None)
    labels = []
    for row, value in enumerate(whole[target], 1):
        label = _label(value, names)
        if not label:
            raise UserError(
                f"{where}, row {row}: column {target!r} holds {value!r}, expected a class; correct it, or remove the "
                f"row"
            )
        labels.append(label)
    return labels


def _label(value: Any, names: Sequence[str] | None) -> str:
    """Its name, or "" where there is none."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value != int(value):
        return ""
    if names is None:
        return str(int(value))
    return names[int(value)] if 0 <= value < len(names) else ""


def _text(thing: str, cell: Any) -> bytes:
    if not isinstance(cell, str) or not cell.strip():
        raise UserError(f"{thing}: the text is {cell!r}, expected a text; fill it in, or remove the row")
    return cell.encode()


def _picture(thing: str, cell: Any) -> Picture:
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise UserError(f"{thing}: holds no image, expected one; remove the row")
    return Picture(thing, cell["bytes"] or Path(cell["path"]))
