"""From a user's raw data to a served prediction: a folder of images, a csv, a folder of texts. The client knows nothing
but what the service tells it: names, datatypes, shapes, categories and notes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.running import Foldserve, foldserve
from training.pipeline import build_asked
from training.recipe_sources import ask

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}
WORDS = {"weather": "rain wind sun cloud snow", "kitchen": "salt pan oven dough knife"}
CITIES = ("Bonn", "Lima", "Oslo")
ROWS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "parts" / name).mkdir(parents=True)
        for number in range(ROWS // 2):
            pixels = np.clip(np.array(colour) + rng.normal(0, 20, (12, 10, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "parts" / name / f"{number}.png")
    for name, words in WORDS.items():
        (folder / "notes" / name).mkdir(parents=True)
        for number in range(ROWS // 2):
            text = " ".join(rng.choice(words.split(), 5))
            (folder / "notes" / name / f"{number}.txt").write_text(text, encoding="utf-8")
    with (folder / "visits.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["age", "city", "bought"])
        for _ in range(2 * ROWS):
            city, age = str(rng.choice(CITIES)), int(rng.integers(20, 60))
            table.writerow([age, city, "yes" if city == "Lima" else "no"])
    return folder


def publish(data: Path, repository: Path, source: str, preset: str, *settings: str) -> None:
    small = ["epochs=8", "batch_size=16", "name=" + preset, *settings]
    build_asked(ask(source.format(data), preset=preset, overrides=small), repository)


@pytest.fixture(scope="module")
def repository(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each model has the name of its preset."""
    folder = tmp_path_factory.mktemp("own")
    publish(data, folder, "imagefolder:{}/parts", "cnn6", "architecture.options.widths=[4,4,8,8,8,8]")
    publish(data, folder, "csv:{}/visits.csv", "mlp-in", "data.target=bought")
    publish(data, folder, "text:{}/notes", "textcnn", "data.length=40")
    return folder


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository) as running:
        yield running


class Client:
    """Asks one model, by what its description says."""

    def __init__(self, service: Foldserve, repository: Path, model: str) -> None:
        self._service, self._model = service, model
        self.config: dict[str, Any] = json.loads((repository / model / "config.json").read_text(encoding="utf-8"))
        self._labels = (repository / model / "1" / "labels.txt").read_text(encoding="utf-8").splitlines()
        self.inputs = {one["name"]: one for one in self.config["inputs"]}

    def answers(self, **tensors: np.ndarray) -> list[str]:
        """The label of each row."""
        told = [
            {
                "name": name,
                "datatype": self.inputs[name]["datatype"],
                "shape": list(values.shape),
                "data": values.ravel().tolist(),
            }
            for name, values in tensors.items()
        ]
        answer = self._service.infer(self._model, *told)
        assert answer.status == 200, answer.body
        (scores,) = answer.json()["outputs"]
        return [self._labels[row] for row in np.reshape(scores["data"], scores["shape"]).argmax(axis=1)]


def test_an_image_is_sent_as_a_decoder_gives_it(data: Path, service: Foldserve, repository: Path) -> None:
    client = Client(service, repository, "cnn6")
    ((name, told),) = client.inputs.items()
    assert (told["datatype"], told["shape"]) == ("UINT8", [-1, 12, 10, 3])
    images = [np.asarray(Image.open(data / "parts" / colour / "0.png")) for colour in ("red", "blue", "red")]
    assert client.answers(**{name: np.stack(images)}) == ["red", "blue", "red"]


def test_a_row_of_a_table_is_sent_column_by_column_a_word_by_its_number(service: Foldserve, repository: Path) -> None:
    client = Client(service, repository, "mlp-in")
    cities = client.inputs["city"]["categories"]
    asked = ("Lima", "Oslo", "Lima", "Bonn")
    numbers = np.array([[cities.index(city)] for city in asked])
    ages = np.array([[30.0], [31.0], [44.0], [50.0]])
    assert client.answers(age=ages, city=numbers) == ["yes", "no", "yes", "no"]


def test_a_word_that_was_never_seen_is_answered(service: Foldserve, repository: Path) -> None:
    client = Client(service, repository, "mlp-in")
    unseen = len(client.inputs["city"]["categories"]) - 1
    assert client.answers(age=np.array([[35.0]]), city=np.array([[unseen]])) in (["yes"], ["no"])


def test_a_text_is_sent_as_its_bytes(service: Foldserve, repository: Path) -> None:
    client = Client(service, repository, "textcnn")
    ((name, told),) = client.inputs.items()
    assert (told["datatype"], told["shape"]) == ("UINT8", [-1, 40])
    assert any("40" in note for note in client.config["notes"])
    rows = np.zeros((2, 40), np.uint8)
    for row, text in zip(rows, ("salt and pan and dough", "wind and sun and snow"), strict=True):
        row[: len(text)] = np.frombuffer(text.encode(), np.uint8)
    assert client.answers(**{name: rows}) == ["kitchen", "weather"]
