"""What a client sends with a load in place of what lies on disk: read, checked, and put in its place.

    {"config": "{...}"}            a whole configuration, as JSON in a string: Triton's, or one in config.json's form
    {"traffic": {...},             these parts of config.json alone; the rest is as `config` says, or else as on disk
     "version_policy": {...}}

They hold until the next load. Knows neither HTTP nor which versions there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from service.assignment import LoadParameters
from service.errors import MalformedRequest, ModelRejected
from service.model_knobs import Schema, TrafficConfig, VersionPolicy
from service.repository import ModelConfig
from service.schema_errors import first_problem, repeated_keys
from service.triton_json import configuration_tree, read_configuration
from service.triton_keys import KEYS

# Both forms have `name` and others; who says one of these means config.json's.
_OWN_KEYS = frozenset(ModelConfig.model_fields) - KEYS.keys()


class Parts(Schema):
    """What of config.json may stand by itself. Absent: it stays as it is."""

    version_policy: VersionPolicy | None = None
    traffic: TrafficConfig | None = None


@dataclass(frozen=True, slots=True)
class Overrides:
    """`config` None: as on disk."""

    config: ModelConfig | None
    parts: Parts

    def apply(self, on_disk: Callable[[], ModelConfig]) -> ModelConfig:
        """What to load with; `on_disk` reads it there, if need be. Raises ModelRejected, and what `on_disk` raises."""
        config = self.config or on_disk()
        parts = {name: part for name, part in self.parts if part is not None}
        try:
            return config.with_parts(parts) if parts else config
        except ValueError as error:
            raise ModelRejected(f"the request's parameters: {error}") from error

    @property
    def asks_for_a_trial(self) -> bool:
        """Whether requests are to be shared because the client has said so, not the disk."""
        traffic = self.parts.traffic or (self.config.traffic if self.config else TrafficConfig())
        return bool(traffic.canary or traffic.shadow)


NO_OVERRIDES = Overrides(None, Parts())


def read_overrides(parameters: LoadParameters | None, name: str, providers: Sequence[str]) -> Overrides:
    """What `parameters` say, for the model called `name`. Raises MalformedRequest and ModelRejected."""
    parameters = dict(parameters or {})
    text = parameters.pop("config", None)
    config = None if text is None else _read_config(text, name, providers)
    try:
        return Overrides(config, Parts.model_validate_json(_spelt(parameters)))
    except ValidationError as error:
        raise MalformedRequest(
            f"the request's parameters: {first_problem(error, Parts, whole='what they hold')}"
        ) from error


def _read_config(text: str, name: str, providers: Sequence[str]) -> ModelConfig:
    tree = configuration_tree(text)
    if not _is_own_form(tree):
        return read_configuration(text, name, providers)
    try:
        config = ModelConfig.from_load_call(_spelt({"name": name, **tree}))
    except ValidationError as error:
        raise ModelRejected(f"the configuration: {first_problem(error, ModelConfig, whole='it')}") from error
    if repeated := repeated_keys(text.encode()):
        raise ModelRejected(f"the configuration: {repeated[0]} is given more than once in one object; keep one of them")
    if config.name != name:
        raise ModelRejected(f"the configuration: name is {config.name!r}, but the model is {name!r}; make them agree")
    return config


def _is_own_form(tree: dict[str, Any]) -> bool:
    """Both call the version policies alike, but Triton's are objects."""
    policy = tree.get("version_policy")
    policies = policy.values() if isinstance(policy, dict) else ()
    return not _OWN_KEYS.isdisjoint(tree) or any(not isinstance(one, dict) for one in policies)


def _spelt(tree: dict[str, Any]) -> bytes:
    """As a file would have it: what is strict about kinds reads JSON, not Python's values."""
    try:
        return json.dumps(tree).encode("ascii")
    except RecursionError:
        raise MalformedRequest("the request's parameters are nested too deeply") from None
