"""Flags, variables, defaults and the README's table: one definition, one order of precedence, one line per mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.repository import _MODEL_NAME
from service.settings import Settings, SettingsError, readme_table


def read(*argv: str, **environ: str) -> Settings:
    return Settings.from_command_line(argv, environ)


def test_nothing_given_is_the_defaults() -> None:
    assert read() == Settings()
    assert Settings().model_repository == Path("models")
    assert Settings().providers == ("CPUExecutionProvider",)


ALL = [
    pytest.param("model_repository", "r", Path("r"), id="path"),
    pytest.param("model", "m.onnx", Path("m.onnx"), id="optional-path"),
    pytest.param("model_name", "resnet-50_v1.5", "resnet-50_v1.5", id="optional-name"),
    pytest.param("repository_poll_s", "15", 15.0, id="seconds-to-poll"),
    pytest.param("host", "::", "::", id="text"),
    pytest.param("port", "0", 0, id="number-at-its-minimum"),
    pytest.param("port", "65535", 65535, id="number-at-its-maximum"),
    pytest.param("providers", "CUDAExecutionProvider, CPUExecutionProvider,",
                 ("CUDAExecutionProvider", "CPUExecutionProvider"), id="names"),
    pytest.param("workers", "4", 4, id="processes"),
    pytest.param("intra_op_threads", "3", 3, id="threads"),
    pytest.param("max_body_bytes", "1_000", 1000, id="number-with-underscore"),
    pytest.param("max_request_rows", "1", 1, id="rows"),
    pytest.param("max_head_bytes", "2048", 2048, id="head-bytes"),
    pytest.param("max_header_count", "64", 64, id="headers"),
    pytest.param("max_connections", "100000", 100000, id="connections"),
    pytest.param("head_timeout_s", "5", 5, id="head-seconds"),
    pytest.param("body_stall_s", "5", 5, id="body-seconds"),
    pytest.param("body_timeout_s", "5", 5, id="whole-body-seconds"),
    pytest.param("answer_stall_s", "5", 5, id="answer-seconds"),
    pytest.param("keep_alive_s", "5", 5, id="idle-seconds"),
    pytest.param("root_path", "/models/eu-1", "/models/eu-1", id="url-path"),
    pytest.param("unix_socket", "/run/s", Path("/run/s"), id="socket"),
    pytest.param("unix_socket_mode", "0600", "0600", id="mode"),
    pytest.param("tls_cert_file", "c.pem", Path("c.pem"), id="certificate"),
    pytest.param("tls_key_file", "k.pem", Path("k.pem"), id="key"),
    pytest.param("tls_key_password_file", "p", Path("p"), id="password"),
    pytest.param("tls_client_ca_file", "ca.pem", Path("ca.pem"), id="authorities"),
    pytest.param("api_key_file", "keys", Path("keys"), id="file"),
    pytest.param("control_routes", "off", "off", id="word"),
    pytest.param("cors_origins", "https://a.example, http://localhost:3000",
                 ("https://a.example", "http://localhost:3000"), id="origins"),
    pytest.param("cors_origins", "*", ("*",), id="any-origin"),
    pytest.param("drain_limit_s", "0", 0, id="seconds"),
    pytest.param("drain_grace_s", "2.5", 2.5, id="fraction-of-a-second"),
    pytest.param("log_level", "debug", "debug", id="choice"),
    pytest.param("log_format", "json", "json", id="form"),
    pytest.param("otlp_endpoint", "http://localhost:4318", "http://localhost:4318", id="url"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), ALL)
def test_every_knob_is_a_flag_and_a_variable(name: str, text: str, value: Any) -> None:
    assert getattr(read(f"--{name.replace('_', '-')}", text), name) == value
    assert getattr(read(**{f"FOLDSERVE_{name.upper()}": text}), name) == value


def test_the_table_above_misses_no_knob() -> None:
    tested = {case.values[0] for case in ALL} | {
        "strict_readiness", "system_shared_memory", "follow_links_out", "server_timing", "access_log",
    }  # fmt: skip
    assert tested == {knob.name for knob in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("argv", "environ", "strict"),
    [
        pytest.param([], {}, True, id="default"),
        pytest.param(["--no-strict-readiness"], {}, False, id="flag-off"),
        pytest.param(["--strict-readiness"], {"FOLDSERVE_STRICT_READINESS": "0"}, True, id="flag-beats-variable"),
        pytest.param(["--strict-readiness=false"], {}, False, id="tritonserver-s-spelling"),
        pytest.param(["--strict-readiness", "1"], {"FOLDSERVE_STRICT_READINESS": "0"}, True, id="word-of-its-own"),
        pytest.param([], {"FOLDSERVE_STRICT_READINESS": "off"}, False, id="off"),
        pytest.param([], {"FOLDSERVE_STRICT_READINESS": "False"}, False, id="capitals"),
        pytest.param([], {"FOLDSERVE_STRICT_READINESS": "yes"}, True, id="yes"),
        pytest.param([], {"FOLDSERVE_STRICT_READINESS": ""}, True, id="empty-is-unset"),
    ],
)
def test_a_switch_has_two_flags_and_a_variable(argv: Sequence[str], environ: Mapping[str, str], strict: bool) -> None:
    assert read(*argv, **environ).strict_readiness is strict


def test_shared_memory_is_taken_only_when_asked_for() -> None:
    assert read().system_shared_memory is False
    assert read("--system-shared-memory").system_shared_memory is True
    assert read(FOLDSERVE_SYSTEM_SHARED_MEMORY="1").system_shared_memory is True


@pytest.mark.parametrize("path", ["", "/a", "/v22", "/~a/b.c/_d-e/v2"])
def test_root_path_may_be(path: str) -> None:
    assert Settings(root_path=path).root_path == path


@pytest.mark.parametrize(
    "path", ["/", "a", "/a/", "//a", "/a//b", "/..", "/a/../b", "/.a", "/a b", "/a?", "/v2", "/v1/a", "/ä"]
)
def test_root_path_may_not_be(path: str) -> None:
    with pytest.raises(SettingsError, match=r"root_path: .* is not a path such as /base"):
        Settings(root_path=path)


def test_a_flag_beats_a_variable() -> None:
    assert read("--port", "1", FOLDSERVE_PORT="2").port == 1


def test_of_a_flag_given_twice_the_last_wins() -> None:
    """A platform's arguments come first, its user's behind them."""
    assert read("--port", "1", "--http_port", "2").port == 2
    assert read("--strict-readiness", "--no-strict-readiness").strict_readiness is False


def test_a_flag_for_one_file_beats_a_variable_for_a_repository() -> None:
    settings = read("--model", "m.onnx", FOLDSERVE_MODEL_REPOSITORY="r")
    assert settings.model == Path("m.onnx")
    assert read("--model-repository", "r", FOLDSERVE_MODEL="m.onnx").model is None


def test_a_kubernetes_service_link_is_not_a_port() -> None:
    assert read(FOLDSERVE_PORT="tcp://10.0.0.1:8000").port == 8000


@pytest.mark.parametrize(
    ("argv", "environ", "words"),
    [
        pytest.param(["--port", "x"], {}, ["--port", "'x'", "whole number"], id="not-a-number"),
        pytest.param(["--port", "65536"], {}, ["--port", "65536", "65535"], id="above"),
        pytest.param(["--port", "-1"], {}, ["--port", "-1", "0"], id="below"),
        pytest.param([], {"FOLDSERVE_PORT": "1e3"}, ["FOLDSERVE_PORT", "'1e3'"], id="variable"),
        pytest.param(["--drain-grace-s", "soon"], {}, ["--drain-grace-s", "'soon' is not a number"], id="no-number"),
        pytest.param(["--drain-grace-s", "nan"], {}, ["--drain-grace-s", "'nan' is not a number"], id="nan"),
        pytest.param(["--max-body-bytes", "0"], {}, ["--max-body-bytes", "minimum of 1"], id="zero-bytes"),
        pytest.param([], {"FOLDSERVE_STRICT_READINESS": "2"}, ["FOLDSERVE_STRICT_READINESS", "'2'"], id="switch"),
        pytest.param(["--log-level", "loud"], {}, ["--log-level", "'loud'", "debug, info"], id="choice"),
        pytest.param(["--providers", ","], {}, ["--providers", "names nothing"], id="no-provider"),
        pytest.param(
            ["--cors-origins", "a.example"], {}, ["--cors-origins", "'a.example' is not an origin"], id="host"
        ),
        pytest.param(["--cors-origins", "https://a/b"], {}, ["'https://a/b' is not an origin"], id="origin-with-path"),
        pytest.param(["--host", " "], {}, ["--host", "empty"], id="empty-text"),
        pytest.param(["--model-name", "a/b"], {}, ["--model-name", "'a/b' is not a model name"], id="no-model-name"),
        pytest.param(["--prot", "1"], {}, ["--prot"], id="unknown-flag"),
        pytest.param(["--por", "1"], {}, ["--por"], id="abbreviation"),
        pytest.param(["models"], {}, ["models"], id="stray-word"),
        pytest.param(["--port"], {}, ["--port", "expected one argument"], id="missing-value"),
        pytest.param(["--strict-readiness=maybe"], {}, ["--strict-readiness", "'maybe' is neither true"], id="no-word"),
        pytest.param(["--no-strict-readiness=1"], {}, ["--no-strict-readiness takes no value"], id="no-and-a-word"),
        pytest.param(
            ["--model-repository", "a", "--model-repository", "b"],
            {},
            ["--model-repository", "given twice, a and b"],
            id="two-repositories",
        ),
        pytest.param(
            ["--model-repository", "a", "--model-store", "b"], {}, ["given twice, a and b"], id="twice-by-two-names"
        ),
        pytest.param(
            ["--model", "m", "--model-repository", "r"], {}, ["--model and --model-repository"], id="both-flags"
        ),
        pytest.param(
            [],
            {"FOLDSERVE_MODEL": "m", "FOLDSERVE_MODEL_REPOSITORY": "r"},
            ["FOLDSERVE_MODEL and FOLDSERVE_MODEL_REPOSITORY"],
            id="both-variables",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_knob_and_value(
    argv: Sequence[str], environ: Mapping[str, str], words: Sequence[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(*argv, **environ)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_ranges_hold_for_values_made_in_python() -> None:
    with pytest.raises(SettingsError, match="port: 70000"):
        Settings(port=70000)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_print_and_end_well(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read(flag)
    assert caught.value.code == 0
    assert (__version__ if flag == "--version" else "--model-repository DIR") in capsys.readouterr().out


def test_help_and_readme_table_show_every_knob_with_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    table = readme_table()
    assert table.count("\n") == 2 + len(dataclasses.fields(Settings))
    for knob in dataclasses.fields(Settings):
        assert f"[FOLDSERVE_{knob.name.upper()}]" in shown
        assert f"`FOLDSERVE_{knob.name.upper()}`" in table
    assert "`--[no-]strict-readiness`" in table
    assert "`--max-body-bytes N` | `FOLDSERVE_MAX_BODY_BYTES` | `67108864`" in table


@pytest.mark.parametrize(
    ("argv", "settings"),
    [
        pytest.param(
            ["--model_name=resnet", "--model_dir=/mnt/models", "--http_port=8080"],
            Settings(model=Path("/mnt/models"), model_name="resnet", port=8080),
            id="a-kserve-runtime-for-one-model",
        ),
        pytest.param(
            ["--model-store=/mnt/models", "--http-port=8080"],
            Settings(model_repository=Path("/mnt/models"), port=8080),
            id="kserve-s-runtime-for-triton",
        ),
    ],
)
def test_arguments_that_were_written_for_others_work_as_they_stand(argv: Sequence[str], settings: Settings) -> None:
    """KServe, config/runtimes: kserve-sklearnserver.yaml and kserve-tritonserver.yaml."""
    assert read(*argv) == settings


@pytest.mark.parametrize("name", ["a", "A.b-c_1", "_a", ".a", "-a", "a b", "a/b", "ü", "a\n", "..", "1"])
def test_a_served_name_is_legal_where_a_folder_s_is(name: str) -> None:
    """Settings may not import the repository; the two have to say the same."""
    try:
        Settings(model_name=name)
        legal = True
    except SettingsError:
        legal = False
    assert legal == bool(_MODEL_NAME.fullmatch(name))
