"""What each server is asked and how its answer is read: the same row in, the same numbers out, in every form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from service.decode import decode_request
from tests.benchmarks import serve_models
from tests.benchmarks.serve_contenders import (
    BARE_LOOP,
    Array,
    ContenderFailed,
    Served,
    ask_ours,
    ask_rival,
    ours,
    read_ours,
    read_rival,
    rivals,
    running,
)


class Row(Served):
    """No file: a row whose numbers have many digits in decimal."""

    @property
    def x(self) -> Array:
        return np.array([[0.1, -1e-30, 3.0, 16777216.0]], dtype=np.float32)


ROW = Row(Path("row.onnx"), 64)


def head_and_body(request: bytes) -> tuple[list[str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body


@pytest.mark.parametrize("form", ["json", "binary"])
@pytest.mark.parametrize("deadline_us", [None, 1_000_000])
def test_our_request_is_one_row_of_the_protocol(form: str, deadline_us: int | None):
    lines, body = head_and_body(ask_ours(ROW, form, deadline_us))
    lengths = [int(line.split()[1]) for line in lines if line.startswith("Inference-Header-Content-Length")]
    request = decode_request(body, lengths[0] if lengths else None)

    assert lines[0] == "POST /v2/models/row/infer HTTP/1.1"
    assert f"Content-Length: {len(body)}" in lines
    np.testing.assert_array_equal(request.inputs[0].data, ROW.x)
    assert request.parameters == ({} if deadline_us is None else {"timeout": deadline_us})
    told = json.loads(body[: lengths[0]] if lengths else body)
    assert told.get("outputs") == (None if form == "json" else [{"name": "y", "parameters": {"binary_data": True}}])


def test_a_rival_is_asked_for_the_same_numbers():
    of_json, of_binary = (head_and_body(ask_rival(ROW, form, None)) for form in ("json", "binary"))

    assert of_json[0][0] == "POST /json HTTP/1.1"
    assert np.array(json.loads(of_json[1])["input"], dtype=np.float32).tolist() == ROW.x[0].tolist()
    assert of_binary[1] == ROW.x.tobytes()


def test_answers_are_read_as_numbers():
    head = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
    raw = np.array([1.5, 2.5], dtype=np.float32).tobytes()
    found = [
        read_ours("json", b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.5,2.5]}]}', {}),
        read_ours("binary", head + raw, {"inference-header-content-length": str(len(head))}),
        read_rival("json", b'{"output":[1.5,2.5]}', {}),
        read_rival("binary", raw, {}),
    ]

    assert [each.tolist() for each in found] == [[[1.5, 2.5]]] * 4


def test_rivals_are_told_the_deadline_and_how_much_to_hold(tmp_path: Path):
    commands = {rival.name: rival.command(Served(Path("large.onnx"), 8), 1234) for rival in rivals(tmp_path, 1.0)}

    assert commands["mosec"][-6:] == ["--timeout", "1000", "--capacity", "16", "--log-level", "warning"][-6:]
    assert commands["LitServe"][-2:] == ["1234", "1.0"]
    assert {name: command[0] for name, command in commands.items()} == dict.fromkeys(
        commands, str(tmp_path / "bin" / "python")
    )


def test_a_server_that_does_not_start_is_told_with_its_last_words(tmp_path: Path):
    missing = Served(tmp_path / "missing.onnx", 64)
    missing.__dict__["_run"] = (ROW.x, ROW.x)

    with (
        pytest.raises(ContenderFailed, match=r"ours does not answer json.*exit code 2; .*there is no file"),
        running(ours(), missing, 1),
    ):
        pass


def test_the_bare_loop_answers_a_lone_caller_in_binary_and_is_asked_nothing_else(tmp_path: Path):
    serve_models.write("mlp", tmp_path)
    (floor,) = (each for each in rivals(Path(sys.prefix), 1.0) if each.name == BARE_LOOP)

    with running(floor, Served(tmp_path / "mlp.onnx", 64), 1) as port:  # which compares its answer
        assert port
    assert floor.takes("binary", 1)
    assert [floor.takes(*asked) for asked in (("json", 1), ("binary", 8), ("binary", 0))] == [False] * 3
