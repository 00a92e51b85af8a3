"""Which versions a load is about, found on disk or refused with words: for clients, without the server's folders.

Waits for the disk, so it runs in a thread. Knows no states: what served before is the registry's affair.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.assignment import LoadParameters
from service.discovery import Found, discover_model
from service.errors import LoadFailed, ModelRejected, NotFound, quoted
from service.loader import without_folder
from service.overrides import Overrides, read_overrides
from service.settings import Settings
from service.traffic import why_no_trial


def overrides_of(settings: Settings, name: str, parameters: LoadParameters | None) -> Overrides:
    """What a client has sent with its load. Raises MalformedRequest and LoadFailed."""
    try:
        return read_overrides(parameters, name, settings.providers)
    except ModelRejected as error:
        raise _refusal(settings, name, str(error)) from error


def find_versions(
    settings: Settings, name: str, overrides: Overrides, numbers: frozenset[int] | None
) -> Sequence[Found]:
    """The versions of `name` that are to be loaded, at least one. Raises NotFound and LoadFailed."""
    try:
        found = discover_model(settings, name, overrides, numbers)
    except (ModelRejected, OSError) as error:
        raise _refusal(settings, name, str(error)) from error
    if not found:
        raise NotFound(f"there is no model {quoted(name)} in the repository")
    reasons = [one.reason for one in found if one.reason]
    if not reasons and numbers is None and overrides.asks_for_a_trial:
        reasons = _why_no_trial(found)
    if reasons:
        raise _refusal(settings, name, "; ".join(reasons))
    return found


def _refusal(settings: Settings, name: str, reason: str) -> LoadFailed:
    return LoadFailed(f"model {quoted(name)} cannot be loaded: {without_folder(settings, reason)}")


def _why_no_trial(found: Sequence[Found]) -> list[str]:
    """At most one reason, before anything is loaded."""
    config = found[0].config
    assert config is not None
    reason = why_no_trial([one.version.version for one in found if one.version], config)
    return [reason] if reason else []
