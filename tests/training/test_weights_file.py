"""Weights into a module: from both kinds of file, nested or wrapped, and not one name or shape off."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from training.weights_file import WeightsRefused, load_weights


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def same(first: nn.Module, second: nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


SAVED: Mapping[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "w.pt": lambda state: state,
    "nested.pt": lambda state: {"epoch": 3, "state_dict": state},
    "model.pth": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "twice.pt": lambda state: {"state_dict": {"model": state}},
    "parallel.pt": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled.pt": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "w.safetensors": lambda state: state,
}


def save(path: Path, held: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(held, path)
    else:
        torch.save(held, path)
    return path


@pytest.mark.parametrize("name", SAVED)
def test_every_weight_and_statistic_is_set(tmp_path: Path, name: str) -> None:
    trained, fresh = network(1), network(2)
    trained[1].running_mean.fill_(3.0)
    load_weights(fresh, save(tmp_path / name, SAVED[name](trained.state_dict())))
    assert same(fresh, trained)


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network(1).state_dict().items()
    }
    fresh = network(2)
    load_weights(fresh, save(tmp_path / "w.safetensors", state))
    assert fresh[0].weight.dtype == torch.float32
    assert torch.equal(fresh[0].weight, state["0.weight"].float())


def test_a_file_of_an_old_torch_may_lack_the_count_of_batches(tmp_path: Path) -> None:
    trained = network(1)
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    fresh = network(2)
    load_weights(fresh, save(tmp_path / "w.pt", state))
    assert same(fresh, trained)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param(lambda s: s.pop("1.running_var"), "missing 1.running_var", id="missing"),
        pytest.param(lambda s: s.update(extra=torch.zeros(1)), "unexpected extra", id="unexpected"),
        pytest.param(
            lambda s: s.update({"0.bias": torch.zeros(5)}), "0.bias has shape [5], expected [2]", id="wrong shape"
        ),
        pytest.param(
            lambda s: (s.update({f"x{i}": torch.zeros(1) for i in range(6)}), s.pop("0.bias")),
            "missing 0.bias; unexpected x0, x1, x2, x3 and 2 more",
            id="both, many",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_names_and_shapes_that_do_not_fit_are_told_in_one_line(tmp_path: Path, change, told: str, ending: str) -> None:
    state = dict(network(1).state_dict())
    change(state)
    path = save(tmp_path / f"w.{ending}", state)
    fresh, untouched = network(2), network(2)
    with pytest.raises(WeightsRefused) as refused:
        load_weights(fresh, path)
    assert str(refused.value).startswith(f"{path}: is not for this model: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert same(fresh, untouched)


class _Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"0.weight": _Malicious()}, protocol=2))


CONTENTS: Mapping[str, tuple[str, Callable[[Path], object], str]] = {
    "absent": ("w.pt", lambda _: None, "No such file"),
    "empty": ("w.pt", lambda path: path.write_bytes(b""), "damaged"),
    "text": ("w.pt", lambda path: path.write_text("no weights"), "holds more than tensors, or is no file of torch's"),
    "text as safetensors": ("w.safetensors", lambda path: path.write_text("no weights"), "damaged"),
    "a pickle of what is not there": ("w.pt", lambda path: path.write_bytes(b"\x80\x02q\x00."), "damaged"),
    "a list of users": ("w", lambda path: path.write_text("root:x:0:0:root:/root:/bin/bash\n"), "damaged"),
    "code": ("w.pt", _pickled, "holds more than tensors"),
    "a whole module": ("w.pt", lambda path: torch.save(network(1), path), "save the state dict"),
    "a tensor": ("w.pt", lambda path: torch.save(torch.zeros(3), path), "holds a Tensor"),
    "numbers": (
        "w.pt",
        lambda path: torch.save({"loss": 3.0}, path),
        "holds a dict with loss, expected tensors by name",
    ),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_file_without_weights_is_one_line_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, told = CONTENTS[case]
    write(tmp_path / name)
    with pytest.raises(WeightsRefused) as refused:
        load_weights(network(2), tmp_path / name)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("before", [b"", b"]", b"}", b"N", b"(", b"]]", b"NN"], ids=repr)
def test_whatever_a_damaged_pickle_makes_of_its_stack_is_one_line(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "w.pt"
    for opcode in range(256):
        path.write_bytes(b"\x80\x02" + before + bytes([opcode]) + b"\x00\x00\x00\x00\n\n.")
        with pytest.raises(WeightsRefused) as refused:
            load_weights(network(2), path)
        assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("unmade", [nn.Sequential(nn.LazyLinear(3)), nn.Linear(2, 3, device="meta")])
def test_a_model_whose_weights_are_not_made_yet_is_told(tmp_path: Path, unmade: nn.Module) -> None:
    path = save(tmp_path / "a.pt", nn.Linear(2, 3).state_dict())
    with pytest.raises(
        WeightsRefused, match=r"a.pt: the model's own (0\.)?weight has no values yet .*; let the factory"
    ):
        load_weights(unmade, path)
