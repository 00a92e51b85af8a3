"""Real held-out digits through the real command: by an unmodified protocol client, and by plain JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.end_to_end.material import DIGITS, accuracy, image_input
from tests.end_to_end.running import Foldserve
from training.datasets.dataset import Examples
from training.recipe import RECIPES

Images = npt.NDArray[np.float32]
Logits = npt.NDArray[np.floating]
Predict = Callable[[Images], Logits]


@pytest.fixture(scope="module")
def client(service: Foldserve) -> Iterator[triton.InferenceServerClient]:
    opened = triton.InferenceServerClient(service.address)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def output(service: Foldserve) -> str:
    """Name of the one output, from the service itself."""
    (only,) = service.get(f"/v2/models/{DIGITS}").json()["outputs"]
    return str(only["name"])


def by_json(service: Foldserve, images: Images) -> Logits:
    """The request a person would write with nothing but the standard library."""
    answer = service.infer(DIGITS, image_input(images))
    assert answer.status == 200, answer.body
    (logits,) = answer.json()["outputs"]
    return np.asarray(logits["data"], np.float32).reshape(logits["shape"])


def by_triton(client: triton.InferenceServerClient, output: str, images: Images, *, sent: bool, asked: bool) -> Logits:
    """`sent`, `asked`: whether the input travels, and the output is asked for, in binary."""
    tensor = triton.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=sent)
    result = client.infer(DIGITS, [tensor], outputs=[triton.InferRequestedOutput(output, binary_data=asked)])
    logits: Logits = result.as_numpy(output)
    return logits


@pytest.fixture(params=["json", "binary", "binary-in-json-out", "json-in-binary-out", "triton-json"])
def predict(
    request: pytest.FixtureRequest, service: Foldserve, client: triton.InferenceServerClient, output: str
) -> Predict:
    ways: dict[str, Predict] = {
        "json": lambda images: by_json(service, images),
        "binary": lambda images: by_triton(client, output, images, sent=True, asked=True),
        "binary-in-json-out": lambda images: by_triton(client, output, images, sent=True, asked=False),
        "json-in-binary-out": lambda images: by_triton(client, output, images, sent=False, asked=True),
        "triton-json": lambda images: by_triton(client, output, images, sent=False, asked=False),
    }
    return ways[request.param]


def test_at_least_98_percent_of_all_held_out_digits_get_their_label(predict: Predict, held_out: Examples) -> None:
    assert accuracy(predict, held_out) >= 0.98


def test_every_way_of_asking_gives_the_same_bits(
    predict: Predict, service: Foldserve, client: triton.InferenceServerClient, output: str, held_out: Examples
) -> None:
    """JSON carries float32 without loss in both directions, so the form of a request cannot change its answer."""
    images = held_out.sample().only
    reference = by_triton(client, output, images, sent=True, asked=True)
    np.testing.assert_array_equal(predict(images), reference)


def test_client_without_outputs_gets_all_of_them_in_binary(
    client: triton.InferenceServerClient, output: str, held_out: Examples
) -> None:
    """What tritonclient does when nothing is asked for: it sends `binary_data_output: true`."""
    tensor = triton.InferInput("image", [1, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(held_out.only[:1])
    result = client.infer(DIGITS, [tensor], request_id="seven")
    answer = result.get_response()
    assert answer["id"] == "seven"
    assert answer["model_name"] == DIGITS
    assert answer["outputs"][0]["parameters"]["binary_data_size"] == 40
    assert result.as_numpy(output).argmax() == held_out.labels[0]


def test_labels_file_names_the_index_that_the_answer_points_at(
    checkout: Path, held_out: Examples, service: Foldserve
) -> None:
    config = json.loads((checkout / "models" / DIGITS / "config.json").read_text())
    labels = (checkout / "models" / DIGITS / "1" / config["outputs"][0]["labels"]).read_text().splitlines()
    assert labels == [str(digit) for digit in range(10)]
    logits = by_json(service, held_out.only[:20])
    named = [labels[index] for index in logits.argmax(axis=1)]
    assert sum(name == str(label) for name, label in zip(named, held_out.labels[:20], strict=True)) >= 19


def test_many_clients_at_once_each_get_their_own_rows(service: Foldserve, held_out: Examples) -> None:
    """64 requests of 1 to 8 rows from 16 threads: batched together inside, told apart outside.

    A row's answer may differ in its last bits with the batch it ran in, but not by more than that.
    """
    alone = by_json(service, held_out.only[:60])
    slices = [slice(start, start + 1 + start % 8) for start in range(52)] + [slice(0, 1)] * 12
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda rows: by_json(service, held_out.only[rows]), slices))
    for rows, logits in zip(slices, answers, strict=True):
        np.testing.assert_allclose(logits, alone[rows], rtol=1e-4, atol=1e-4)


def test_health_and_metadata_calls_of_tritonclient(client: triton.InferenceServerClient, output: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(DIGITS)
    assert client.is_model_ready(DIGITS, "1")
    assert not client.is_model_ready("no-such-model")
    assert not client.is_model_ready(DIGITS, "999")
    assert client.get_server_metadata()["name"] == "foldserve"
    metadata = client.get_model_metadata(DIGITS)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": output, "datatype": "FP32", "shape": [-1, 10]}]
    assert client.get_model_metadata(DIGITS, "1") == metadata


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/v2/health/live", {"live": True}, id="server-live"),
        pytest.param("/v2/health/ready", {"live": True, "ready": True}, id="server-ready"),
        pytest.param(f"/v2/models/{DIGITS}/ready", {"name": DIGITS, "ready": True}, id="model-ready"),
        pytest.param(f"/v2/models/{DIGITS}/versions/1/ready", {"name": DIGITS, "ready": True}, id="version-ready"),
    ],
)
def test_health_answers_carry_the_json_that_kserves_client_reads(
    path: str, expected: dict[str, object], service: Foldserve
) -> None:
    answer = service.get(path)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert expected.items() <= answer.json().items()


def test_client_shows_the_reason_of_a_refusal(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("image", [1, 8, 8], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 8, 8), np.float32))
    with pytest.raises(InferenceServerException, match=r"image.*\[1, 8, 8\].*\[-1, 1, 8, 8\]") as refusal:
        client.infer(DIGITS, [tensor])
    assert refusal.value.status() == "400"


def test_more_rows_than_max_batch_size_are_refused_with_both_numbers(service: Foldserve) -> None:
    limit = RECIPES[DIGITS].max_batch_size
    answer = service.infer(DIGITS, image_input(np.zeros((limit + 1, 1, 8, 8), np.float32)))
    assert answer.status == 400
    assert str(limit + 1) in answer.json()["error"]
    assert str(limit) in answer.json()["error"]
