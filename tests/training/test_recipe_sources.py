"""What is said of a recipe, and where: the later place wins, and a mistake is told by the place where it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.presets import PRESETS
from training.recipe import RECIPES, RecipeError
from training.recipe_sources import Asked, ask, merged

YAML = """
name: mine
data:
  source: digits
  test_fraction: 0.25
architecture:
  options: {widths: [4, 4, 4, 4, 4, 4]}
optimiser:
  learning_rate: 1e-2
  average: null
"""
COMPLETE = {
    "name": "n", "description": "", "architecture": {"family": "cnn6"}, "optimiser": {"learning_rate": 0.5},
    "epochs": 7, "batch_size": 8,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "my.yaml").write_text(YAML)
    return str(tmp_path / "my.yaml")


def rate(asked: Asked) -> float:
    return asked.recipe(COMPLETE).optimiser.learning_rate


def test_each_place_wins_over_those_before_it(file: str) -> None:
    environment = {"FOLDTRAIN_OPTIMISER__LEARNING_RATE": "0.03", "HOME": "/"}
    override = "optimiser.learning_rate=0.04"

    assert rate(ask("digits:all", preset="cnn6")) == 0.5
    assert rate(ask(file)) == 0.01
    assert rate(ask(file, environment=environment)) == 0.03
    assert rate(ask(file, environment=environment, overrides=[override])) == 0.04


def test_a_preset_lies_over_a_shipped_recipe_and_below_everything_that_is_said() -> None:
    recipe = ask("digits", preset="cnn6", overrides=["batch_size=32"]).recipe({})

    assert (recipe.architecture.preset, recipe.batch_size) == ("cnn6", 32)
    assert recipe.data == RECIPES["digits"].data


def test_a_file_says_nothing_of_what_it_does_not_name(file: str) -> None:
    recipe = ask(file).recipe(COMPLETE)

    assert (recipe.name, recipe.epochs, recipe.data.test_fraction) == ("mine", 7, 0.25)
    assert recipe.architecture.options == {"widths": [4, 4, 4, 4, 4, 4]}


def test_another_network_takes_none_of_the_options_before_it() -> None:
    below = {"architecture": {"preset": "cnn6", "family": "cnn6", "options": {"widths": [1]}, "eps": 0.1}}

    assert merged([below, {"architecture": {"model": "timm:x"}}])["architecture"] == {"model": "timm:x", "eps": 0.1}
    assert merged([below, {"architecture": {"options": {"a": 2}}}])["architecture"]["options"] == {
        "widths": [1],
        "a": 2,
    }


def test_options_of_a_family_take_the_type_they_are_written_in() -> None:
    overrides = ["architecture.options.depth=3", "architecture.options.wide=true", "architecture.options.pool=max"]

    assert ask("digits", overrides=overrides).said["architecture"]["options"] == {
        "depth": 3, "wide": True, "pool": "max",
    }  # fmt: skip


def test_auto_asks_for_a_rate_to_be_found() -> None:
    assert ask("digits", overrides=["optimiser.learning_rate=auto"]).finds_rate
    assert not ask("digits").finds_rate


@pytest.mark.parametrize(
    ("spec", "environment", "told"),
    [
        ("unicorns", {}, f"unknown recipe 'unicorns'; known are {', '.join(RECIPES)}; else name a file.yaml, or data"),
        ("absent.yaml", {}, "absent.yaml: cannot be read: No such file or directory"),
        ("digits", {"FOLDTRAIN_EPOCH": "3"}, "FOLDTRAIN_EPOCH: unknown key 'epoch'; known here are name,"),
        ("digits", {"FOLDTRAIN_EPOCHS": "x"}, "FOLDTRAIN_EPOCHS: Input should be a valid integer"),
        ("digits", {"FOLDTRAIN_CHOSEN": "x"}, "FOLDTRAIN_CHOSEN: unknown key 'chosen'"),
        ("digits", {"FOLDTRAIN_ARCHITECTURE__PRESET": "x"}, f"not a known preset; known are {', '.join(PRESETS)}"),
        ("digits", {"FOLDTRAIN_ARCHITECTURE__MODEL": "resnet"}, "'resnet': expected timm:NAME"),
        ("digits", {"FOLDTRAIN_STATISTICS": "running", "FOLDTRAIN_OPTIMISER__AVERAGE": "0.9"}, "statistics of its own"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(spec: str, environment: dict[str, str], told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        ask(spec, environment=environment)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data: {sources: digits}", "data.sources: unknown key 'sources'; known here are source, target"),
        ("data: digits", "data: this is a group of settings; set one of data.source"),
        ("epochs: 3", "data.source: Field required"),
        ("data: {source: mnist}", "data.source: 'mnist' is not a known data source; known are"),
        ("data: {source: digits}\nbatch_size: 1", "batch_size: Input should be greater than or equal to 2"),
        ("a: [", "is no YAML (line "),
        ("data: {source: digits}\nepochs: 3\nepochs: 4", "line 3: 'epochs' is there twice; leave one of them"),
        ("data:\n  source: digits\n  source: digits", "line 3: 'source' is there twice"),
        ("- 3", "expected keys and values, as in 'epochs: 10'; found list"),
        ("", "data.source: Field required"),
    ],
)
def test_a_mistake_in_a_file_begins_with_its_name(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        ask(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
