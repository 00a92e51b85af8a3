"""The `Server-Timing` header, spelled out; that both doors send it is tested over real sockets."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from service.app import build_app
from service.stages import Stages, ToldStages, server_timing
from tests.service.fakes import EchoModel, fake_registry

GOOD = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0.5]}]}'


def test_header_tells_each_stage_in_milliseconds() -> None:
    stages = ToldStages(1.0)
    stages.submitted_s, stages.batch_s = 1.000125, (1.0025, 1.5)
    stages.record = print
    assert server_timing(stages, 1.75) == (
        b"server-timing",
        b"decode;dur=0.125, queue;dur=2.375, compute;dur=497.500, encode;dur=250.000",
    )


def test_what_no_model_ran_for_has_one_figure() -> None:
    assert server_timing(ToldStages(1.0), 1.5) == (b"server-timing", b"total;dur=500.000")


@pytest.mark.parametrize("server_timing", [pytest.param(False, id="off"), pytest.param(True, id="on")])
def test_callers_are_told_where_the_operator_says_so(server_timing: bool) -> None:
    client = TestClient(build_app(fake_registry(echo=EchoModel()), 1000, server_timing=server_timing))
    for path, body in (("/v2/models/echo/infer", GOOD), ("/v1/models/echo:predict", b'{"instances":[[1,2]]}')):
        answer = client.post(path, content=body)
        assert answer.status_code == 200
        assert ("server-timing" in answer.headers) == server_timing
    assert Stages.is_told is False
