"""What a figure must be read with: the date, the machine, the versions. Standard library only."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib import metadata
from pathlib import Path


def heading(title: str) -> str:
    """A Markdown heading for one table, made in the environment that is measured."""
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    versions = f"Python {platform.python_version()}, ONNX Runtime {metadata.version('onnxruntime')}"
    return f"### {title}, {today}, {processor()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, {versions}"


def processor() -> str:
    """The processor's name as the kernel tells it; its architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
