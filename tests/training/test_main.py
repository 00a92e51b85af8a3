"""The command `foldtrain`: exit codes, one line for every mistake, nothing heavy before it is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training import __main__ as command
from training.recipe import RECIPES, Recipe

MATMUL_BN = """
<ir_version: 10, opset_import: ["" : 20]>
tiny (float[N, 3] x) => (float[N, 2] y)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[2] gamma = {2, 3}, float[2] beta = {1, -1}, float[2] mean = {0.5, 4},
 float[2] var = {4, 9}>
{
    h = MatMul(x, w)
    y = BatchNormalization(h, gamma, beta, mean, var)
}
"""

FOLDTRAIN = [sys.executable, "-m", "training"]


def run(*arguments: str | Path, code: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`foldtrain`, in a process of its own; `code` runs first."""
    start = [sys.executable, "-c", f"{code}\nimport sys; from training.__main__ import main; sys.exit(main())"]
    return subprocess.run([*start, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["fold", "--help"]], ids=" ".join)
def test_help_needs_nothing_but_pydantic(arguments) -> None:
    heavy = "{'torch', 'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'sklearn', 'training.pipeline', 'training.fold_file'}"
    code = f"import atexit, sys; atexit.register(lambda: print(sorted({heavy} & set(sys.modules)), file=sys.stderr))"

    shown = run(*arguments, code=code)

    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: foldtrain")
    assert shown.stderr == "[]\n"


def test_build_help_lists_every_key_of_set_with_its_value(capsys) -> None:
    with pytest.raises(SystemExit):
        command.main(["build", "--help"])

    told = capsys.readouterr().out
    keys = [line.split()[0] for line in told.partition("keys for --set")[2].splitlines()[1:]]
    assert "optimiser.learning_rate" in keys
    assert {key.partition(".")[0] for key in keys} == set(Recipe.model_fields)
    assert str(RECIPES["digits"].epochs) in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["dance"], "invalid choice: 'dance'", id="unknown command"),
        pytest.param(["build"], "required: RECIPE", id="no recipe"),
        pytest.param(["build", "unicorns"], "unknown recipe 'unicorns'; known are digits", id="unknown recipe"),
        pytest.param(
            ["build", "digits", "--set", "epoch=3"], "unknown key 'epoch'; known here are name,", id="unknown key"
        ),
        pytest.param(["build", "digits", "--set", "epochs=x"], "valid integer", id="bad value"),
        pytest.param(["build", "digits", "--replace", "0"], "'0' is not a version: a positive integer", id="version 0"),
        pytest.param(["build", "digits", "--replace", "new"], "'new' is not a version", id="version not a number"),
        pytest.param(["build", "digits", "--set", "name=../x"], "'../x' is not a model name", id="name outside"),
        pytest.param(
            ["build", "digits", "--repository", "file"], "'file' is not a directory", id="repository is a file"
        ),
        pytest.param(["fold", "absent.onnx", "-o", "out.onnx"], "absent.onnx", id="no file to fold"),
        pytest.param(["fold", "file", "-o", "out.onnx"], "file", id="not an ONNX file"),
        pytest.param(["fold", "file"], "required: -o", id="no output"),
        pytest.param(
            ["fold", "file", "-o", "o", "--report", "r.html"], "does not end in .json", id="report is not JSON"
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, told, tmp_path) -> None:
    (tmp_path / "file").write_text("neither a directory nor ONNX")

    ran = run(*arguments, cwd=tmp_path)

    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("foldtrain: error: ")
    assert ran.stderr.count("\n") == 1
    assert told in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        pytest.param("torch", ["build", "digits"], "training", id="build without torch"),
        pytest.param("sklearn", ["build", "digits"], "training", id="build without scikit-learn"),
        pytest.param("onnx_ir", ["fold", "in.onnx", "-o", "out.onnx"], "fold", id="fold without onnx-ir"),
    ],
)
def test_a_missing_extra_is_named(missing, arguments, extra, tmp_path) -> None:
    ran = run(*arguments, code=f"import sys; sys.modules[{missing!r}] = None", cwd=tmp_path)

    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        f"foldtrain: error: this needs {missing}, which is not installed: pip install 'foldserve[{extra}]'"
    )
    assert "Traceback" not in ran.stderr


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'training.typo'", name="training.typo")

    monkeypatch.setattr(command, "find_recipe", broken)
    with pytest.raises(ModuleNotFoundError, match=r"training\.typo"):
        command.main(["build", "digits"])


def test_failed_checks_are_exit_code_1_and_publish_nothing(capsys, tmp_path) -> None:
    repository = tmp_path / "r"

    code = command.main(
        ["build", "digits", "--repository", str(repository), "--set", "epochs=1", "--set", "minimum_test_accuracy=1"]
    )

    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("foldtrain: error: recipe 'digits' reached ")
    assert not repository.exists()


def test_a_failed_verification_is_exit_code_1(capsys) -> None:
    from training.verify import VerificationFailed
    from training.verify_report import VerifyReport

    failed = VerificationFailed(VerifyReport(outputs=(), samples=1, outputs_compared=0, oracle="", failure="differs"))

    assert command._exit_code(failed) == command.CHECKS_FAILED == 1


def test_control_c_while_training_is_quiet_and_publishes_nothing(tmp_path) -> None:
    build = [*FOLDTRAIN, "build", "digits", "--repository", str(tmp_path / "r"), "--set", "epochs=100000"]
    with subprocess.Popen(build, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        assert running.stderr.readline().startswith("train ")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)

    assert (running.returncode, out, err) == (130, "", "")
    assert not (tmp_path / "r").exists()


def test_build_says_where_the_version_is_and_puts_progress_on_stderr(capsys, tmp_path) -> None:
    quick = ["--set", "epochs=2", "--set", "minimum_test_accuracy=0"]

    code = command.main(["build", "digits", "--repository", str(tmp_path / "r"), *quick])

    told = capsys.readouterr()
    assert code == 0
    assert told.out.startswith(f"published {tmp_path / 'r' / 'digits' / '1'}\n")
    assert [line.split()[0] for line in told.err.splitlines()] == ["train", "export", "fold", "verify", "publish"]


def test_fold_takes_its_arguments_to_the_file_and_the_report(capsys, tmp_path) -> None:
    import numpy as np
    import onnx_ir as ir

    source, target, report, samples = (tmp_path / name for name in ("in.onnx", "out.onnx", "report.json", "x.npz"))
    ir.save(ir.from_onnx_text(MATMUL_BN), source)
    np.savez(samples, x=np.eye(4, 3, dtype=np.float32))

    code = command.main(f"fold {source} -o {target} --report {report} --samples {samples} --input-shape x=4,3".split())

    assert code == 0
    assert [node.op_type for node in ir.load(target).graph if node.op_type == "BatchNormalization"] == []
    assert json.loads(report.read_text())["summary"]["folded"] == 1
    assert f"wrote {target}" in capsys.readouterr().out
