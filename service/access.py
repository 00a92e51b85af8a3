"""Who may ask for what: which request needs a key, of which scope, and what is switched off while there are no keys.

One table for both doors. Judges method, path and headers, before a byte of the body is waited for. Knows no framework
and no connection.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from service.api_keys import KeyFile, Scope
from service.errors import Forbidden, ServiceError, Unauthenticated, quoted
from service.settings import Settings

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
"""As in ASGI: names in lower case."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})

# From the top: the first row that fits counts. The last one sees to it that a route which somebody adds and forgets
# here is not open: whatever changes something needs control.
_NEEDS: tuple[tuple[frozenset[str] | None, re.Pattern[str], Scope | None], ...] = (
    # Probes of orchestrators and load balancers have no keys.
    (_READING, re.compile(r"/|/v2/health/(live|ready)"), None),
    (frozenset({"POST"}), re.compile(r"/v[12]/models/.*", re.S), Scope.INFER),
    # Only reads, in spite of its method.
    (frozenset({"POST"}), re.compile(r"/v2/repository/([^/]+/)?index"), Scope.READ),
    (_READING, re.compile(r".*", re.S), Scope.READ),
    (None, re.compile(r".*", re.S), Scope.CONTROL),
)


def needed_scope(method: str, path: str) -> Scope | None:
    """What a key has to open for this request; None: it is everybody's. path: decoded, as routes compare it."""
    for methods, pattern, scope in _NEEDS:
        if (methods is None or method in methods) and pattern.fullmatch(path):
            return scope
    raise AssertionError("the last row fits everything")


class Guard:
    """Judges requests."""

    def __init__(
        self, key_file: KeyFile | None = None, *, has_control: bool = True, control_origins: Iterable[str] = ()
    ) -> None:
        """has_control: whether anything may be changed at all. control_origins: of web pages that may, without keys."""
        self._key_file = key_file
        self._has_control = has_control
        self._control_origins = frozenset(control_origins) - {"*"}
        self._when_changed: list[Callable[[], object]] = []

    @classmethod
    def of(cls, settings: Settings) -> Guard:
        """The one that an operator asks for. Raises SettingsError when the file of keys cannot be used."""
        key_file = KeyFile(settings.api_key_file) if settings.api_key_file else None
        by_itself = key_file is not None or is_local(settings)
        has_control = by_itself if settings.control_routes == "auto" else settings.control_routes == "on"
        return cls(key_file, has_control=has_control, control_origins=settings.cors_origins)

    @property
    def has_keys(self) -> bool:
        return self._key_file is not None

    @property
    def has_control(self) -> bool:
        return self._has_control

    def when_keys_change(self, call: Callable[[], object]) -> None:
        """`call` is called when what has been judged may be judged otherwise now."""
        self._when_changed.append(call)

    def refresh(self) -> None:
        """Reads the file of keys again, if it has changed. Cheap: to be called once a second or so."""
        if self._key_file is not None and self._key_file.refresh():
            for call in self._when_changed:
                call()

    def refusal(self, method: str, path: str, headers: Headers) -> ServiceError | None:
        """Why this request is not to be answered; None when it may be."""
        scope = needed_scope(method, path)
        if scope is None:
            return None
        if scope is Scope.CONTROL and not self._has_control:
            return Forbidden(
                f"{method} {quoted(path)}: requests that change anything are switched off; "
                f"{'' if self.has_keys else 'give the server an --api-key-file with a control key, or '}"
                f"start it with --control-routes on"
            )
        if self._key_file is None:
            return self._refusal_of_a_page(headers) if scope is Scope.CONTROL else None
        try:
            opened = self._key_file.keys.scopes_of(_shown_key(headers))
        except Unauthenticated as error:
            return error
        if not opened:
            return Unauthenticated("the key is none of this server's")
        if scope not in opened:
            return Forbidden(f"{method} {quoted(path)} needs a key for {scope.value}, and this one is not")
        return None

    def admits_infer(self, headers: Headers) -> bool:
        """Whether the sender of these headers may infer."""
        return self._key_file is None or self.refusal("POST", "/v2/models/any/infer", headers) is None

    def _refusal_of_a_page(self, headers: Headers) -> ServiceError | None:
        """Any web page may make its reader's browser post to this machine, without reading the answer. Where no key is
        asked for, that must not unload a model."""
        known = dict(headers)
        origin = known.get(b"origin")
        if origin is None or origin.decode("latin-1") in self._control_origins:
            return None
        # RFC 6454, 7: scheme, host and port; Host has the last two.
        if urlsplit(origin).netloc.lower() == known.get(b"host", b"").lower():
            return None
        return Forbidden(
            f"a page of {quoted(origin.decode('latin-1'))} may not change anything here; name it in --cors-origins, "
            f"or ask with a key"
        )


def _shown_key(headers: Headers) -> bytes:
    """Raises Unauthenticated. X-API-Key counts before Authorization, which gateways use for themselves."""
    shown = {name: [value for key, value in headers if key == name] for name in (b"x-api-key", b"authorization")}
    values = shown[b"x-api-key"] or shown[b"authorization"]
    if not values:
        raise Unauthenticated("a key is needed: send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
    if len(values) > 1:
        raise Unauthenticated("the key is given more than once; send one")
    if shown[b"x-api-key"]:
        return values[0].strip()
    scheme, _, key = values[0].strip().partition(b" ")
    if scheme.lower() != b"bearer":
        raise Unauthenticated("Authorization is not 'Bearer KEY'; send that, or 'X-API-Key: KEY'")
    return key.strip()


def is_local(settings: Settings) -> bool:
    """Whether only processes of this machine can reach the server."""
    if settings.unix_socket is not None or settings.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        return False  # a name, which may mean anything


def warn_of_strangers(settings: Settings, guard: Guard) -> None:
    """A line in the log where no key is asked of those who may be anybody."""
    if not guard.has_keys and not is_local(settings):
        log.warning(
            "whoever reaches this server can ask it: there is no --api-key-file; requests that change anything are %s",
            "taken, too (--control-routes on)" if guard.has_control else "switched off",
        )
