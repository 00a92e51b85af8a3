"""What a fresh interpreter loads: the service stays light, and its command answers without any of the heavy parts."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "sympy", "pandas", "sklearn", "scipy", "training")


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after `statement` in a fresh interpreter."""
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_the_service_loads_nothing_of_training() -> None:
    assert loaded_by("import service.app") & set(HEAVY) == set()


def test_liveness_does_not_wait_for_the_runtime() -> None:
    """ONNX Runtime is imported with the first session, in a thread, when the port has long been open."""
    assert "onnxruntime" not in loaded_by("import service.app, service.server")


def test_a_bad_value_is_told_without_importing_the_server() -> None:
    modules = loaded_by("import service.__main__ as m, sys; assert m.main(['--port', 'x']) == 2")
    assert modules & {"fastapi", "uvicorn", "numpy", "onnxruntime", *HEAVY} == set()


def test_the_checks_above_would_notice() -> None:
    assert {"onnx", "numpy"} <= loaded_by("import onnx")
