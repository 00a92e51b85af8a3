"""Texts as clients send them: bytes, cut or filled up to one length; a bad file or line is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from training import datasets
from training.datasets.dataset import Dataset, Tokens
from training.datasets.options import DEFAULT, Options
from training.errors import UserError

TEXTS = {f"row {number} " + "ä" * number: "xy"[number % 2] for number in range(10)}


def folder_of(folder: Path) -> Path:
    for number, (text, label) in enumerate(TEXTS.items()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def lines_of(folder: Path) -> Path:
    lines = [json.dumps({"text": text, "label": label}) for text, label in TEXTS.items()]
    (folder / "t.jsonl").write_text("\n".join(lines))
    return folder / "t.jsonl"


def load(where: Path, options: Options = DEFAULT) -> Dataset:
    return datasets.load(f"text:{where}", options)


@pytest.mark.parametrize("form", [folder_of, lines_of])
def test_inputs_are_bytes_filled_up_with_zeros(tmp_path: Path, form) -> None:
    dataset = load(form(tmp_path))
    assert dataset.front == Tokens(256)
    assert dataset.classes == ("x", "y")
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    assert dataset.train.only.dtype == np.uint8

    found = {
        row.tobytes().rstrip(b"\0").decode(): dataset.classes[label]
        for part in (dataset.train, dataset.test)
        for row, label in zip(part.only, part.labels, strict=True)
    }
    assert found == TEXTS


def test_the_length_is_that_of_the_long_ones_in_steps_of_sixteen_or_what_is_asked_for(tmp_path: Path) -> None:
    where = folder_of(tmp_path)
    assert load(where).train.only.shape[1] == 32  # the longest text has 24 bytes, and the usual ones above 16
    cut = load(where, Options(length=5))
    assert {row.tobytes() for row in cut.train.only} <= {text.encode()[:5] for text in TEXTS}

    (where / "x/0.txt").write_text("long " * 1000)
    (where / "x/2.txt").write_text("long " * 1001)
    (where / "x/4.txt").write_text("long " * 1002)
    assert load(where).train.only.shape[1] == 1024


def test_a_client_that_does_as_the_note_says_sends_what_was_learned_from(tmp_path: Path) -> None:
    dataset = load(folder_of(tmp_path))
    padding, request = dataset.notes[-2].rpartition(": ")[2], dataset.notes[-1].partition(": ")[2]
    sent = {eval(padding, {"text": text}) for text in TEXTS}
    assert {row.tobytes() for row in dataset.train.only} < sent

    tensors = [eval(request, {"text": text})["inputs"][0] for text in TEXTS]
    assert {bytes(tensor.pop("data")) for tensor in tensors} == sent
    (described,) = dataset.inputs
    length = dataset.train.only.shape[1]
    assert all(one == {"name": described.name, "datatype": "UINT8", "shape": [1, length]} for one in tensors)


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "t", "label": number % 2 + 9}) for number in range(10)]
    (tmp_path / "n.jsonl").write_text("\n\n".join(lines))
    assert load(tmp_path / "n.jsonl").classes == ("9", "10")


def test_folders_of_parts_are_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "train")
    folder_of(tmp_path / "test")
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (10, 10)


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path)
    first, again, other = (load(tmp_path, Options(split_seed=seed)).test.only for seed in (1, 1, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


GOOD = '{"text": "a", "label": "x"}\n'
BAD_LINES = {
    "no JSON": ("{text}", "no JSON in UTF-8 (Expecting property name"),
    "no UTF-8": ('{"text": "\udcff"}', "no JSON in UTF-8 ('utf-8' codec"),
    "too deep": ("[" * 100_000, "no JSON in UTF-8 ("),
    "no object": ("[1]", "the text is null, expected {"),
    "no text": ('{"label": "x"}', "the text is null, expected {"),
    "an empty text": ('{"text": " ", "label": "x"}', 'the text is " ", expected {'),
    "a text that is a number": ('{"text": 3, "label": "x"}', "the text is 3, expected {"),
    "half a character": ('{"text": "\\ud800", "label": "x"}', "the text holds half a character"),
    "half a character in a label": ('{"text": "a", "label": "\\ud800"}', "the label holds half a character"),
    "no label": ('{"text": "a"}', "the label is null, expected {"),
    "a label that is NaN": ('{"text": "a", "label": NaN}', "the label is NaN, expected {"),
    "an empty label": ('{"text": "a", "label": ""}', 'the label is "", expected {'),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_told_by_its_number(tmp_path: Path, case: str) -> None:
    line, told = BAD_LINES[case]
    (tmp_path / "t.jsonl").write_bytes((GOOD + "\n" + line).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as refused:
        load(tmp_path / "t.jsonl")
    assert str(refused.value).startswith(f"{tmp_path}/t.jsonl, line 3: {told}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b" \n", "empty, expected a text"),
        ("größe".encode("latin-1"), "byte 2 is no UTF-8, expected a text in UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (folder_of(tmp_path) / "x/bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"x/bad.txt: {told}"):
        load(tmp_path)


def test_what_is_not_there_or_empty_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.jsonl: No such file or directory, expected a file of JSON lines"):
        load(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"empty.jsonl: no rows, expected at least two of each class"):
        load(tmp_path / "empty.jsonl")
    (tmp_path / "folder/x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"folder/x: no texts in this class's folder, expected files named \*.txt"):
        load(tmp_path / "folder")


def test_a_length_that_no_memory_holds_is_told_before_any_is_taken(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r": 10 texts of 1000000000000 bytes: 9\.31e\+03 GiB, expected at most 8"):
        load(folder_of(tmp_path), Options(length=10**12))
