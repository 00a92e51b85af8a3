"""`foldtrain fold` on damaged and hostile files: one clear line, code 2 and no file; or a file that is right."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.training.damaged_files import (
    BESIDE,
    GOOD,
    HARMLESS,
    NO_FILES,
    NOT_FINITE,
    REFUSED,
    SOURCE,
    Damage,
)
from training.__main__ import main
from training.algebra import Algebra
from training.errors import UserError
from training.fold import read_model
from training.reference import evaluate
from training.samples import make_samples

CUTS, FLIPS = 20, 200
TARGET = "out.onnx"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command on `in.onnx` in the folder: its exit code, and what it said of the file on stderr."""

    def run(*options: str) -> tuple[int, str]:
        source, target = tmp_path / SOURCE, tmp_path / TARGET
        code = main(["fold", str(source), "-o", str(target), "--profile", "generic", *options])
        said = capsys.readouterr()
        assert target.exists() == (code == 0)
        assert not list(tmp_path.glob(".*")), "something temporary was left behind"
        assert said.out.replace("\n", "").isprintable()
        if code:
            assert said.out == ""
            assert said.err.startswith("foldtrain: error: ") and said.err.endswith("\n")
            assert said.err[:-1].isprintable(), "a name in a file would give orders to the terminal"
            assert len(said.err) < 1000
        return code, said.err

    return run


@pytest.mark.parametrize("good", GOOD)
def test_the_good_files_fold_and_are_proved(good: str, tmp_path: Path, run) -> None:
    """Without this, the damaged ones could be refused for any reason."""
    GOOD[good](tmp_path)

    assert run() == (0, "")
    assert not _holds_batchnorm(onnx.load(tmp_path / TARGET).graph)


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED.keys())
def test_a_damaged_file_gets_one_line_that_says_what_is_wrong(damage: Damage, tmp_path: Path, run) -> None:
    damage.write(tmp_path)

    code, said = run()

    assert code == 2
    assert damage.told in said


@pytest.mark.parametrize("damage", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_strange_file_that_is_a_model_is_folded_and_proved(damage: Damage, tmp_path: Path, run) -> None:
    damage.write(tmp_path)

    assert run() == (0, "")
    read_model(tmp_path / TARGET)


@pytest.mark.parametrize("damage", NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_where_nothing_finite_comes_out_nothing_is_proved_and_nothing_written(
    damage: Damage, tmp_path: Path, run
) -> None:
    damage.write(tmp_path)

    code, said = run()

    assert code == 1, "the file is sound; it is the proof that fails"
    assert "output 'y' has no finite number in any sample, so that nothing was compared" in said


@pytest.mark.parametrize(("do", "told"), BESIDE.values(), ids=BESIDE.keys())
def test_data_beside_the_file_that_is_no_data_is_refused(
    do: Callable[[Path], None], told: str, tmp_path: Path, run
) -> None:
    GOOD["external data"](tmp_path)
    do(tmp_path)

    code, said = run()

    assert code == 2
    assert told in said


@pytest.mark.parametrize(("do", "told"), NO_FILES.values(), ids=NO_FILES.keys())
def test_what_is_no_file_or_no_model_is_refused(do: Callable[[Path], None], told: str, tmp_path: Path, run) -> None:
    do(tmp_path / SOURCE)

    code, said = run()

    assert code == 2
    assert told in said


@pytest.mark.parametrize("good", GOOD)
def test_a_file_cut_short_anywhere_is_refused(good: str, tmp_path: Path, run) -> None:
    GOOD[good](tmp_path)
    whole = (tmp_path / SOURCE).read_bytes()
    for length in np.linspace(0, len(whole) - 1, CUTS, dtype=int):
        (tmp_path / SOURCE).write_bytes(whole[:length])

        code, said = run()

        assert code == 2, f"cut after {length} bytes"
        assert "is not an ONNX model" in said


@pytest.mark.parametrize("good", GOOD)
def test_any_bit_may_flip(good: str, tmp_path: Path, run) -> None:
    """A bit of a weight makes another model, which folds; all others that matter are noticed."""
    GOOD[good](tmp_path)
    whole = (tmp_path / SOURCE).read_bytes()
    bits = np.random.default_rng(5).choice(len(whole) * 8, FLIPS, replace=False)
    codes = set()
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / SOURCE).write_bytes(damaged)
        (tmp_path / TARGET).unlink(missing_ok=True)

        code, _ = run("--no-verify")

        assert code in (0, 2), f"bit {bit}"
        codes.add(code)
        if code == 0:
            assert _same_function(tmp_path), f"bit {bit}"
    assert codes == {0, 2}


def _same_function(folder: Path) -> bool:
    original = read_model(folder / SOURCE)
    try:
        sample = make_samples(original)[-1]
        evaluate(original, sample)
    except UserError:  # the damage is in what an input is, or within a function: the proof refuses it
        return True
    algebra = Algebra(original, read_model(folder / TARGET))
    return all(finding.holds for finding in algebra.judge(sample, algebra.expected(sample)))


def _holds_batchnorm(graph: onnx.GraphProto) -> bool:
    inside = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return any(node.op_type == "BatchNormalization" for node in graph.node) or any(map(_holds_batchnorm, inside))


@pytest.mark.parametrize("place", ["a pipe", "a device", "a folder", "below a file"])
def test_a_place_where_no_file_can_appear_is_refused(place: str, tmp_path: Path, capsys) -> None:
    """Root may replace /dev/null by a model: all that is ever written there would then fill a disk."""
    GOOD["raw export"](tmp_path)
    target = tmp_path / "target"
    if place == "a pipe":
        os.mkfifo(target)
    elif place == "a device":
        target.symlink_to("/dev/null")
    elif place == "a folder":
        target.mkdir()
    else:
        target.touch()
        target = target / TARGET
    before = sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir())

    code = main(["fold", str(tmp_path / SOURCE), "-o", str(target)])

    said = capsys.readouterr().err
    assert code == 2
    assert str(target) in said and said.count("\n") == 1
    assert sorted((path.name, path.lstat().st_mode) for path in tmp_path.iterdir()) == before
