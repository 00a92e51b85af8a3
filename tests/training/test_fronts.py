"""What clients send becomes what a body computes with, in torch and in the exported graph alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training import verify
from training.datasets.dataset import Columns, Dataset, Examples, Front, Pixels, Tokens
from training.export import export
from training.features import Features
from training.fronts import Network, build_front, features_of

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)
GREY = RNG.integers(0, 17, (5, 1, 8, 8)).astype(np.float32)
AGES = np.array([[30.0], [np.nan], [41.0], [0.0], [-1.0]], np.float32)
SIZES = RNG.normal(size=(5, 2)).astype(np.float32)
CITY = np.array([[0], [3], [1], [3], [2]], np.int64)
WORDS = RNG.integers(0, 256, (5, 9)).astype(np.uint8)

CASES = {
    "uint8-images-as-cameras-give-them": (
        Pixels((127.5,) * 3, (64.0,) * 3, channels_last=True), {"image": BYTES}, Features("image", (3, 4, 6)),
    ),
    "float-images": (Pixels((0.0,), (16.0,)), {"image": GREY}, Features("image", (1, 8, 8))),
    "numbers-some-missing": (Columns((35.0, 0.0, 0.0)), {"age": AGES, "sizes": SIZES}, Features("row", (3,))),
    "numbers-and-a-category": (Columns((35.0,), (4,)), {"age": AGES, "city": CITY}, Features("row", (3,))),
    "a-category-alone": (Columns((), (4,)), {"city": CITY}, Features("row", (2,))),
    "bytes": (Tokens(256), {"text": WORDS}, Features("tokens", (9,), 256)),
}  # fmt: skip


def computed(front: Front, inputs: dict[str, np.ndarray]) -> torch.Tensor:
    torch.manual_seed(0)
    return build_front(front)(*map(torch.from_numpy, inputs.values()))


@pytest.mark.parametrize("case", CASES)
def test_a_body_is_given_what_the_features_say(case: str) -> None:
    front, inputs, expected = CASES[case]
    examples = Examples(inputs, np.zeros(5, np.int64))
    features = features_of(Dataset((), front, ("a",), examples, examples))
    given = computed(front, inputs)
    assert features == expected
    assert tuple(given.shape) == (5, *features.shape)
    assert given.dtype == (torch.int64 if features.kind == "tokens" else torch.float32)


def test_pixels_are_normalised_by_channel_and_channels_come_first() -> None:
    front = Pixels((10.0, 20.0, 30.0), (1.0, 2.0, 4.0), channels_last=True)
    given = computed(front, {"image": BYTES}).numpy()
    expected = (BYTES.astype(np.float64) - [10.0, 20.0, 30.0]) / [1.0, 2.0, 4.0]
    np.testing.assert_allclose(given, expected.transpose(0, 3, 1, 2), rtol=1e-6, atol=1e-5)


def test_what_is_missing_is_filled_by_column() -> None:
    given = computed(Columns((35.0, 0.0, 0.0)), {"age": AGES, "sizes": SIZES})
    assert given[:, 0].tolist() == [30.0, 35.0, 41.0, 0.0, -1.0]
    assert torch.equal(given[:, 1:], torch.from_numpy(SIZES))


def test_equal_categories_have_equal_vectors() -> None:
    given = computed(Columns((35.0,), (4,)), {"age": AGES, "city": CITY})[:, 1:]
    assert torch.equal(given[1], given[3])
    assert not torch.equal(given[0], given[1])


class Sum(nn.Module):
    """A body for all of them."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(torch.float32).flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("case", CASES)
def test_it_is_part_of_the_exported_graph(case: str) -> None:
    front, inputs, _ = CASES[case]
    torch.manual_seed(0)
    network = Network(build_front(front), Sum()).eval()
    examples = {name: torch.from_numpy(values[:2]) for name, values in inputs.items()}
    graph = export(network, examples, ["sum"])
    with torch.no_grad():
        expected = network(*map(torch.from_numpy, inputs.values())).numpy()
    np.testing.assert_allclose(verify.run(graph, inputs)["sum"], expected, rtol=1e-5, atol=1e-5)
