"""Folders of images: what a decoder gives is what the network takes, and what cannot be used is named."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import datasets
from training.datasets import pictures
from training.datasets.dataset import Dataset, Pixels
from training.datasets.options import DEFAULT, Options
from training.errors import UserError
from training.fronts import build_front, features_of


def pixels(seed: int, height: int = 6, width: int = 4, mode: str = "RGB") -> Image.Image:
    channels = () if mode in "LP" else (len(mode),)
    values = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    image = Image.fromarray(values)
    return image.convert("P") if mode == "P" else image


def write(folder: Path, name: str, image: Image.Image) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)


def folder_of(folder: Path, mode: str = "RGB", per_class: int = 5) -> Path:
    for label, start in {"cat": 0, "dog": 100}.items():
        for number in range(per_class):
            write(folder, f"{label}/{number}.png", pixels(start + number, mode=mode))
    return folder


def load(folder: Path, options: Options = DEFAULT) -> Dataset:
    return datasets.load(f"imagefolder:{folder}", options)


def test_inputs_are_the_bytes_of_the_images_in_rows(tmp_path: Path) -> None:
    dataset = load(folder_of(tmp_path))
    everything = np.concatenate([dataset.train.only, dataset.test.only])

    assert dataset.classes == ("cat", "dog")
    assert (everything.dtype, everything.shape) == (np.uint8, (10, 6, 4, 3))
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    found = {row.tobytes(): dataset.classes[label] for row, label in zip(everything, labels, strict=True)}
    assert found == {
        np.asarray(pixels(start + number)).tobytes(): label
        for label, start in {"cat": 0, "dog": 100}.items()
        for number in range(5)
    }


def test_the_front_normalises_the_training_images_and_features_are_channels_first(tmp_path: Path) -> None:
    dataset = load(folder_of(tmp_path))
    assert isinstance(dataset.front, Pixels)
    assert dataset.front.channels_last
    assert features_of(dataset).shape == (3, 6, 4)

    image = build_front(dataset.front)(torch.from_numpy(dataset.train.only))
    assert torch.allclose(image.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(image.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_grey_images_have_one_channel_and_all_others_three(tmp_path: Path, mode: str, channels: int) -> None:
    dataset = load(folder_of(tmp_path, mode))
    assert dataset.train.only.shape[-1] == channels


def test_one_image_in_colour_makes_all_of_them_so(tmp_path: Path) -> None:
    write(folder_of(tmp_path, "L"), "cat/colour.png", pixels(7))
    assert load(tmp_path).train.only.shape[-1] == 3


def test_a_channel_that_never_changes_is_not_divided_by_zero(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, f"{'ab'[number % 2]}/{number}.png", Image.new("L", (4, 4), 9))
    assert load(tmp_path, Options(test_fraction=0.5)).front == Pixels((9.0,), (1.0,), channels_last=True)


def test_images_are_scaled_where_a_size_is_asked_for_and_clients_are_told(tmp_path: Path) -> None:
    write(folder_of(tmp_path), "dog/large.png", pixels(8, height=20, width=9))
    dataset = load(tmp_path, Options(size=(8, 5)))

    assert dataset.train.only.shape[1:] == (8, 5, 3)
    assert dataset.notes[0].startswith("scale an image to 8x5 (height x width; here: Pillow, bilinear)")


@pytest.mark.parametrize(("mode", "size"), [("RGB", None), ("L", None), ("RGB", (8, 5))])
def test_a_client_that_asks_as_the_note_says_sends_what_was_learned_from(
    tmp_path: Path, mode: str, size: tuple[int, int] | None
) -> None:
    dataset = load(folder_of(tmp_path, mode), Options(size=size))
    code = dataset.notes[-1].partition(": ")[2]

    sent = set()
    for path in tmp_path.rglob("*.png"):
        (tensor,) = eval(code, {"Image": Image, "numpy": np, "path": path})["inputs"]
        assert (tensor["name"], tensor["datatype"]) == (dataset.inputs[0].name, "UINT8")
        assert tensor["shape"] == [1, *dataset.train.only.shape[1:]]
        sent.add(bytes(tensor["data"]))

    assert {row.tobytes() for part in (dataset.train, dataset.test) for row in part.only} == sent


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_folders_of_parts_are_the_split(tmp_path: Path, held_out: str) -> None:
    folder_of(tmp_path / "train", per_class=3)
    folder_of(tmp_path / held_out, per_class=1)
    dataset = load(tmp_path)

    assert (len(dataset.train), len(dataset.test)) == (6, 2)
    assert np.array_equal(dataset.test.only[1], np.asarray(pixels(100)))
    assert dataset.test.labels.tolist() == [0, 1]


def test_what_is_not_used_is_noted_without_the_machines_own_path(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        folder_of(tmp_path / part, per_class=2)
    (tmp_path / "train/cat/Thumbs.db").write_bytes(b"")
    (tmp_path / "train/.hidden").mkdir()
    notes = load(tmp_path).notes

    assert notes[0] == "val is not used: test is what is held out"
    assert notes[1] == "1 files are left out, because they are no images: train/cat/Thumbs.db is the first"


def test_a_relative_path_that_is_not_there_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"^parts: not there, .*; check the path, which is looked for from {tmp_path}$"
    ):
        load(Path("parts"))
    with pytest.raises(UserError, match=r"; check the path$"):
        load(tmp_path / "parts")


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path)
    first, again, other = (load(tmp_path, Options(split_seed=seed)).test.only for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# --- what cannot be used ------------------------------------------------------------------------------------------


def bomb(folder: Path, side: int) -> None:
    """A PNG whose header promises side x side pixels, in a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    (folder / "cat/bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))


def cut(folder: Path) -> None:
    whole = io.BytesIO()
    pixels(1, 64, 64).save(whole, "JPEG")
    (folder / "cat/cut.jpg").write_bytes(whole.getvalue()[:-300])


def script(folder: Path) -> None:
    (folder / "cat/script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 6\n(%pipe%id) (r) file\n")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (
        lambda folder: write(folder, "dog/x.png", pixels(1, 5, 4)),
        "dog/x.png: 5x4 pixels, but cat/0.png has 6x4 (height x width), expected one size",
    ),
    "no image": (lambda folder: (folder / "cat/x.png").write_text("no"), "cat/x.png: unreadable, expected an image"),
    "an empty file": (lambda folder: (folder / "dog/x.png").touch(), "dog/x.png: unreadable, expected an image"),
    "half an image": (cut, "cat/cut.jpg: unreadable, expected an image"),
    "a program": (script, "cat/script.png: unreadable, expected an image"),
    "a bomb": (lambda folder: bomb(folder, 50_000), "cat/bomb.png: expected at most 89478485 pixels; scale it down"),
    "a small bomb": (lambda folder: bomb(folder, 10_000), "cat/bomb.png: expected at most 89478485 pixels"),
    "16 bits": (
        lambda folder: write(folder, "cat/x.png", Image.fromarray(np.zeros((6, 4), np.uint16))),
        "cat/x.png: has mode I;16, expected 8 bits a channel; convert it",
    ),
    "an empty class": (
        lambda folder: (folder / "fox").mkdir(),
        "fox: no images in this class's folder, expected files",
    ),
    "one example": (lambda folder: write(folder, "fox/x.png", pixels(1)), "class 'fox' has a single example"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    spoil, told = BAD[case]
    spoil(folder_of(tmp_path))
    options = DEFAULT if case == "another size" else Options(size=(6, 4))
    with pytest.raises(UserError) as refused:
        load(tmp_path, options)
    line = str(refused.value).replace(f"{tmp_path}/", "").removeprefix(f"{tmp_path}: ")
    assert line.startswith(told)
    assert "\n" not in line


def test_folders_that_are_none_are_one_line_each(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: not there, expected a folder"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match=f"{tmp_path}: empty, expected one folder a class, with images"):
        load(tmp_path)
    write(tmp_path, "x.png", pixels(1))
    with pytest.raises(UserError, match=f"{tmp_path}: 1 images but no folders, expected one folder a class"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"x.png: no folder, expected a folder"):
        load(tmp_path / "x.png")
    for number in range(2):
        write(tmp_path, f"cat/{number}.png", pixels(number))
    with pytest.raises(UserError, match="all 2 rows are of class 'cat', expected at least two classes"):
        load(tmp_path)


def test_more_pixels_than_fit_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path)
    monkeypatch.setattr(pictures, "MOST_BYTES", 700)
    with pytest.raises(UserError, match=r"cat/0.png and 9 more: 6.71e-07 GiB as pixels, expected at most 6.5"):
        load(tmp_path)
