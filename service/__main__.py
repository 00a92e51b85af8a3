"""The command `foldserve`: read settings, configure logging, hand over to the server.

What cannot work at all (a bad value, a missing folder, a taken port) is one line and exit code 2 before anything is
served. A bad model in a good repository is not such a case: it becomes UNAVAILABLE, and the others are served.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from service.logs import configure_logging
from service.settings import PROGRAM, Settings, SettingsError

_STANDARD_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    _open_standard_files()
    _leave_on_signals()
    argv = sys.argv[1:] if argv is None else argv
    try:
        settings = Settings.from_command_line(argv, os.environ)
        check_paths(settings)
    except SettingsError as error:
        return _refuse(error)
    configure_logging(settings.log_level, settings.log_format)
    # Late: --help and a bad value answer without importing the server.
    from service import spans
    from service.listening import CannotServe
    from service.server import run

    try:
        if settings.otlp_endpoint is not None:
            spans.are_wanted(settings, os.environ)  # what is missing is told before there is any other process
        settings, plan = choose_workers(settings, argv)
        if settings.workers > 1:
            from service import workers

            return workers.run(settings, argv, plan)
        return run(settings, plan)
    except (CannotServe, SettingsError) as error:
        return _refuse(error)


def choose_workers(settings: Settings, argv: Sequence[str]) -> tuple[Settings, str]:
    """The settings with a number of workers, and why it is that."""
    if settings.workers:
        return settings, "as asked"
    from service import worker_plan
    from service.cpu_plan import read_plan

    chosen = worker_plan.plan(read_plan(), settings, argv)
    return dataclasses.replace(settings, workers=chosen.workers), chosen.reason


def check_paths(settings: Settings) -> None:
    """What is to be served is there and can be read. Raises SettingsError."""
    try:
        if settings.model is not None and not settings.model.is_dir():
            with settings.model.open("rb"):
                return
        next((settings.model or settings.model_repository).iterdir(), None)
    except FileNotFoundError as error:
        if settings.model is not None:
            raise SettingsError(f"--model: there is no file or folder {str(settings.model)!r}") from error
        raise SettingsError(
            f"--model-repository: there is no folder {str(settings.model_repository)!r}; "
            f"name one with --model-repository DIR, or a single model with --model PATH"
        ) from error
    except OSError as error:
        name, path = _what_to_serve(settings)
        raise SettingsError(f"{name}: {str(path)!r} cannot be read: {error.strerror}") from error


def _open_standard_files() -> None:
    """Where one was closed (`foldserve <&-`), the next file that is opened would be taken for it: a listening socket
    for the input of a child."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(file)


def _leave_on_signals() -> None:
    """Until the server listens to signals itself there is nothing to finish: exit at once, and well. As process 1 of a
    container the kernel would not even let us die of a SIGTERM without a handler."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is Python's
        # Not SystemExit: raised at any line, it ends up in code that takes it for an error of its own (pydantic's
        # schema builder does).
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    # Asks servers for a restart that nobody notices. There is nothing to restart yet.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _what_to_serve(settings: Settings) -> tuple[str, Path]:
    return ("--model", settings.model) if settings.model else ("--model-repository", settings.model_repository)


def _refuse(error: Exception) -> int:
    print(f"{PROGRAM}: error: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks on stderr
    return 2


if __name__ == "__main__":
    sys.exit(main())
