"""What nobody said: chosen from the kind and number of the data and the machine, each with its reason."""

from __future__ import annotations

import pytest

from training import recipe_defaults
from training.presets import Preset
from training.recipe import Recipe, RecipeError
from training.recipe_defaults import Facts, complete
from training.recipe_sources import ask

PLENTY = Facts("image", "classify", rows=100_000)
FEW = Facts("image", "classify", rows=120)
PRESETS = {
    "rows": Preset("mlp", "row", optimiser="adamw", learning_rate=1e-3, reason="columns are few"),
    "mlp-in": Preset("mlp", "row", reason="columns as they come"),
    "cnn6": Preset("cnn6", "image", options={"widths": (8,) * 6}, epochs=10, reason="pixels are many"),
    "resnet8": Preset("resnet", "image", reason="any size"),
}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_defaults, "PRESETS", PRESETS)


def chosen(facts: Facts, *overrides: str) -> Recipe:
    return complete(ask("digits:all", overrides=overrides), facts)


def test_the_kind_of_the_data_chooses_the_preset_and_it_the_rest() -> None:
    recipe = chosen(PLENTY)

    assert (recipe.name, recipe.architecture.preset, recipe.architecture.family) == ("all", "cnn6", "cnn6")
    assert recipe.architecture.options == {"widths": [8] * 6}
    assert (recipe.epochs, recipe.batch_size, recipe.optimiser.kind, recipe.optimiser.learning_rate) == (
        10, 64, "sgd", 0.1,
    )  # fmt: skip
    assert recipe.chosen["epochs"] == "preset cnn6, for images: pixels are many"
    assert recipe.minimum_test_accuracy == 0.0


def test_some_data_are_better_served_by_another_than_the_first_that_fits() -> None:
    def preset(facts: Facts) -> str:
        layer, _ = recipe_defaults._of_network(ask("digits:all"), facts)
        return str(layer["architecture"]["preset"])

    assert preset(Facts("row", "classify", 999)) == "mlp-in"
    assert preset(Facts("image", "classify", 999, shape=(3, 16, 16))) == "cnn6"
    assert preset(Facts("image", "classify", 999, shape=(3, 48, 32))) == "resnet8"


def test_every_choice_has_a_reason_and_nothing_that_was_said_has_one() -> None:
    recipe = chosen(PLENTY, "epochs=3", "device=cpu")

    assert {"name", "architecture.preset", "batch_size", "optimiser.learning_rate", "precision"} <= {*recipe.chosen}
    assert not {"epochs", "device", "data.source"} & {*recipe.chosen}
    assert all(recipe.chosen.values())


def test_few_rows_are_seen_more_often_in_smaller_batches_at_a_lower_rate() -> None:
    recipe = chosen(FEW)

    assert (recipe.batch_size, recipe.epochs, recipe.optimiser.learning_rate) == (16, 86, 0.025)
    assert recipe.chosen["epochs"] == "120 rows are 7 steps an epoch, and 600 steps are wanted"
    assert recipe.chosen["optimiser.learning_rate"] == "0.1 for batches of 64, scaled to 16"


def test_another_optimiser_than_the_presets_has_a_rate_of_its_own() -> None:
    recipe = chosen(PLENTY, "optimiser.kind=adamw")

    assert (recipe.optimiser.learning_rate, recipe.optimiser.weight_decay) == (1e-3, 0.01)
    assert recipe.chosen["optimiser.learning_rate"] == "usual for adamw"


def test_a_model_of_anybodys_needs_no_preset() -> None:
    recipe = chosen(PLENTY, "architecture.model=timm:resnet18")

    assert (recipe.architecture.family, recipe.architecture.preset) == (None, None)
    assert recipe.optimiser.kind == "adamw"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts("image", "classify", 999), ("cpu", "float32")),
        (Facts("image", "classify", 999, cuda=True), ("cuda", "float32")),
        (Facts("image", "classify", 999, cuda=True, bfloat16=True), ("cuda", "bfloat16")),
    ],
    ids=["no GPU", "an old one", "a new one"],
)
def test_the_machine_chooses_device_and_precision(facts: Facts, expected: tuple[str, str]) -> None:
    recipe = chosen(facts)

    assert (recipe.device, recipe.precision) == expected


def test_a_cpu_that_was_asked_for_computes_as_a_cpu() -> None:
    recipe = chosen(Facts("image", "classify", 999, cuda=True, bfloat16=True), "device=cpu")

    assert (recipe.device, recipe.precision) == ("cpu", "float32")


def test_data_that_no_preset_is_for_are_told() -> None:
    with pytest.raises(RecipeError, match="presets that segment images: none; name a network: --set architecture"):
        chosen(Facts("image", "segment", 999))


def test_a_preset_for_other_data_is_refused_with_those_that_fit() -> None:
    with pytest.raises(RecipeError, match="is there to classify images; the task of digits:all is to classify rows"):
        chosen(Facts("row", "classify", 999), "architecture.preset=cnn6")


@pytest.mark.parametrize(
    ("source", "name"),
    [("digits", "digits"), ("digits:my data/churn.v2.csv", "churn"), ("digits:photos/", "photos")],
)
def test_a_model_is_named_after_its_data(source: str, name: str) -> None:
    assert complete(ask(source), PLENTY).name == name


@pytest.mark.parametrize(
    ("classes", "told"),
    [(("no", "yes"), "churn: which of no, yes is it?"), (("a",) * 11, "churn: which of 11 classes is it?")],
    ids=["few", "many"],
)
def test_a_description_is_for_clients_and_names_no_path(classes: tuple[str, ...], told: str) -> None:
    facts = Facts("image", "classify", 999, classes=classes)

    assert complete(ask("digits:secret/churn.csv"), facts).description == told


def test_a_shipped_recipe_is_complete() -> None:
    assert complete(ask("digits"), FEW).chosen == {}
