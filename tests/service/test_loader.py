"""What a client may read of a reason why a model cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.loader import without_folder
from service.settings import Settings

SRV = Settings(model_repository=Path("/srv/models"))
HERE = Settings(model_repository=Path("models"))
FILE = Settings(model=Path("/a/net.onnx"))


@pytest.mark.parametrize(
    ("settings", "reason", "told"),
    [
        pytest.param(SRV, "/srv/models/m/config.json: name", "m/config.json: name", id="file-in-it"),
        pytest.param(SRV, "folder '/srv/models' is gone", "folder the repository is gone", id="itself"),
        pytest.param(SRV, "/srv/models cannot be read", "the repository cannot be read", id="without-quotes"),
        pytest.param(SRV, "/srv/models2/x and b/srv/models/c", "/srv/models2/x and b/srv/models/c", id="other-folders"),
        pytest.param(HERE, "'models' holds 2 models/m", "the repository holds 2 m", id="relative"),
        pytest.param(HERE, "no models, submodels/x", "no models, submodels/x", id="a-word"),
        pytest.param(FILE, "/a/net.onnx, b/a/c", "net.onnx, b/a/c", id="one-file"),
        pytest.param(Settings(model=Path("net.onnx")), "net.onnx: bad.", "net.onnx: bad.", id="file-right-here"),
        pytest.param(Settings(model_repository=Path("/")), "/m/1 / x", "/m/1 / x", id="root"),
    ],
)  # fmt: skip
def test_the_server_s_folder_is_not_told(settings: Settings, reason: str, told: str) -> None:
    assert without_folder(settings, reason) == told
