"""Does the installed uvicorn have what connection.py and http_lane.py rely on beyond its documented interface?

The pinned version does. Another one is asked at start-up, and where the answer is no, requests take uvicorn's own
protocol and the ASGI route. Compares names: what they mean is for the tests to show.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_METHODS = (
    "connection_made",
    "connection_lost",
    "data_received",
    "eof_received",
    "on_message_begin",
    "on_url",
    "on_header",
    "on_headers_complete",
    "on_body",
    "on_message_complete",
    "on_response_complete",
    "pause_writing",
    "resume_writing",
    "shutdown",
    "_start_asgi_task",
    "_unset_keepalive_if_required",
)
_ATTRIBUTES = (
    "config",
    "loop",
    "parser",
    "server_state",
    "transport",
    "flow",
    "pipeline",
    "url",
    "headers",
    "cycle",
    "timeout_keep_alive",
)
_OF_A_CYCLE = (
    "disconnected",
    "message_event",
    "response_started",
    "response_complete",
    "keep_alive",
    "transport",
    "waiting_for_100_continue",
)


def why_unfit(protocol: type = HttpToolsProtocol, cycle: type = RequestResponseCycle) -> str:
    """What uvicorn's classes for a connection and for a request lack; empty when nothing."""
    missing = [name for name in _METHODS if not callable(getattr(protocol, name, None))]
    told = _lacks(protocol, [*missing, *_unset(protocol, _ATTRIBUTES)])
    return told or _lacks(cycle, _unset(cycle, _OF_A_CYCLE))


def _unset(owner: type, attributes: tuple[str, ...]) -> list[str]:
    """Those that its methods never mention: instances are not to be had without a socket."""
    codes = [code for method in vars(owner).values() if (code := getattr(method, "__code__", None)) is not None]
    mentioned = {name for code in codes for name in code.co_names}
    return [name for name in attributes if name not in mentioned]


def _lacks(owner: type, missing: list[str]) -> str:
    return f"uvicorn's {owner.__name__} has no {', '.join(missing)}" if missing else ""
