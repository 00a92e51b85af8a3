"""Every operator's knob in one frozen object: name, type, default, range, unit and help, stated once.

Command-line flags, FOLDSERVE_* variables, `--help` and the README's table all derive from the fields of `Settings`;
to add a knob, add a field (knobs.py reads it). A flag beats a variable, a variable beats the default.
This file knows what a legal value is, not whether a path exists or a provider is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from service import __version__, knobs
from service.knobs import PROGRAM, SettingsError
from service.knobs import about as _about

__all__ = ["PROGRAM", "Settings", "SettingsError", "readme_table"]

_DESCRIPTION = "Serve ONNX models over the Open Inference Protocol v2 (REST, JSON and binary tensors)."
_WHAT_TO_SERVE = frozenset({"model", "model_repository"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may choose. Raises SettingsError when a value is out of its range."""

    model_repository: Path = field(
        default=Path("models"),
        metadata=_about(
            "folder of models to serve: NAME/VERSION/model.onnx, optionally with NAME/config.json or Triton's "
            "NAME/config.pbtxt",
            metavar="DIR",
            aliases=("--model-store",),
        ),
    )
    model: Path | None = field(
        default=None,
        metadata=_about(
            "serve one model instead of a repository: an ONNX file, or a folder that holds one, or numbered versions",
            metavar="PATH",
            aliases=("--model_dir",),
        ),
    )
    model_name: str | None = field(
        default=None,
        metadata=_about(
            "name under which the one model is served; absent: derived from file or folder. Without --model, the "
            "repository's folder may be anything that --model takes",
            metavar="NAME",
            pattern=r"[A-Za-z0-9][A-Za-z0-9_.-]*",
            legal="a model name: letters, digits, '_', '-' and '.', not starting with '.', '-' or '_'",
            aliases=("--model_name",),
        ),
    )
    follow_links_out: bool = field(
        default=False,
        metadata=_about("serve what links in the repository lead to outside of it; without it such a model is refused"),
    )
    repository_poll_s: float = field(
        default=0.0,
        metadata=_about(
            "how often to look for models and versions that came, changed or went; what is found the same twice is "
            "loaded or unloaded; 0: never",
            unit="seconds",
            minimum=0,
            maximum=86400,
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_about("address to listen on; 0.0.0.0 is every IPv4 interface", metavar="HOST"),
    )
    port: int = field(
        default=8000,
        metadata=_about(
            "TCP port to listen on; 0 lets the system choose one",
            minimum=0,
            maximum=65535,
            aliases=("--http-port", "--http_port"),
        ),
    )
    unix_socket: Path | None = field(
        default=None,
        metadata=_about(
            "listen on this unix socket, and on no address; its file is removed at the end", metavar="PATH"
        ),
    )
    unix_socket_mode: str = field(
        default="660",
        metadata=_about(
            "permissions of the unix socket's file, in octal; 660: this server's user and group",
            metavar="MODE",
            pattern=r"0?[0-7]{3}",
            legal="three octal digits, such as 660",
        ),
    )
    strict_readiness: bool = field(
        default=True,
        metadata=_about("ready means that every model is READY; without it, that one is READY and none is LOADING"),
    )
    providers: tuple[str, ...] = field(
        default=("CPUExecutionProvider",),
        metadata=_about(
            "ONNX Runtime execution providers in order of preference, comma separated; one that is missing makes the "
            "models UNAVAILABLE, never a silent fall-back",
            metavar="A,B",
        ),
    )
    workers: int = field(
        default=0,
        metadata=_about(
            "processes that serve on the one port, under a supervisor that replaces what dies; each loads every model, "
            "and has its share of the cores. 0 chooses by cores and by what the models take, which is measured",
            minimum=0,
            maximum=256,
        ),
    )
    intra_op_threads: int = field(
        default=0,
        metadata=_about(
            "threads that one model run may use; 0 takes the cores that affinity and cgroup quota allow, shared out "
            "among workers and the model's instances, or one for a model whose short runs more do not make shorter",
            minimum=0,
            maximum=1024,
        ),
    )
    max_body_bytes: int = field(
        default=64 * 1024 * 1024,
        metadata=_about("largest request body; a longer one is answered 413", unit="bytes", minimum=1),
    )
    max_request_rows: int = field(
        default=65536,
        metadata=_about(
            "most rows of one request, whatever a model's own max_batch_size, which whoever may load models can raise",
            minimum=1,
        ),
    )
    max_head_bytes: int = field(
        # As much as common proxies pass on, several times over.
        default=64 * 1024,
        metadata=_about(
            "longest request line and headers together; a longer head is answered 431", unit="bytes", minimum=1024
        ),
    )
    max_header_count: int = field(
        default=100, metadata=_about("most header lines of a request; more are answered 431", minimum=8)
    )
    max_connections: int = field(
        default=16384,
        metadata=_about("most connections of one process at a time; one more is answered 503 and closed", minimum=1),
    )
    head_timeout_s: int = field(
        default=20,
        metadata=_about("how long a head may take to come, then 408", unit="seconds", minimum=1, maximum=86400),
    )
    body_stall_s: int = field(
        default=30,
        metadata=_about("longest pause within a body, then 408", unit="seconds", minimum=1, maximum=86400),
    )
    body_timeout_s: int = field(
        default=600,
        metadata=_about("how long a body may take in all, then 408", unit="seconds", minimum=1, maximum=86400),
    )
    answer_stall_s: int = field(
        default=60,
        metadata=_about(
            "how long a client may take no byte of its answer before it is hung up on (Linux)",
            unit="seconds",
            minimum=1,
            maximum=86400,
        ),
    )
    keep_alive_s: int = field(
        # Longer than the idle time of common load balancers (60 s), so that they close a connection rather than we: the
        # other way round a request sent in that instant is lost.
        default=75,
        metadata=_about("how long a connection may be idle", unit="seconds", minimum=1, maximum=86400),
    )
    root_path: str = field(
        default="",
        metadata=_about(
            "path under which a proxy publishes this server, such as /models/eu; requests are answered with and "
            "without it, so the proxy may strip it or not",
            metavar="PATH",
            pattern=r"|(?!/v[12](/|$))(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+",
            legal="a path such as /base: begin with a slash, end without, not /v1 or /v2",
        ),
    )
    system_shared_memory: bool = field(
        default=False,
        metadata=_about(
            "take tensors through system shared memory; whoever can send requests can then read and write every object "
            "in /dev/shm that this server's user may"
        ),
    )
    api_key_file: Path | None = field(
        default=None,
        metadata=_about(
            "file of the keys that clients must show, a line each: `infer: KEY`, `control: KEY`, `read: KEY`; read "
            "again when it changes",
            metavar="PATH",
        ),
    )
    tls_cert_file: Path | None = field(
        default=None,
        metadata=_about(
            "speak TLS, with the certificate (and those between it and the root) in this file", metavar="PEM"
        ),
    )
    tls_key_file: Path | None = field(
        default=None,
        metadata=_about("private key of the certificate, where it is not in the same file", metavar="PEM"),
    )
    tls_key_password_file: Path | None = field(
        default=None, metadata=_about("file whose first line decrypts the private key", metavar="PATH")
    )
    tls_client_ca_file: Path | None = field(
        default=None,
        metadata=_about("clients must show a certificate of one of these authorities (mutual TLS)", metavar="PEM"),
    )
    control_routes: str = field(
        default="auto",
        metadata=_about(
            "whether models can be loaded and unloaded, and shared memory registered, by request; auto: where keys are "
            "asked for, or only this machine can reach the server",
            choices=("auto", "on", "off"),
        ),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "web pages of these origins may read answers, comma separated; `*`: of all",
            metavar="A,B",
            pattern=r"\*|https?://(?!-)[A-Za-z0-9.\[\]:_-]+",
            legal="an origin such as https://a.example or http://localhost:3000, without a path; or *",
        ),
    )
    drain_limit_s: int = field(
        # Kubernetes kills 30 s after SIGTERM by default; stop by ourselves a little earlier, with a word in the log.
        default=25,
        metadata=_about(
            "after SIGTERM, how long requests in flight may take to finish, the grace included",
            unit="seconds",
            minimum=0,
            maximum=86400,
        ),
    )
    drain_grace_s: float = field(
        # Kubernetes sends SIGTERM while it still tells its nodes and load balancers not to send anything here: the
        # controller, kube-proxy and ingress each batch for up to a second. `docker stop` kills after 10 s, where 5
        # remain for requests in flight. Counts into the drain limit, so that however long it is, nobody is killed.
        default=5.0,
        metadata=_about(
            "after SIGTERM, how long to serve on: not ready any more, each answer with `Connection: close`; Ctrl-C and "
            "a second signal skip it",
            unit="seconds",
            minimum=0,
            maximum=86400,
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_about("least severe event to log", choices=("debug", "info", "warning", "error")),
    )
    server_timing: bool = field(
        default=False,
        metadata=_about(
            "tell in a Server-Timing header of each inference answer how long it took in each stage; strangers can "
            "read from it how busy the server is"
        ),
    )
    log_format: str = field(
        default="console",
        metadata=_about("one line an event, for a person; or one JSON object a line", choices=("console", "json")),
    )

    access_log: bool = field(
        default=False,
        metadata=_about(
            "log each request: client, method, path, status, bytes of both bodies, milliseconds, request id"
        ),
    )

    otlp_endpoint: str | None = field(
        default=None,
        metadata=_about(
            "send OpenTelemetry spans of infer requests to this collector, in OTLP over HTTP, such as "
            "http://localhost:4318; needs the extra `otel`. OTEL_EXPORTER_OTLP_ENDPOINT does the same",
            metavar="URL",
            pattern=r"https?://[^\s/]\S*",
            legal="a URL that begins with http:// or https://",
        ),
    )

    def __post_init__(self) -> None:
        for knob in fields(self):
            try:
                knobs.check(knob, getattr(self, knob.name))
            except ValueError as error:
                raise SettingsError(f"{knob.name}: {error}") from error

    @classmethod
    def from_command_line(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
        """The settings that flags and variables ask for.

        Raises SettingsError with one clear line, and SystemExit(0) after printing for --help and --version.
        """
        from_variables = knobs.read_variables(cls, environ)
        parser = knobs.parser(cls, __version__, _DESCRIPTION, given_once=_WHAT_TO_SERVE)
        from_flags = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
        for source, spell in ((from_flags, knobs.flag), (from_variables, knobs.variable)):
            if source.keys() >= _WHAT_TO_SERVE:
                both = " and ".join(spell(name) for name in sorted(_WHAT_TO_SERVE))
                raise SettingsError(f"{both} exclude each other: give one file or one folder")
        # Within one source both is a contradiction; between sources the flag is the later word (an image may set a
        # variable that its user overrides).
        if from_flags.keys() & _WHAT_TO_SERVE:
            from_variables = {name: value for name, value in from_variables.items() if name not in _WHAT_TO_SERVE}
        return cls(**(from_variables | from_flags))


def readme_table() -> str:
    """Every knob as a Markdown table, for the README."""
    return knobs.table(Settings)
