"""What a user says of a recipe, and where: SPEC, preset, YAML file, environment, `--set`; the later in this list wins.

    digits                  a shipped recipe
    my.yaml                 a file with the keys of `Recipe`
    sklearn:digits          data; recipe_defaults.py chooses what nobody says, once the data are there
    FOLDTRAIN_OPTIMISER__LEARNING_RATE=0.05
    --set optimiser.learning_rate=0.05

A mistake is one line that begins with the place where it was made. Importable without torch.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from training.datasets import SOURCES
from training.presets import PRESETS, Preset
from training.recipe import RECIPES, Data, Recipe, RecipeError

PREFIX = "FOLDTRAIN_"
FILES = (".yaml", ".yml")
AUTO = "auto"
_NOT_SETTABLE = "chosen"
_LONGEST = 80
_STAND_INS: Mapping[str, Any] = {
    "name": "", "description": "", "data": {}, "architecture": {"family": "cnn6"}, "optimiser": {"learning_rate": 1.0},
    "epochs": 1, "batch_size": 2,
}  # fmt: skip
"""For what is chosen from the data, so that everything else can be checked before they are read."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said, as nested plain values; places: dotted key -> where it was said.

    base: of a shipped recipe, else empty. finds_rate: the learning rate is to be found before the run.
    """

    spec: str
    base: Mapping[str, Any]
    said: Mapping[str, Any]
    places: Mapping[str, str]
    finds_rate: bool = False

    def data(self) -> Data:
        """Where they come from and how they are read: nothing of that is chosen."""
        return self.recipe(_STAND_INS).data

    @property
    def name(self) -> str | None:
        """Of the model; None where it is still to be chosen."""
        name = self.said.get("name", self.base.get("name"))
        return name if isinstance(name, str) else None

    @property
    def preset(self) -> Preset | None:
        """That was named."""
        name = self.said.get("architecture", {}).get("preset")
        return None if name is None else PRESETS[name]

    def recipe(self, defaults: Mapping[str, Any]) -> Recipe:
        """With `defaults` for what nobody said. Raises RecipeError."""
        layers = [defaults, self.base]
        if self.preset is not None and self.base:
            layers.append(preset_values(self.said["architecture"]["preset"], self.preset))
        try:
            return Recipe.model_validate(merged([*layers, self.said]))
        except ValidationError as error:
            raise RecipeError(self._told(error)) from None

    def check(self) -> None:
        """As far as it can be told without data. Raises RecipeError."""
        self.recipe(_STAND_INS)

    def says(self, key: str) -> bool:
        """Was the dotted key set by anybody?"""
        return key in self.places

    def _told(self, error: ValidationError) -> str:
        first = error.errors(include_url=False)[0]
        path = [str(part) for part in first["loc"]]
        message = first["msg"].removeprefix("Value error, ")
        for length in range(len(path), 0, -1):
            if place := self.places.get(".".join(path[:length])):
                return f"{place}: {message}"
        return f"{self.spec}: {'.'.join(path)}: {message}" if path else f"{self.spec}: {message}"


def ask(
    spec: str,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = types.MappingProxyType({}),
    finds_rate: bool = False,
) -> Asked:
    """Everything that is said, checked as far as it can be without data. Raises RecipeError."""
    base: Mapping[str, Any] = {}
    said: dict[str, Any] = {}
    places: dict[str, str] = {}
    if spec in RECIPES:
        base = RECIPES[spec].model_dump()
    elif spec.endswith(FILES):
        for path, value in _leaves(_read(Path(spec)), Recipe, ()):
            _put(said, places, path, value, f"{spec}: {'.'.join(path)}")
    elif spec.partition(":")[0] in SOURCES:
        _put(said, places, ["data", "source"], spec, spec)
    else:
        known = ", ".join(RECIPES)
        raise RecipeError(
            f"unknown recipe {spec!r}; known are {known}; else name a file.yaml, or data by their kind: "
            f"{', '.join(SOURCES)}"
        )
    for name in sorted(environment):
        if name.startswith(PREFIX):
            key = name.removeprefix(PREFIX).lower().split("__")
            _put(said, places, key, _value(environment[name], name), name)
    if preset is not None:
        _put(said, places, ["architecture", "preset"], preset, f"--preset {preset}")
    for override in overrides:
        name, equals, text = override.partition("=")
        place = f"--set {_short(override)}"
        if not equals:
            raise RecipeError(f"{place}: expected KEY=VALUE, as in --set epochs=10")
        _put(said, places, name.split("."), _value(text, place), place)
    if said.get("optimiser", {}).get("learning_rate") == AUTO:
        finds_rate = True
        del said["optimiser"]["learning_rate"], places["optimiser.learning_rate"]
    _check_preset(said, places)
    asked = Asked(spec, base, said, places, finds_rate)
    asked.check()
    return asked


def find_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The shipped recipe `name`, with `overrides` ("optimiser.learning_rate=0.05") applied from left to right.

    Raises RecipeError with one line that names what was given and what is known.
    """
    if name not in RECIPES:
        raise RecipeError(f"unknown recipe {name!r}; known are {', '.join(RECIPES)}")
    return ask(name, overrides=overrides).recipe({})


def preset_values(name: str, preset: Preset) -> dict[str, Any]:
    """As a layer of a recipe."""
    return {
        "architecture": {
            "preset": name,
            "family": preset.family,
            "options": json.loads(json.dumps(dict(preset.options))),  # as a recipe that is read back has them
        },
        "optimiser": {
            "kind": preset.optimiser, "learning_rate": preset.learning_rate, "weight_decay": preset.weight_decay,
        },
        "epochs": preset.epochs,
        "batch_size": preset.batch_size,
    }  # fmt: skip


def merged(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The later ones over the earlier ones, group by group. Another network takes no options of the one before."""
    result: dict[str, Any] = {}
    for layer in layers:
        network = {"model", "family", "preset"} & layer.get("architecture", {}).keys()
        if network:
            kept = result.get("architecture", {})
            if "family" in network and kept.get("family") == layer["architecture"]["family"]:
                network = set()
            unfit = ("preset", "family", "options", "model") if network & {"model", "family"} else ()
            result["architecture"] = {key: value for key, value in kept.items() if key not in unfit}
        result = _over(result, layer)
    return result


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if both else value
    return result


# --- keys ---------------------------------------------------------------------------------------------------------


def _put(said: dict[str, Any], places: dict[str, str], path: Sequence[str], value: object, place: str) -> None:
    schema: type[BaseModel] = Recipe
    values = said
    for depth, name in enumerate(path):
        fields = {key: field for key, field in schema.model_fields.items() if key != _NOT_SETTABLE}
        if name not in fields:
            raise RecipeError(f"{place}: unknown key {name!r}; known here are {', '.join(fields)}")
        rest, kind = path[depth + 1 :], fields[name].annotation
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            if not rest:
                inner = ", ".join(".".join([*path, field]) for field in kind.model_fields)
                raise RecipeError(f"{place}: this is a group of settings; set one of {inner}")
            schema, values = kind, values.setdefault(name, {})
            continue
        if rest and name == "options" and len(rest) == 1:
            values.setdefault(name, {})[rest[0]] = _plain(value)
        elif rest:
            raise RecipeError(f"{place}: {name!r} is a single value and has no {'.'.join(rest)!r}")
        else:
            values[name] = value
        places[".".join(path)] = place
        return


def _leaves(
    values: Mapping[Any, Any], schema: type[BaseModel], above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], object]]:
    """(path, value) of each setting in a file."""
    for key, value in values.items():
        field = schema.model_fields.get(str(key))
        kind = field.annotation if field is not None else None
        path = (*above, str(key))
        if inspect.isclass(kind) and issubclass(kind, BaseModel) and isinstance(value, Mapping):
            yield from _leaves(value, kind, path)
        else:
            yield path, value


def _check_preset(said: Mapping[str, Any], places: Mapping[str, str]) -> None:
    name = said.get("architecture", {}).get("preset")
    if name is not None and name not in PRESETS:
        raise RecipeError(
            f"{places['architecture.preset']}: {name!r} is not a known preset; known are {', '.join(PRESETS)}"
        )


# --- texts --------------------------------------------------------------------------------------------------------


def _value(text: str, place: str) -> object:
    """Lists and mappings are written as JSON, nothing as null; everything else stays text, which pydantic turns into
    the field's own type."""
    if text == "null":
        return None
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError(f"{place}: begins like JSON, and is none; lists are written as in [16,32]") from None


def _plain(value: object) -> object:
    """Of a family's option, whose type no schema tells: numbers, true and false as in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read(path: Path) -> Mapping[Any, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        _require_one_of_each(path, yaml.compose(text, Loader=yaml.SafeLoader))
        found = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark is not None else ""
        raise RecipeError(f"{path}: is no YAML{place}: {getattr(error, 'problem', None) or error}") from None
    if found is not None and not isinstance(found, Mapping):
        raise RecipeError(f"{path}: expected keys and values, as in 'epochs: 10'; found {type(found).__name__}")
    return found or {}


def _require_one_of_each(path: Path, node: Any) -> None:
    """YAML's reader takes the last of several values in silence. node: what YAML's composer gives."""
    seen: set[str] = set()
    for key, value in node.value if node is not None and node.id == "mapping" else ():
        if key.id == "scalar" and key.value in seen:
            raise RecipeError(
                f"{path}: line {key.start_mark.line + 1}: {key.value!r} is there twice; leave one of them"
            )
        if key.id == "scalar":
            seen.add(key.value)
        _require_one_of_each(path, value)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
