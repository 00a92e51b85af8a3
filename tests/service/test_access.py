"""Who may ask for what, as a table; and every route of the application has its row on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.routing import Route

from service.access import Guard, is_local, needed_scope
from service.api_keys import KeyFile, Scope
from service.app import build_app
from service.errors import Forbidden, Unauthenticated
from service.settings import Settings
from tests.service.fakes import fake_registry

KEYS = {"infer": "infer-key-0123456789", "control": "control-key-0123456789", "read": "read-key-0123456789"}

NEEDS = [
    ("GET", "/v2/health/live", None),
    ("HEAD", "/v2/health/ready", None),
    ("GET", "/", None),
    ("POST", "/v2/models/m/infer", Scope.INFER),
    ("POST", "/v2/models/m/versions/1/infer", Scope.INFER),
    ("POST", "/v1/models/m:predict", Scope.INFER),
    ("POST", "/v2/models/a\nb/infer", Scope.INFER),
    ("GET", "/v2", Scope.READ),
    ("GET", "/v2/models/m", Scope.READ),
    ("GET", "/v2/models/m/ready", Scope.READ),
    ("GET", "/v2/models/stats", Scope.READ),
    ("GET", "/metrics", Scope.READ),
    ("GET", "/docs", Scope.READ),
    ("GET", "/openapi.json", Scope.READ),
    ("GET", "/v2/systemsharedmemory/status", Scope.READ),
    ("POST", "/v2/repository/index", Scope.READ),
    ("POST", "/v2/repository/models/index", Scope.READ),
    ("POST", "/v2/repository/models/m/load", Scope.CONTROL),
    ("POST", "/v2/repository/models/index/load", Scope.CONTROL),
    ("POST", "/v2/repository/models/models/m/unload", Scope.CONTROL),
    ("POST", "/v2/systemsharedmemory/region/r/register", Scope.CONTROL),
    ("POST", "/v2/cudasharedmemory/unregister", Scope.CONTROL),
    ("POST", "/v2/health/live", Scope.CONTROL),
    ("POST", "/v2/a-route-of-next-year", Scope.CONTROL),
    ("DELETE", "/v2/models/m", Scope.CONTROL),
]


@pytest.mark.parametrize(("method", "path", "scope"), NEEDS)
def test_what_a_request_needs(method: str, path: str, scope: Scope | None) -> None:
    assert needed_scope(method, path) is scope


def test_every_route_that_takes_post_is_one_of_those_known_here() -> None:
    """A new one has to be looked at: does it infer, only read, or change something?"""
    app = build_app(fake_registry(), 1000)
    routes = [route for route in app.routes if isinstance(route, Route) and "POST" in (route.methods or ())]
    paths = {route.path for route in routes} | {
        route.path for route in app.routes if "POST" in getattr(route, "methods", ())
    }
    by_scope = {scope: {path for path in paths if needed_scope("POST", path) is scope} for scope in Scope}
    assert by_scope[Scope.READ] == {"/v2/repository/index", "/v2/repository/{repository}/index"}
    assert all("/models/" in path for path in by_scope[Scope.INFER])
    assert {path.split("/")[2] for path in by_scope[Scope.CONTROL]} == {
        "repository",
        "systemsharedmemory",
        "cudasharedmemory",
    }


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    path = tmp_path / "keys"
    path.write_text("".join(f"{scope}: {key}\n" for scope, key in KEYS.items()))
    path.chmod(0o600)
    return Guard(KeyFile(path))


REQUESTS = {
    "read": ("GET", "/v2/models/m"),
    "infer": ("POST", "/v2/models/m/infer"),
    "control": ("POST", "/v2/repository/models/m/load"),
}


@pytest.mark.parametrize("asked", REQUESTS)
@pytest.mark.parametrize("shown", KEYS)
def test_a_key_opens_its_own_and_reads(shown: str, asked: str, guard: Guard) -> None:
    header = b"Bearer " + KEYS[shown].encode()
    refusal = guard.refusal(*REQUESTS[asked], [(b"authorization", header)])
    assert (refusal is None) is (asked in ("read", shown))
    if refusal is not None:
        assert isinstance(refusal, Forbidden)
        assert KEYS[shown] not in str(refusal)


GOOD = KEYS["infer"].encode()


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([(b"authorization", b"Bearer " + GOOD)], id="bearer"),
        pytest.param([(b"authorization", b"bearer   " + GOOD + b" ")], id="spelt-otherwise"),
        pytest.param([(b"x-api-key", GOOD)], id="x-api-key"),
        pytest.param([(b"authorization", b"Basic gateway"), (b"x-api-key", GOOD)], id="authorization-is-a-gateway-s"),
    ],
)
def test_a_key_can_be_shown_in_two_ways(headers: list[tuple[bytes, bytes]], guard: Guard) -> None:
    assert guard.refusal("POST", "/v2/models/m/infer", headers) is None
    assert guard.admits_infer(headers)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        pytest.param([], "a key is needed", id="none"),
        pytest.param([(b"authorization", b"Bearer")], "none of this server's", id="empty"),
        pytest.param([(b"authorization", b"Bearer " + GOOD[:-1])], "none of this server's", id="a-part"),
        pytest.param([(b"authorization", GOOD)], "Authorization is not 'Bearer KEY'", id="no-scheme"),
        pytest.param([(b"authorization", b"Basic " + GOOD)], "Authorization is not 'Bearer KEY'", id="another-scheme"),
        pytest.param([(b"x-api-key", GOOD)] * 2, "more than once", id="twice"),
        pytest.param(
            [(b"authorization", b"Bearer " + GOOD), (b"x-api-key", b"x")], "none of this server's", id="the-wrong-one"
        ),
    ],
)
def test_anything_else_is_not_a_key(headers: list[tuple[bytes, bytes]], told: str, guard: Guard) -> None:
    refusal = guard.refusal("POST", "/v2/models/m/infer", headers)
    assert isinstance(refusal, Unauthenticated)
    assert told in str(refusal)
    assert GOOD.decode() not in str(refusal)
    assert not guard.admits_infer(headers)


def test_keys_that_change_are_judged_anew(tmp_path: Path, guard: Guard) -> None:
    told: list[str] = []
    guard.when_keys_change(lambda: told.append("changed"))
    guard.refresh()
    assert told == []
    (tmp_path / "keys").write_text("infer: another-key-0123456789\n")
    guard.refresh()
    assert told == ["changed"]
    assert not guard.admits_infer([(b"x-api-key", GOOD)])


# --- without keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "local"),
    [
        pytest.param(Settings(), True, id="default"),
        pytest.param(Settings(host="127.1.2.3"), True, id="loopback"),
        pytest.param(Settings(host="::1"), True, id="loopback-6"),
        pytest.param(Settings(host="localhost"), True, id="localhost"),
        pytest.param(Settings(host="0.0.0.0", unix_socket=Path("s")), True, id="unix-socket"),
        pytest.param(Settings(host="0.0.0.0"), False, id="everywhere"),
        pytest.param(Settings(host="::"), False, id="everywhere-6"),
        pytest.param(Settings(host="192.0.2.1"), False, id="address"),
        pytest.param(Settings(host="machine.example"), False, id="name"),
    ],
)
def test_control_without_keys_is_for_this_machine_only(settings: Settings, local: bool) -> None:
    assert is_local(settings) is local
    guard = Guard.of(settings)
    refusal = guard.refusal(*REQUESTS["control"], [])
    assert (refusal is None) is local
    if refusal is not None:
        assert "--api-key-file" in str(refusal)
        assert "--control-routes on" in str(refusal)
    assert guard.refusal(*REQUESTS["infer"], []) is None
    assert guard.refusal(*REQUESTS["read"], []) is None


def test_an_operator_may_say_otherwise(tmp_path: Path) -> None:
    assert Guard.of(Settings(host="0.0.0.0", control_routes="on")).refusal(*REQUESTS["control"], []) is None
    assert isinstance(Guard.of(Settings(control_routes="off")).refusal(*REQUESTS["control"], []), Forbidden)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        pytest.param(b"http://127.0.0.1:8000", True, id="our-own-docs-page"),
        pytest.param(b"https://ops.example", True, id="named"),
        pytest.param(b"http://evil.example", False, id="another"),
        pytest.param(b"null", False, id="a-file-or-a-sandbox"),
    ],
)
def test_a_page_of_another_origin_changes_nothing_without_a_key(origin: bytes, allowed: bool) -> None:
    """A browser sends such a POST without asking, wherever the page came from."""
    guard = Guard(control_origins=("https://ops.example", "*"))
    headers = [(b"host", b"127.0.0.1:8000"), (b"origin", origin)]
    assert (guard.refusal(*REQUESTS["control"], headers) is None) is allowed
    assert guard.refusal(*REQUESTS["infer"], headers) is None
