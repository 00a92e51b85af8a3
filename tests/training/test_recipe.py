"""Recipes: shipped values, typed overrides, and one clear line for everything that does not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from training.errors import UserError
from training.recipe import RECIPES, Recipe
from training.recipe_sources import find_recipe


def test_the_table_is_keyed_by_the_recipes_own_names() -> None:
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_digits_is_shipped_and_asks_for_98_percent_and_no_batchnorm() -> None:
    recipe = find_recipe("digits")

    assert (recipe.minimum_test_accuracy, recipe.batchnorms_left) == (0.98, 0)
    assert recipe.optimiser.learning_rate == 0.1


def test_a_recipe_is_frozen_and_takes_no_unknown_field() -> None:
    recipe = find_recipe("digits")

    with pytest.raises(ValidationError):
        recipe.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Recipe.model_validate(recipe.model_dump() | {"epoch": 3})


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        pytest.param("epochs=3", lambda recipe: recipe.epochs, 3, id="integer"),
        pytest.param("optimiser.learning_rate=1e-2", lambda recipe: recipe.optimiser.learning_rate, 0.01, id="float"),
        pytest.param(
            "architecture.options.widths=[1,2,3,4,5,6]",
            lambda r: r.architecture.options["widths"],
            [1, 2, 3, 4, 5, 6],
            id="list",
        ),
        pytest.param("name=2", lambda recipe: recipe.name, "2", id="text stays text"),
        pytest.param("description=a=b", lambda recipe: recipe.description, "a=b", id="only the first = separates"),
        pytest.param("description=", lambda recipe: recipe.description, "", id="empty text"),
    ],
)
def test_an_override_takes_the_type_of_its_field(override, read, expected) -> None:
    value = read(find_recipe("digits", [override]))

    assert (value, type(value)) == (expected, type(expected))


def test_overrides_apply_from_left_to_right_and_leave_the_shipped_recipe_alone() -> None:
    before = RECIPES["digits"].epochs

    assert find_recipe("digits", ["epochs=3", "seed=7", "epochs=5"]).epochs == 5
    assert RECIPES["digits"].epochs == before


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        pytest.param("epochs", ["expected KEY=VALUE"], id="no value"),
        pytest.param("epoch=3", ["unknown key 'epoch'", "epochs", "batch_size"], id="unknown key"),
        pytest.param("optimiser.lr=3", ["unknown key 'lr'", "learning_rate", "weight_decay"], id="unknown inner key"),
        pytest.param("optimiser=3", ["group of settings", "optimiser.learning_rate"], id="a whole group"),
        pytest.param("epochs.first=3", ["'epochs' is a single value"], id="below a single value"),
        pytest.param("=3", ["unknown key ''"], id="empty key"),
        pytest.param("a..b=3", ["unknown key 'a'"], id="dots"),
        pytest.param("epochs=many", ["valid integer"], id="not an integer"),
        pytest.param("epochs=0", ["greater than or equal to 1"], id="out of range"),
        pytest.param("batch_size=1", ["greater than or equal to 2"], id="a batch of one has no variance"),
        pytest.param("optimiser.learning_rate=nan", ["finite number"], id="nan"),
        pytest.param("optimiser.learning_rate=1e300", ["less than or equal to"], id="beyond float32"),
        pytest.param("data.source=mnist", ["'mnist' is not a known data source", "digits"], id="unknown data"),
        pytest.param("architecture.family=vgg", ["not a known architecture family", "cnn6"], id="unknown family"),
        pytest.param("architecture.options.widths=[1,", ["begins like JSON, and is none"], id="broken list"),
        pytest.param("architecture.options.widths=" + "[" * 100_000, ["begins like JSON, and is none"], id="deep list"),
    ],
)
def test_a_bad_override_is_refused_in_one_line_that_names_it(override, fragments) -> None:
    with pytest.raises(UserError) as caught:
        find_recipe("digits", [override])

    text = str(caught.value)
    assert text.startswith("--set ")
    assert "\n" not in text
    assert [fragment for fragment in fragments if fragment not in text] == []


def test_an_unknown_recipe_is_refused_with_the_known_names() -> None:
    with pytest.raises(UserError, match="unknown recipe 'digit'; known are digits"):
        find_recipe("digit")


def test_importing_recipes_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, training.recipe; print(sorted({'torch', 'numpy', 'sklearn', 'onnx_ir'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
