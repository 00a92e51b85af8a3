"""A checkpoint comes back bit for bit, is whole or not there, and runs nothing when it is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from training.checkpoint import INDEX, CheckpointRefused, Snapshot, load, save
from training.errors import UserError


def moment(step: int = 7) -> tuple[nn.Module, torch.optim.Optimizer, Snapshot]:
    """Of a network with shared weights and an optimiser whose state has tensors, numbers and nothing."""
    torch.manual_seed(step)
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "norm": nn.BatchNorm1d(3)})
    module["b"] = module["a"]
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    module["norm"](module["b"](module["a"](torch.randn(5, 3)))).square().sum().backward()
    optimiser.step()
    return (
        module,
        optimiser,
        Snapshot(step, module.state_dict(), optimiser.state_dict(), {"loss": 0.1 + 0.2, "x": None}),
    )


def test_everything_comes_back_bit_for_bit(tmp_path: Path):
    module, optimiser, snapshot = moment()
    save(tmp_path / "c", snapshot)
    found = load(tmp_path / "c")

    assert (found.step, found.values) == (7, snapshot.values)
    assert [*found.module] == [*sorted(snapshot.module)] or {*found.module} == {*snapshot.module}
    assert all(torch.equal(found.module[name], value) for name, value in snapshot.module.items())
    fresh, other, _ = moment(8)
    fresh.load_state_dict(found.module)
    other.load_state_dict(dict(found.optimiser))
    for one, another in ((module, fresh), (optimiser, other)):
        torch.testing.assert_close(one.state_dict(), another.state_dict(), rtol=0, atol=0)


def test_an_optimiser_that_has_not_made_a_step_has_a_state_as_well(tmp_path: Path):
    module = nn.Linear(2, 2)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    save(tmp_path, Snapshot(0, module.state_dict(), optimiser.state_dict(), {}))

    optimiser.load_state_dict(dict(load(tmp_path).optimiser))


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path):
    for step in (7, 8):
        save(tmp_path, moment(step)[2])

    assert load(tmp_path).step == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, "step-000000008.safetensors"]


@pytest.mark.parametrize("written", [1, 2])
def test_a_process_that_dies_while_it_writes_leaves_the_old_one(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save(tmp_path, moment(7)[2])
    replace, calls = Path.replace, []

    def dies(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == written:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, moment(8)[2])

    assert load(tmp_path).step == 7


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("something was run",)


def damage(folder: Path, name: str) -> None:
    index, tensors = folder / INDEX, folder / "step-000000007.safetensors"
    told = json.loads(index.read_text())
    match name:
        case "no index":
            index.unlink()
        case "no tensors":
            tensors.unlink()
        case "cut tensors":
            tensors.write_bytes(tensors.read_bytes()[:-1])
        case "another's tensors":
            tensors.write_bytes(pickle.dumps(Evil()))
        case "a pickle":
            index.write_bytes(pickle.dumps(Evil()))
        case "no json":
            index.write_text("{")
        case "a list":
            index.write_text("[]")
        case "no step":
            index.write_text(json.dumps({key: value for key, value in told.items() if key != "step"}))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no index", "there is no checkpoint to go on from"),
        ("no tensors", "there is no checkpoint to go on from"),
        ("cut tensors", "is damaged"),
        ("another's tensors", "is damaged"),
        ("a pickle", "cannot be read as a checkpoint"),
        ("no json", "cannot be read as a checkpoint"),
        ("a list", "cannot be read as a checkpoint"),
        ("no step", "cannot be read as a checkpoint"),
    ],
)
def test_a_damaged_one_is_refused_in_one_line_with_its_path(name: str, reason: str, tmp_path: Path):
    save(tmp_path, moment()[2])
    damage(tmp_path, name)

    with pytest.raises(CheckpointRefused) as caught:
        load(tmp_path)

    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith(str(tmp_path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
