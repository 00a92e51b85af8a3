from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.uvicorn_fit import why_unfit


def test_the_pinned_uvicorn_fits() -> None:
    assert why_unfit() == ""


def test_another_uvicorn_is_told_apart_by_what_its_connections_lack() -> None:
    class Other(HttpToolsProtocol):
        on_body = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.config = self.loop = self.parser = self.server_state = self.transport = None  # type: ignore[assignment]

    assert why_unfit(Other) == (
        "uvicorn's Other has no on_body, flow, pipeline, url, headers, cycle, timeout_keep_alive"
    )


def test_another_uvicorn_is_told_apart_by_what_its_requests_lack() -> None:
    class Other:
        def __init__(self) -> None:
            self.disconnected = self.response_complete = self.response_started = False

    assert (
        why_unfit(cycle=Other)
        == "uvicorn's Other has no message_event, keep_alive, transport, waiting_for_100_continue"
    )
