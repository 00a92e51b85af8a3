"""`foldtrain doctor`: red is exit code 1, what cannot be read is 2 and one line; reports are whole and harmless."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from training import __main__ as command
from training.bn.measure import CannotExamine
from training.command_files import CannotUseFile
from training.doctor import doctor

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()

def bare():
    return nn.Linear(2, 2)
"""
ROWS = 384


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network's code, healthy weights, and the data it learnt its statistics from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    np.savez("data.npz", x=np.random.default_rng(0).standard_normal((ROWS, 6)))
    network = healthy()
    safetensors.torch.save_file(network.state_dict(), "good.safetensors")
    return tmp_path


def healthy() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, momentum=None), nn.ReLU(), nn.Linear(8, 3))
    network.train()
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((ROWS, 6))).float()
    for _ in range(4):
        for batch in rows[torch.randperm(ROWS)].split(48):
            network(batch)
    network[1].num_batches_tracked.fill_(200)
    return network


def saved(network: nn.Module, name: str = "net.pt") -> Path:
    torch.save(network.state_dict(), name)
    return Path(name)


def run(*arguments: str) -> int:
    return command.main(["doctor", *arguments, "--model", "file:net.py:make"])


def test_a_healthy_checkpoint_is_exit_code_0_and_says_what_was_not_made(folder: Path, capsys) -> None:
    code = run("good.safetensors", "--data", "data.npz")

    told = capsys.readouterr().out
    assert code == 0
    assert f"{ROWS} rows in 6 batches" in told
    assert "not made L2  weight decay on gamma and beta: needs the optimiser's groups" in told
    assert told.splitlines()[-1] == "0 red, 0 yellow, 0 note"


def test_without_data_the_checks_of_data_say_so(folder: Path) -> None:
    told = doctor(Path("good.safetensors"), "file:net.py:make").diagnosis

    assert {each.check for each in told.not_made if each.reason == "needs data"} == {"H6", "H7", "H8", "H12"}


def test_a_red_finding_is_exit_code_1_and_the_reports_are_written(folder: Path, capsys) -> None:
    network = healthy()
    network[1].running_mean += 3
    network[1].running_var[2] = -1

    code = run(str(saved(network)), "--data", "data.npz", "--json", "r.json", "--html", "r.html")

    content = json.loads(Path("r.json").read_text())
    assert code == 1
    assert content["healthy"] is False
    assert {("H3", "1"), ("H6", "1")} <= {(each["check"], each["layer"]) for each in content["findings"]}
    assert content["figures"][0]["mean_shift"] > 1
    assert "3 red" in capsys.readouterr().out


def test_facts_of_the_training_make_more_checks(folder: Path) -> None:
    facts = {
        "steps": 100,
        "accumulation": 1,
        "batch_rows": 4,
        "rows": 384,
        "drop_last": True,
        "shuffle": True,
        "learning_rate": 0.1,
        "groups": [{"parameters": ["1.bias"], "weight_decay": 0.1}],
        "fullgraph": False,
        "finished": True,
    }
    Path("facts.json").write_text(json.dumps(facts))

    told = doctor(
        Path("good.safetensors"), "file:net.py:make", data=Path("data.npz"), facts=Path("facts.json")
    ).diagnosis

    assert {finding.check for finding in told.findings} == {"H7", "H9", "L2"}
    assert {each.check for each in told.not_made} == {"H10", "H12"}


def test_another_process_with_other_statistics_is_told(folder: Path) -> None:
    network = healthy()
    network[1].running_mean += 1

    told = doctor(Path("good.safetensors"), "file:net.py:make", ranks=[saved(network)]).diagnosis

    assert [(finding.check, finding.layer) for finding in told.of("red")] == [("H10", "1")]


def test_labels_and_a_mask_are_no_inputs(folder: Path) -> None:
    arrays = dict(np.load("data.npz"))
    np.savez("full.npz", **arrays, labels=np.zeros(ROWS, np.int64), mask=np.arange(ROWS) % 4 > 0)

    told = doctor(Path("good.safetensors"), "file:net.py:make", data=Path("full.npz")).diagnosis

    assert told.examined.padded == 0.25
    assert told.examined.answers
    assert told.examined.answers.accuracy is not None
    assert [finding.check for finding in told.findings if finding.check == "H12"] == ["H12"]


def test_a_file_without_counters_is_not_a_run_of_no_batches(folder: Path) -> None:
    state = {name: value for name, value in healthy().state_dict().items() if "num_batches" not in name}
    torch.save(state, "old.pt")

    told = doctor(Path("old.pt"), "file:net.py:make").diagnosis

    assert "H5" not in {finding.check for finding in told.findings}
    assert [each.layers for each in told.not_made if each.check == "H5"] == [("1",)]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(folder: Path, capsys) -> None:
    Path("evil.pt").write_bytes(pickle.dumps(Evil()))

    assert run("evil.pt") == 2
    assert not Path("ran").exists()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        pytest.param({"x": np.zeros((8, 5))}, "the network does not run on the data: ", id="of another width"),
        pytest.param({"labels": np.zeros(8)}, "holds no input", id="labels alone"),
        pytest.param({"x": np.zeros((8, 6)), "labels": np.zeros(7)}, "labels has 7 rows", id="uneven"),
        pytest.param({"x": np.zeros((1, 6))}, "holds 1 row", id="one row"),
        pytest.param(
            {"x": np.array([[0.0] * 6, [np.nan] * 6])}, "x holds a value that is no finite number, in row 1", id="NaN"
        ),
        pytest.param({"x": np.array(["a", "b"])}, "x holds <U1, expected numbers", id="words"),
    ],
)
def test_data_that_do_not_fit_are_one_line(folder: Path, arrays: dict[str, Any], told: str) -> None:
    np.savez("bad.npz", **arrays)

    with pytest.raises((CannotUseFile, CannotExamine)) as raised:
        doctor(Path("good.safetensors"), "file:net.py:make", data=Path("bad.npz"))

    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        pytest.param(
            '{"stps": 3}', "stps: Extra inputs are not permitted; known are steps, accumulation", id="unknown"
        ),
        pytest.param('{"steps": 0}', "steps: Input should be greater than or equal to 1", id="of no size"),
        pytest.param("steps: 3", "Invalid JSON", id="no JSON"),
    ],
)
def test_facts_that_cannot_be_read_are_one_line(folder: Path, facts: str, told: str, capsys) -> None:
    Path("facts.json").write_text(facts)

    assert run("good.safetensors", "--facts", "facts.json") == 2
    error = capsys.readouterr().err
    assert error.startswith("foldtrain: error: facts.json: ")
    assert told in error
    assert error.count("\n") == 1


def test_a_network_without_batchnorm_is_nothing_to_examine(folder: Path, capsys) -> None:
    assert command.main(["doctor", "good.safetensors", "--model", "file:net.py:bare"]) == 2
    assert "has no BatchNorm layer that could be examined" in capsys.readouterr().err


def test_a_missing_checkpoint_and_a_report_in_its_place_are_refused(folder: Path, capsys) -> None:
    assert run("absent.pt") == 2
    assert "absent.pt: there is no such file" in capsys.readouterr().err
    Path("same.html").write_bytes(Path("good.safetensors").read_bytes())
    assert run("same.html", "--html", "same.html") == 2
    assert "same.html: is the model's own path" in capsys.readouterr().err


# --- the page -----------------------------------------------------------------------------------------------------


def page(folder: Path, checkpoint: str = "good.safetensors", **options: Any) -> str:
    doctor(Path(checkpoint), "file:net.py:make", html_file=Path("page.html"), **options)
    return Path("page.html").read_text()


def test_the_page_holds_its_pictures_and_needs_no_network(folder: Path) -> None:
    told = page(folder, data=Path("data.npz"))

    pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", told, re.S)]
    words = [picture.get("aria-label") for picture in pictures]
    assert words == [
        "drift per layer, in thresholds: means above, variances below",
        "running against population: means, in standard deviations",
        "running against population: variances, as powers of ten",
        "independent values in one row",
        "absolute gammas of 1",
    ]
    assert len(pictures[1].findall("circle")) == 8
    assert not re.search(r"(src|href)=|url\(|<script|https?:", told)


def test_the_page_without_data_says_what_was_not_measured(folder: Path) -> None:
    told = page(folder)

    assert told.count("Not measured: needs data.") == 3
    assert "absolute gammas of 1" in told


def test_names_of_strangers_are_text_on_the_page(folder: Path) -> None:
    named = NET.replace("return nn.Sequential(", "net = nn.Sequential(").replace(
        ".eval()\n\ndef bare", '\n    net.add_module("<b>&", nn.BatchNorm1d(3))\n    return net.eval()\n\ndef bare'
    )
    Path("net.py").write_text(named)
    network = healthy()
    network.add_module("<b>&", nn.BatchNorm1d(3))
    saved(network, "<i>.pt")

    told = page(folder, "<i>.pt")

    assert "<b>" not in told
    assert "<i>" not in told
    assert "&lt;b&gt;&amp;" in told
    assert "&lt;i&gt;.pt" in told
