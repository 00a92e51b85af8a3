"""Flags that say what is served are heard once; of every other, the last wins; switches may take a word.

The last wins because platforms put a user's arguments behind their own (KServe appends them to the runtime's). But of
two folders of models neither is a correction of the other: some servers read both, and the first would go unheard.
Knows no knob.
"""

from __future__ import annotations

import argparse
from typing import Any


class Once(argparse.Action):
    """A flag with its value. Given again, under whichever name, it is a mistake."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _option_string: str | None = None,
    ) -> None:
        if (before := getattr(namespace, self.dest)) is not None:
            raise argparse.ArgumentError(self, f"given twice, {shown(before)} and {shown(values)}; give it once")
        setattr(namespace, self.dest, values)


class Switch(argparse.Action):
    """`--x` and `--no-x`; and `--x=true` and `--x=false`, as tritonserver has them. Needs `nargs="?"`."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        is_off = str(option_string).startswith("--no-")
        if is_off and values is not None:
            raise argparse.ArgumentError(self, f"{option_string} takes no value")
        setattr(namespace, self.dest, not is_off if values is None else bool(values))


def shown(value: Any) -> str:
    """A value as it would be written on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
