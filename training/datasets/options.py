"""What a user may say about data beside where they are. Values only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """test_fraction, split_seed: which examples are held out. target: the column with the labels, where there are
    columns. length: of text, in bytes; size: of images, (height, width) in pixels; None: chosen from the data."""

    test_fraction: float = 0.2
    split_seed: int = 0
    target: str | None = None
    length: int | None = None
    size: tuple[int, int] | None = None


DEFAULT = Options()
