"""Files that commands are given and leave behind: read with care, written together or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.command_files import (
    CannotUseFile,
    check_places,
    parse_input_shape,
    parse_sizes,
    read_samples,
    write_json,
    write_results,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"x,y\n1,2\n"], ids=["empty", "broken zip", "csv"])
def test_samples_that_are_no_npz_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "real.npz"
    path.write_bytes(content)
    with pytest.raises(CannotUseFile, match=r"cannot be read as samples") as error:
        read_samples(path)
    assert "\n" not in str(error.value)


def test_samples_with_pickles_or_without_names_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(CannotUseFile, match=r"cannot be read as samples"):
        read_samples(tmp_path / "pickled.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(CannotUseFile, match=r"is a single array, expected an \.npz"):
        read_samples(tmp_path / "one.npy")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x=1,3,8,8", ("x", (1, 3, 8, 8))), ("in:0=2, 5", ("in:0", (2, 5))), ("a=b=7", ("a=b", (7,))), ("s=", ("s", ()))],
)
def test_an_input_shape_is_parsed(text: str, expected: Any) -> None:
    assert parse_input_shape(text) == expected


@pytest.mark.parametrize("text", ["", "x", "=1,2", "x=1,,2", "x=1,-2", "x=0", "x=1x2", "x=٣"])
def test_an_input_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CannotUseFile, match="expected NAME=SIZES, as in x=1,3,224,224"):
        parse_input_shape(text)


@pytest.mark.parametrize(("text", "expected"), [("1,3", (1, 3)), ("", ()), ("1,", None), ("-1", None), ("x=1", None)])
def test_sizes_alone_are_parsed_or_are_none(text: str, expected: Any) -> None:
    assert parse_sizes(text) == expected


def test_the_model_may_take_the_place_of_its_source_and_a_report_may_not(tmp_path: Path) -> None:
    model, report = tmp_path / "m.onnx", tmp_path / "r.json"
    check_places([model, report], sources=[model])
    with pytest.raises(CannotUseFile, match="is the model's own path"):
        check_places([tmp_path / "out.onnx", model], sources=[model])


def test_files_that_the_model_brings_come_with_it(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"graph")
        path.with_name(f"{path.name}.data").write_bytes(b"weights")

    write_results(tmp_path / "m.onnx", write, [tmp_path / "r.json", tmp_path / "r.html"], {"a": 1}, lambda: "<page>")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "m.onnx": b"graph",
        "m.onnx.data": b"weights",
        "r.json": b'{\n  "a": 1\n}\n',
        "r.html": b"<page>",
    }


@pytest.mark.parametrize("broken", ["model", "page"])
def test_what_fails_half_way_leaves_everything_as_it_was(tmp_path: Path, broken: str) -> None:
    def fails(*_: object) -> str:
        raise OSError(28, "No space left on device")

    (tmp_path / "m.onnx").write_bytes(b"old")
    write = fails if broken == "model" else lambda path: path.write_bytes(b"new")
    with pytest.raises(CannotUseFile, match=r"m\.onnx: cannot be written: No space left on device"):
        write_results(tmp_path / "m.onnx", write, [tmp_path / "r.json", tmp_path / "r.html"], {}, fails)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"m.onnx": b"old"}


def test_one_report_is_written_or_its_folder_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": None})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": None}
    with pytest.raises(CannotUseFile, match=r"no/r\.json: cannot be written: No such file"):
        write_json(tmp_path / "no" / "r.json", {})
    assert names(tmp_path) == {"r.json"}
