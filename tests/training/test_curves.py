"""The picture of a run: parses as XML, and shows the figures where they are."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from training.curves import curves_picture

SVG = "{http://www.w3.org/2000/svg}"
LINES = [
    {"epoch": 1, "steps": 5, "train_loss": 2.0, "train_accuracy": 0.5, "held_out_loss": 1.0, "held_out_accuracy": 0.25},
    {"epoch": 2, "steps": 9, "train_loss": 0.5, "train_accuracy": 1.0, "held_out_loss": 1.5, "held_out_accuracy": 0.5},
]


def heights(picture: str) -> list[list[float]]:
    """Of each line's points."""
    found = ET.fromstring(picture).findall(f"{SVG}polyline")
    return [[float(point.split(",")[1]) for point in line.attrib["points"].split()] for line in found]


def test_each_series_is_a_line_on_the_axis_of_its_panel() -> None:
    loss, held_loss, accuracy, held_accuracy = heights(curves_picture(LINES))

    assert loss[0] < held_loss[1] < held_loss[0] < loss[1]
    assert accuracy[1] < accuracy[0] == held_accuracy[1] < held_accuracy[0]
    assert max(*loss, *held_loss) < min(*accuracy, *held_accuracy)


def test_a_run_without_held_out_examples_has_two_lines() -> None:
    lines = [{key: value for key, value in line.items() if not key.startswith("held_out")} for line in LINES]

    assert len(heights(curves_picture(lines))) == 2


def test_the_same_figures_give_the_same_picture_and_none_give_an_empty_one() -> None:
    assert curves_picture(LINES) == curves_picture(LINES)
    assert heights(curves_picture([])) == []


def test_a_loss_beyond_all_numbers_is_drawn_at_the_top() -> None:
    (loss, *_) = heights(curves_picture([LINES[0], {**LINES[1], "train_loss": math.inf}]))

    assert loss[0] == loss[1]
