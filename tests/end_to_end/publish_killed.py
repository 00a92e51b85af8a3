"""`python publish_killed.py MODEL`: publishes copies of a model and dies by SIGKILL at a step. Jobs come on stdin.

One job a line: REPOSITORY NAME REPLACE STEP ("-" for none). Each job runs in a forked child, so that the libraries are
imported once and the kill is real; its wait status is printed as one line. Not a test itself.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service import repository as layout
from training.fold.files import read_model
from training.golden import Golden
from training.publish import Draft, publish


def draft_of(model_directory: Path, name: str) -> Draft:
    """The first version of a published model, as publish would have got it, under another name."""
    (version,) = layout.versions(model_directory)
    report = layout.read_report(version)
    assert report is not None
    assert report.golden is not None
    with np.load(version.golden_path) as golden:
        arrays = dict(golden)
    return Draft(
        config=layout.read_config(model_directory).model_copy(update={"name": name}),
        model=read_model(version.model_path),
        golden=Golden(
            inputs=_with_prefix(arrays, layout.GOLDEN_INPUT_PREFIX),
            outputs=_with_prefix(arrays, layout.GOLDEN_OUTPUT_PREFIX),
            tolerance=report.golden.tolerance,
        ),
        reports={},
        labels=tuple((version.path / layout.LABELS_FILE).read_text().splitlines()),
    )


def _with_prefix(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def publish_and_die(model_directory: Path, repository: str, name: str, replace: str, step: str) -> None:
    """Does not return when `step` is one of publish's."""

    def checkpoint(reached: str) -> None:
        if reached == step:
            os.kill(os.getpid(), signal.SIGKILL)

    publish(
        Path(repository),
        draft_of(model_directory, name),
        replace=None if replace == "-" else int(replace),
        checkpoint=checkpoint,
    )


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            publish_and_die(Path(sys.argv[1]), *line.split())
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
