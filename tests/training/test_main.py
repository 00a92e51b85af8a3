"""The command `foldtrain`: exit codes, one line for every mistake, nothing heavy before it is needed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import partial
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


COMMANDS = ("build", "train", "doctor", "export", "fold", "verify", "publish")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_needs_nothing_but_pydantic(arguments) -> None:
    heavy = {"torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "sklearn", "safetensors", "training.directories"}
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
    assert {key.partition(".")[0] for key in keys} == set(Recipe.model_fields) - {"chosen"}
    assert str(RECIPES["digits"].epochs) in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["dance"], "invalid choice: 'dance'", id="unknown command"),
        pytest.param(["build"], "required: SPEC", id="no recipe"),
        pytest.param(["build", "unicorns"], "unknown recipe 'unicorns'; known are digits", id="unknown recipe"),
        pytest.param(
            ["build", "digits", "--set", "epoch=3"], "unknown key 'epoch'; known here are name,", id="unknown key"
        ),
        pytest.param(["train", "my.yaml", "--out", "r"], "my.yaml: cannot be read: No such file", id="no such recipe"),
        pytest.param(["train", "digits"], "required: --out", id="no place for a run"),
        pytest.param(
            ["train", "digits", "--out", "r", "--preset", "x"], "--preset x: 'x' is not a known preset", id="no preset"
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
            ["fold", "file", "-o", "o", "--report", "r.txt"], "does not end in .json or .html", id="no such report"
        ),
        pytest.param(["fold", "file", "-o", "o", "--profile", "abacus"], "invalid choice: 'abacus'", id="no profile"),
        pytest.param(
            ["fold", "file", "-o", "o", "--input-shape", "x=a"], "expected NAME=SIZES", id="shape without sizes"
        ),
        pytest.param(["export", "-o", "out.onnx"], "required: SPEC", id="nothing to export"),
        pytest.param(["export", "resnet18", "-o", "out.onnx"], "'resnet18': expected py:package", id="no kind of SPEC"),
        pytest.param(["export", "file:absent.py:f", "-o", "out.onnx"], "there is no file absent.py", id="no such file"),
        pytest.param(["export", "py:x:f", "-o", "o", "--input-shape", "x=1,b"], "expected SIZES or", id="bad sizes"),
        pytest.param(["export", "py:x:f", "-o", "o", "--input-dtype", "x=int3"], "expected TYPE or", id="bad type"),
        pytest.param(
            ["export", "py:x:f", "-o", "o", "--dtype", "fp8"], "invalid choice: 'fp8'", id="no such precision"
        ),
        pytest.param(["export", "py:x:f", "-o", "o", "--mean", "1,x"], "is no list of numbers", id="bad mean"),
        pytest.param(["export", "py:x:f", "-o", "o", "--std", "nan"], "is no list of numbers", id="not a number"),
        pytest.param(["export", "py:x:f", "-o", "o", "--opset", "-1"], "is not a positive integer", id="bad opset"),
        pytest.param(
            ["export", "py:x:f", "-o", "o", "--static-batch", "--dynamic-batch"], "not allowed with", id="both batches"
        ),
        pytest.param(["doctor", "file"], "name the network with --model SPEC", id="a checkpoint of what?"),
        pytest.param(["doctor", "file", "--model", "py:x:f", "--html", "r.txt"], "does not end in .html", id="no page"),
        pytest.param(["doctor", "absent", "--model", "py:x:f"], "absent: there is no such file", id="no checkpoint"),
        pytest.param(["verify", "file"], "required: B.onnx", id="nothing to compare with"),
        pytest.param(["verify", "file", "absent"], "file: is not an ONNX model", id="no model to compare"),
        pytest.param(
            ["verify", "file", "file", "--report", "r.html"], "does not end in .json", id="a comparison is no page"
        ),
        pytest.param(["publish", "file"], "required: --name", id="no name to publish under"),
        pytest.param(["publish", "file", "--name", "a/b"], "'a/b' is not a model name", id="bad name to publish under"),
        pytest.param(["publish", "file", "--name", "a"], "file: is not an ONNX model", id="no model to publish"),
        pytest.param(
            ["publish", "file", "--name", "a", "--max-batch-size", "-1"],
            "'-1' is not a number of rows: a positive integer, or 0",
            id="bad rows",
        ),
        pytest.param(["publish", "file", "--name", "a", "--replace", "0"], "'0' is not a version", id="replace 0"),
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


@pytest.mark.parametrize("arguments", [["--repository", "file"], ["--set", "name=../x"]], ids=["place", "name"])
def test_a_place_that_nothing_can_be_published_at_is_told_before_torch_is_imported(arguments, tmp_path) -> None:
    (tmp_path / "file").write_text("no directory")

    ran = run("build", "digits", *arguments, code="import sys; sys.modules['torch'] = None", cwd=tmp_path)

    assert ran.returncode == 2
    assert "torch" not in ran.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        pytest.param("torch", ["build", "digits"], "training", id="build without torch"),
        pytest.param("sklearn", ["build", "digits"], "training", id="build without scikit-learn"),
        pytest.param("yaml", ["train", "my.yaml", "--out", "r"], "training", id="train from YAML without its reader"),
        pytest.param("onnx_ir", ["fold", "in.onnx", "-o", "out.onnx"], "fold", id="fold without onnx-ir"),
        pytest.param("onnx_ir", ["verify", "a.onnx", "b.onnx"], "fold", id="verify without onnx-ir"),
        pytest.param("onnx", ["publish", "a.onnx", "--name", "a"], "fold", id="publish without onnx"),
        pytest.param("torch", ["export", "py:x:f", "-o", "out.onnx"], "training", id="export without torch"),
        pytest.param("torch", ["doctor", "a.pt", "--model", "py:x:f"], "training", id="doctor without torch"),
        pytest.param("safetensors", ["export", "py:x:f", "-o", "out.onnx"], "training", id="export without weights"),
    ],
)
def test_a_missing_extra_is_named(missing, arguments, extra, tmp_path) -> None:
    ran = run(*arguments, code=f"import sys; sys.modules[{missing!r}] = None", cwd=tmp_path)

    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1] == (
        f"foldtrain: error: this needs {missing}, which is not installed: pip install 'foldserve[{extra}]'"
    )
    assert "Traceback" not in ran.stderr


def test_a_missing_tensorboard_is_named_and_what_was_said_stays_for_another_try(capsys, monkeypatch, tmp_path) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    settings = ["--set", "tensorboard=true", "--set", "epochs=1"]

    assert command.main(["train", "digits", "--out", str(tmp_path / "r"), *settings]) == 2

    assert capsys.readouterr().err == (
        "foldtrain: error: this needs tensorboard, which is not installed: pip install 'foldserve[tensorboard]'\n"
    )


def test_training_tells_its_choices_and_leaves_a_run_that_needs_nothing_else(capsys, tmp_path) -> None:
    (tmp_path / "my.yaml").write_text("data: {source: digits}\narchitecture: {options: {widths: [4, 4, 4, 4, 4, 4]}}\n")
    run, settings = tmp_path / "run", ["--set", "epochs=1", "--set", "batch_size=256"]

    assert command.main(["train", str(tmp_path / "my.yaml"), "--out", str(run), "--find-lr", *settings]) == 0
    told = capsys.readouterr().out.splitlines()
    (tmp_path / "my.yaml").unlink()
    assert command.main(["resume", str(run)]) == 0

    assert told[0] == f"train: {tmp_path / 'my.yaml'} into {run}"
    recipe = json.loads((run / "recipe.json").read_text())
    rate = recipe["optimiser"]["learning_rate"]
    assert f"chosen: optimiser.learning_rate={rate} (found by a trial with rising rates on a copy)" in told
    choices = [line for line in told if line.startswith("chosen: ")]
    assert [key for key in recipe["chosen"] if not any(f" {key}=" in line for line in choices)] == []
    assert len(choices) == len({*recipe["chosen"].values()})
    assert "epochs" not in recipe["chosen"]
    assert (run / "curves.svg").read_text().startswith("<svg ")


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'training.typo'", name="training.typo")

    monkeypatch.setattr("training.recipe_sources.ask", broken)
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
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, with its heirs
    with subprocess.Popen(
        build, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as running:
        assert running.stderr
        assert running.stderr.readline().startswith("train ")
        running.send_signal(signal.SIGINT)
        try:
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()

    assert (running.returncode, out, err) == (130, "", "")
    assert not (tmp_path / "r").exists()


def test_build_says_where_the_version_is_and_puts_progress_on_stderr(capsys, tmp_path) -> None:
    quick = ["--set", "epochs=2", "--set", "minimum_test_accuracy=0"]

    code = command.main(["build", "digits", "--repository", str(tmp_path / "r"), *quick])

    told = capsys.readouterr()
    assert code == 0
    assert told.out.startswith(f"published {tmp_path / 'r' / 'digits' / '1'}\n")
    steps = ["train", "freeze", "doctor", "export", "fold", "verify", "publish"]
    assert [line.split()[0] for line in told.err.splitlines()] == steps


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


def saved(folder: Path, *texts: str) -> list[Path]:
    import onnx_ir as ir

    paths = [folder / f"{number}.onnx" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        ir.save(ir.from_onnx_text(text), path)
    return paths


def test_fold_without_the_proof_says_so_in_both_reports(capsys, tmp_path) -> None:
    (source,) = saved(tmp_path, MATMUL_BN)
    reports = [tmp_path / "r.json", tmp_path / "r.html"]

    code = command.main(
        f"fold {source} -o {tmp_path / 'out.onnx'} --no-verify --profile generic --report {reports[0]} --report "
        f"{reports[1]}".split()
    )

    assert code == 0
    told = json.loads(reports[0].read_text())
    assert (told["verify"], told["profile"]) == ("skipped", "generic")
    assert "<html" in reports[1].read_text()
    assert "not verified" in capsys.readouterr().out


PRELU_BN = """
<ir_version: 10, opset_import: ["" : 20]>
net (float[2,1,4,4] x) => (float[2,1,4,4] y) <
    float[2,1,1,1] stem = {1.0, -2.0}, float[2,1,1] slope = {0.5, 0.25}, float[1,2,3,1] body = {1, 2, 3, 4, 5, 6},
    float[2] gamma = {1, 2}, float[2] beta = {3, 4}, float[2] mean = {0, 1}, float[2] var = {4, 9}
> {
    c = Conv (x, stem) p = PRelu (c, slope) b = BatchNormalization (p, gamma, beta, mean, var)
    y = Conv <pads = [1, 0, 1, 0]> (b, body)
}"""


@pytest.mark.parametrize(("option", "left"), [("", ["BatchNormalization"]), ("--widen", [])])
def test_fold_widens_where_that_is_asked_for(capsys, tmp_path, option, left) -> None:
    import onnx_ir as ir

    (source,) = saved(tmp_path, PRELU_BN)

    assert command.main(f"fold {source} -o {tmp_path / 'out.onnx'} {option}".split()) == 0

    assert [node.op_type for node in ir.load(tmp_path / "out.onnx").graph] == ["Conv", "PRelu", *left, "Conv"]
    assert ("--widen folds it" in capsys.readouterr().out) is not bool(option)


@pytest.mark.parametrize(("other", "code", "told"), [("4, 9", 0, "agree"), ("4, 8", 1, "differ")])
def test_verify_answers_with_its_exit_code(capsys, tmp_path, other, code, told) -> None:
    first, second = saved(tmp_path, MATMUL_BN, MATMUL_BN.replace("var = {4, 9}", f"var = {{{other}}}"))

    assert command.main(["verify", str(first), str(second), "--report", str(tmp_path / "r.json")]) == code

    shown = capsys.readouterr()
    assert shown.out.startswith(f"{first} and {second} {told}\n")
    assert shown.err == ""
    assert json.loads((tmp_path / "r.json").read_text())["agree"] is (code == 0)


def test_publish_takes_its_arguments_to_the_repository(capsys, tmp_path) -> None:
    import numpy as np

    (source,) = saved(tmp_path, MATMUL_BN)
    (tmp_path / "labels").write_text("no\nyes\n")
    np.savez(tmp_path / "x.npz", x=np.eye(4, 3, dtype=np.float32))
    repository = tmp_path / "models"

    code = command.main(
        f"publish {source} --name theirs --repository {repository} --labels {tmp_path / 'labels'} --samples "
        f"{tmp_path / 'x.npz'} --max-batch-size 8".split()
    )

    assert code == 0
    config = json.loads((repository / "theirs" / "config.json").read_text())
    assert (config["max_batch_size"], config["outputs"][0]["labels"]) == (8, "labels.txt")
    assert json.loads((repository / "theirs" / "1" / "report.json").read_text())["golden"]["samples"] == 4
    assert capsys.readouterr().out.startswith(f"published {repository / 'theirs' / '1'}\n")


NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2)).eval()
"""


def test_export_takes_its_arguments_to_the_file_and_the_report(capsys, tmp_path, monkeypatch) -> None:
    import onnx_ir as ir

    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    wishes = (
        "--input-shape input=1,3,5,5 --input-dtype input=float32 --static-batch --opset 21 --dtype fp16 "
        "--profile generic --widen --mean 0.4,0.5,0.6 --std 0.2,0.2,0.2 --report r.json"
    )

    code = command.main(f"export file:nets.py:make -o out.onnx {wishes}".split())

    told = capsys.readouterr()
    assert (code, told.err) == (0, "")
    model = ir.load("out.onnx")
    assert [(value.name, value.dtype, str(value.shape)) for value in model.graph.inputs] == [
        ("input", ir.DataType.FLOAT16, "[1,3,5,5]")
    ]
    assert model.opset_imports[""] == 21
    assert json.loads(Path("r.json").read_text())["half"]["dtype"] == "FLOAT16"
    assert "torch's own answer against ONNX Runtime's, 1 rows: " in told.out


def test_a_network_in_training_mode_is_one_line_and_no_file(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS.replace(".eval()", ""))

    assert command.main(["export", "file:nets.py:make", "-o", "out.onnx", "--input-shape", "1,3,5,5"]) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("foldtrain: error: module '(the whole network)' (Sequential) is in training mode")
    assert told.err.count("\n") == 1
    assert not Path("out.onnx").exists()


def test_answers_that_differ_are_exit_code_1() -> None:
    from training.export_file import AnswersDiffer
    from training.half_precision import HalfDiffers

    assert {command._exit_code(error("text")) for error in (AnswersDiffer, HalfDiffers)} == {1}


def test_the_profiles_offered_are_those_of_the_engine() -> None:
    from training.fold import Profile

    assert tuple(profile.value for profile in Profile) == command.PROFILES
