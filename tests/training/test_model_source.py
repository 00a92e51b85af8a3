"""SPEC to module: the user's code from the user's folders, whatever they are called; one line for what goes wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import training
from training.model_source import Normalisation, SourceRefused, opened

NET = """
import torch
from torch import nn

def make():
    return nn.Linear(3, 2).eval()

def pair():
    return make(), torch.zeros(1, 3)

ready = nn.Linear(3, 4).eval()

class Net(nn.Module):
    pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, empty; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    path = list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    assert sys.path == path


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("spec", ["py:h5_net:{}", "py:h5_nets.net:{}", "file:h5_net.py:{}", "file:h5_nets/net.py:{}"])
def test_a_factory_is_found_by_module_and_by_file(folder: Path, spec: str) -> None:
    write(folder, {"h5_net.py": NET, "h5_nets/__init__.py": "", "h5_nets/net.py": NET})
    with opened(spec.format("make")) as source:
        assert isinstance(source.module, nn.Linear)
        assert source.examples is None
    with opened(spec.format("pair")) as source:
        assert torch.equal(source.examples, torch.zeros(1, 3))
    with opened(spec.format("ready")) as source:
        assert source.module.out_features == 4
    with opened(spec.format("Net")) as source:
        assert source.row == (3, 8, 8)
        assert source.normalisation == Normalisation((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))


def test_a_file_may_import_its_neighbours_and_what_the_current_folder_holds(folder: Path) -> None:
    write(
        folder,
        {
            "deep/model.py": "from h5_neighbour import A\nfrom h5_top import B\nclass Net(A, B): pass\n",
            "deep/h5_neighbour.py": "from torch import nn\nclass A(nn.Module): pass\n",
            "h5_top.py": "class B: pass\n",
        },
    )
    with opened("file:deep/model.py:Net") as source:
        assert [parent.__name__ for parent in type(source.module).__bases__] == ["A", "B"]


def test_code_may_import_when_it_runs(folder: Path) -> None:
    late = "def forward(self, x):\n        import h5_late\n        return h5_late.twice(x)\n"
    net = f"from torch import nn\nclass Net(nn.Module):\n    {late}"
    write(folder, {"h5_lazy.py": net, "h5_late.py": "def twice(x):\n    return x + x\n"})
    with opened("py:h5_lazy:Net") as source:
        assert source.module(torch.ones(1)).item() == 2.0


@pytest.mark.parametrize("spec", ["py:training.nets:make", "file:training/nets.py:make", "file:service/nets.py:make"])
def test_the_user_may_have_packages_of_our_names(folder: Path, spec: str) -> None:
    net = "from {0}.layers import Layer\ndef make():\n    from {0} import late\n    return late.wrapped(Layer())\n"
    for name in ("training", "service"):
        write(
            folder,
            {
                f"{name}/__init__.py": "",
                f"{name}/nets.py": net.format(name),
                f"{name}/layers.py": "from torch import nn\nclass Layer(nn.Identity): pass\n",
                f"{name}/late.py": "from torch import nn\ndef wrapped(layer):\n    return nn.Sequential(layer)\n",
            },
        )
    with opened(spec) as source:
        assert type(source.module[0]).__name__ == "Layer"
    assert sys.modules["training"] is training
    assert Path(sys.modules["training.model_source"].__file__ or "").parent == Path(training.__file__).parent


MISTAKES: Mapping[str, tuple[str, str]] = {
    "nothing": ("", "expected py:package.module:factory"),
    "no kind": ("resnet18", "expected py:package.module:factory"),
    "no factory": ("file:net.py", "expected py:package.module:factory"),
    "empty name": ("timm:", "expected py:package.module:factory"),
    "unknown kind": ("hub:resnet18:x", "expected py:package.module:factory"),
    "no module": ("py:h5_absent.net:make", "there is no module 'h5_absent'"),
    "no submodule": ("py:h5_bad.net:make", "there is no module 'h5_bad.net'"),
    "no file": ("file:absent.py:make", "there is no file absent.py"),
    "no Python": ("file:notes.txt:make", "notes.txt is no Python file"),
    "no such factory": ("file:h5_bad.py:made", "h5_bad.py has no 'made'; it has exits, gives, needs, three"),
    "not a module": ("file:h5_bad.py:gives", "'gives' gave dict, expected an nn.Module or (module, example_inputs)"),
    "three things": ("file:h5_bad.py:three", "'three' gave tuple"),
    "a number": ("file:h5_bad.py:number", "'number' gave int"),
    "raises": ("file:h5_bad.py:needs", "TypeError: needs() missing 1 required positional argument: 'width'"),
    "exits": ("file:h5_bad.py:exits", "SystemExit: 3 (h5_bad.py, line 5)"),
    "syntax": ("file:broken.py:make", "SyntaxError"),
    "imports what is absent": ("py:h5_imports:make", "ModuleNotFoundError: No module named 'h5_nowhere'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_begins_with_the_spec(folder: Path, case: str) -> None:
    bad = """
def gives():
    return {}
def exits():
    raise SystemExit(3)
def needs(width):
    return width
def three():
    return 1, 2, 3
number = 3
"""
    write(
        folder,
        {"h5_bad.py": bad, "broken.py": "def make(:\n", "h5_imports.py": "import h5_nowhere\n", "notes.txt": "hello"},
    )
    spec, told = MISTAKES[case]
    with pytest.raises(SourceRefused) as refused, opened(spec):
        pass
    assert str(refused.value).removeprefix("'").startswith(spec)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# --- zoos ---------------------------------------------------------------------------------------------------------

# torchvision is no dependency of ours, and stays out of this process: where it is installed, other tests would see it.
INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("torchvision", "timm")}


def in_a_process(spec: str, *, shim: bool) -> subprocess.CompletedProcess[str]:
    code = f"""
from training.model_source import SourceRefused, opened
try:
    with opened({spec!r}, torchvision_shim={shim}) as source:
        print(type(source.module).__name__, source.module.training, source.row, source.normalisation.mean)
except SourceRefused as refused:
    print("refused", refused)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("zoo", INSTALLED)
def test_a_zoo_that_is_not_installed_is_named(zoo: str) -> None:
    if INSTALLED[zoo]:
        pytest.skip(f"{zoo} is installed")
    told = f"^{zoo}:resnet18: this needs {zoo}, which is not installed: pip install {zoo}$"
    with pytest.raises(SourceRefused, match=told), opened(f"{zoo}:resnet18", torchvision_shim=True):
        pass


@pytest.mark.parametrize("zoo", INSTALLED)
def test_a_zoos_network_is_ready_for_inference_and_says_what_it_expects(zoo: str) -> None:
    if not INSTALLED[zoo]:
        pytest.skip(f"{zoo} is not installed")
    told = in_a_process(f"{zoo}:resnet18", shim=True).stdout
    assert told == "ResNet False (3, 224, 224) (0.485, 0.456, 0.406)\n"
    assert "Unknown model" in in_a_process(f"{zoo}:h5_unheard_of", shim=True).stdout


BROKEN_TORCHVISION = """
import torch
torch.library.register_fake("torchvision::nms")(lambda *_: None)
torch.library.register_fake("torchvision::qnms")(lambda *_: None)
"""
"""What torchvision's own import does where its compiled part is missing."""

TINY_ZOO = """
from types import SimpleNamespace
from torch import nn

def get_model(name, weights):
    return nn.Sequential(nn.BatchNorm2d(3))

def get_model_weights(name):
    transforms = SimpleNamespace(crop_size=[8], mean=[0.5] * 3, std=[0.25] * 3)
    return SimpleNamespace(DEFAULT=SimpleNamespace(transforms=lambda: transforms))
"""


def test_only_the_shim_declares_what_torchvision_misses_and_whoever_calls_it_is_told(folder: Path) -> None:
    """A stand-in with torchvision's import and the three functions that are asked of it."""
    write(folder, {"torchvision/__init__.py": BROKEN_TORCHVISION, "torchvision/models.py": TINY_ZOO})
    code = """
import sys
sys.path.insert(0, ".")
import torch
from training.model_source import SourceRefused, opened
for shim in (False, True, True):
    try:
        with opened("torchvision:tiny", torchvision_shim=shim) as source:
            print(type(source.module).__name__, source.module.training, source.row, source.normalisation)
    except SourceRefused as refused:
        print(refused)
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("no kernel")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    refused, first, second, called = ran.stdout.splitlines()
    assert refused.startswith("torchvision:tiny: torchvision does not import beside this build of torch (")
    assert "add --torchvision-shim" in refused
    expected = "Sequential False (3, 8, 8) Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))"
    assert (first, second, called) == (expected, expected, "no kernel")
