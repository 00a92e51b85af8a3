"""Triton's model configuration as JSON, as load's parameter `config` brings it: one reading for both spellings.

The JSON is rewritten as the text of a config.pbtxt and read as such (triton_config.py), so that the same keys are
taken, warned about and refused. What differs between the two (Protocol Buffers, "ProtoJSON Format"): names may be in
camel case, enums and large numbers are strings, a map is an object, null is the default. Knows neither files nor HTTP.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from service.errors import MalformedRequest, ModelRejected, quoted
from service.json_tensors import kind_of, parse_json
from service.repository import LOAD_CALL, ModelConfig
from service.schema_errors import first_problem
from service.triton_config import translate
from service.triton_keys import KEYS

log = logging.getLogger(__name__)

_MAPS = frozenset({"cc_model_filenames", "metric_tags", "parameters", "dynamic_batching.priority_queue_policy"})
_INTEGER_TYPES = frozenset({"int32", "int64", "uint32", "uint64"})
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"-?[0-9]{1,20}")
# Places in a text that its sender has never seen.
_PLACE = re.compile(r"^line \d+, column \d+: ")
# Triton's own schema is half as deep.
_MAX_DEPTH = 16


def read_configuration(text: str, name: str, providers: Sequence[str]) -> ModelConfig:
    """What `text` says, for the model called `name`; warnings go to the log.

    Raises MalformedRequest when it is no JSON object, ModelRejected, naming the key, when it cannot be served.
    """
    tree = configuration_tree(text)
    try:
        translation = translate("\n".join(_fields(tree, "", 0)).encode("ascii"), name, providers)
        config = ModelConfig.from_triton(translation, LOAD_CALL)
    except ModelRejected as error:
        raise ModelRejected(f"the configuration: {_PLACE.sub('', str(error))}") from error
    except ValidationError as error:
        problem = first_problem(error, ModelConfig, lambda place: _PLACE.sub("", translation.spell(place)))
        raise ModelRejected(f"the configuration: {problem}") from error
    if config.name != name:
        raise ModelRejected(f"the configuration: name is {config.name!r}, but the model is {name!r}; make them agree")
    for warning in translation.warnings:
        log.warning("%s, loaded with a configuration of the request: %s", name, _PLACE.sub("", warning))
    return config


def configuration_tree(text: str) -> dict[str, Any]:
    """The JSON object in `text`, whatever it says. Raises MalformedRequest."""
    try:
        tree = parse_json(memoryview(text.encode("utf-8")))
    except MalformedRequest as error:
        raise MalformedRequest("the configuration is not JSON in a string") from error
    if type(tree) is not dict:
        raise MalformedRequest(f"the configuration is {kind_of(tree)}, expected an object, as JSON in a string")
    return tree


def _fields(tree: dict[str, Any], prefix: str, depth: int) -> Iterator[str]:
    """Lines of the text form."""
    if depth > _MAX_DEPTH:
        raise MalformedRequest("the configuration is nested too deeply")
    for key, value in tree.items():
        name = key if prefix + key in KEYS else re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", key)
        if not _WORD.fullmatch(name):
            raise MalformedRequest(f"the configuration: {quoted(prefix + key)} is no key of Triton's configuration")
        path = prefix + name
        if path in _MAPS and type(value) is dict:
            values = [{"key": key, "value": one} for key, one in value.items()]
        else:
            values = value if type(value) is list else [] if value is None else [value]
        for one in values:
            yield from _field(name, one, path, depth)
        if value == [] and path in KEYS and KEYS[path].repeated:
            yield f"{name}: []"


def _field(name: str, value: Any, path: str, depth: int) -> Iterator[str]:
    if type(value) is dict:
        yield f"{name} {{"
        yield from _fields(value, f"{path}.", depth + 1)
        yield "}"
    else:
        yield f"{name}: {_scalar(value, path)}"


def _scalar(value: Any, path: str) -> str:
    kind = KEYS[path].type if path in KEYS else None
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() if (isinstance(kind, tuple) and _WORD.fullmatch(value)) or (
            kind in _INTEGER_TYPES and _NUMBER.fullmatch(value)
        ):
            return value
        case str():
            return '"' + "".join(f"\\{byte:03o}" for byte in value.encode("utf-8")) + '"'
    raise MalformedRequest(f"the configuration: {path} holds {kind_of(value)}, where no such value can stand")
