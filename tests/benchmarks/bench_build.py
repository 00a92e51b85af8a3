"""How long `foldtrain build digits` takes from data to published version, and how good it is: `make bench-build`.

Run by the interpreter of an environment that holds the training extra and nothing else. The accuracy is not the build's
own word: the published version is served, and every held-out digit is sent to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.benchmarks.machine import heading
from tests.end_to_end.material import DIGITS, accuracy, image_input
from tests.end_to_end.running import COMMANDS, clean_environment, foldserve
from training import datasets
from training.recipe import RECIPES

LIMIT_S = 60.0
MINIMUM_ACCURACY = 0.98


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        seconds = time_to_build(repository)
        share = served_accuracy(repository)
        version = repository / DIGITS / "1"
        model_bytes = (version / "model.onnx").stat().st_size
        folded = json.loads((version / "report.json").read_text())["fold"]["summary"]
    all_folded = folded["folded"] == folded["found"]
    print(heading("build"))
    print(f"\n`foldtrain build {DIGITS}`\n\n| | measured | must be | holds |\n|---|---|---|---|")
    print(f"| wall time, train to published version | {seconds:.1f} s | {LIMIT_S:g} s | {shown(seconds <= LIMIT_S)} |")
    print(f"| test accuracy, served | {share:.4f} | {MINIMUM_ACCURACY} | {shown(share >= MINIMUM_ACCURACY)} |")
    print(f"| BatchNormalization folded | {folded['folded']} of {folded['found']} | all | {shown(all_folded)} |")
    print(f"| model.onnx | {model_bytes / 1000:.0f} kB | | |")
    if seconds > LIMIT_S or share < MINIMUM_ACCURACY or not all_folded:
        sys.exit(1)


def time_to_build(repository: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(
        [str(COMMANDS / "foldtrain"), "build", DIGITS, "--repository", str(repository)],
        env=clean_environment(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def served_accuracy(repository: Path) -> float:
    """Share of the held-out digits that get their label over HTTP."""
    data = RECIPES[DIGITS].data
    held_out = datasets.load(data.source, data.options()).test
    with foldserve("--model-repository", repository) as service:

        def predict(images: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
            (logits,) = service.infer(DIGITS, image_input(images)).json()["outputs"]
            return np.reshape(logits["data"], logits["shape"])

        return accuracy(predict, held_out)


def shown(holds: bool) -> str:
    return "yes" if holds else "NO"


if __name__ == "__main__":
    main()
