"""`text:DIR` (one folder of .txt files a class) and `text:FILE.jsonl` ({"text": ..., "label": ...} a line).

Clients send UTF-8 bytes: uint8 [rows, length], cut to the length or filled up with zeros; no vocabulary can get lost.
`dataset_of` does the same with texts from anywhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.datasets.class_folders import find
from training.datasets.dataset import MOST_BYTES, Dataset, Examples, InputDescription, Tokens
from training.datasets.options import Options
from training.datasets.splitting import numbered, stratified
from training.errors import UserError, check_the_path

LONGEST = 1024
"""What is chosen from the data at most; data.length may say more."""
STEP = 16


def load(where: str, options: Options) -> Dataset:
    """Raises UserError."""
    if Path(where).suffix.lower() in (".jsonl", ".ndjson"):
        texts, labels = _lines(Path(where))
        return dataset_of(where, texts, labels, options)
    found = find(where, {".txt"}, "texts")
    return dataset_of(where, [_content(path) for path in found.files], found.labels, options, found.n_test, found.notes)


def dataset_of(
    thing: str,
    texts: Sequence[bytes],
    labels: Sequence[str],
    options: Options,
    n_test: int | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """texts: UTF-8. n_test: see `stratified`. Raises UserError."""
    classes, numbers = numbered(labels)
    train, test = stratified(numbers, classes, options, thing, n_test)
    length = options.length or _usual_length([len(texts[row]) for row in train])
    if (needed := len(texts) * length) > MOST_BYTES:
        raise UserError(
            f"{thing}: {len(texts)} texts of {length} bytes: {needed / 2**30:.3g} GiB, expected at most "
            f"{MOST_BYTES / 2**30:.3g}; choose a smaller data.length"
        )
    everything = Examples({"text": as_rows(texts, length)}, numbers)
    return Dataset(
        inputs=(
            InputDescription(
                "text", f"UTF-8 bytes of a text, {length} of them; 0 behind its end", minimum=0, maximum=255
            ),
        ),
        front=Tokens(256),
        classes=classes,
        train=everything.at(train),
        test=everything.at(test),
        origin=thing,
        notes=(*notes, padding_note(length), _worked_request(length)),
    )


def as_rows(texts: Sequence[bytes], length: int) -> npt.NDArray[np.uint8]:
    """uint8 [rows, length], as `padding_note` tells clients to make them."""
    joined = b"".join(text[:length].ljust(length, b"\0") for text in texts)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(texts), length).copy()


def padding_note(length: int) -> str:
    """What no graph can do for a client."""
    return (
        f"encode a text as UTF-8, keep its first {length} bytes, and fill up with zeros to as many: {_padded(length)}"
    )


def _worked_request(length: int) -> str:
    tensor = f'"name": "text", "datatype": "UINT8", "shape": [1, {length}], "data": list({_padded(length)})'
    return f'a worked request, in Python: {{"inputs": [{{{tensor}}}]}}'


def _padded(length: int) -> str:
    return f'text.encode()[:{length}].ljust({length}, b"\\0")'


def _usual_length(lengths: Sequence[int]) -> int:
    """Nineteen of twenty texts are whole."""
    longest = int(np.percentile(lengths, 95, method="higher"))
    return min(LONGEST, max(1, math.ceil(longest / STEP)) * STEP)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        content.decode()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a text; make it readable, or remove it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is no UTF-8, expected a text in UTF-8; save it as such") from error
    if not content.strip():
        raise UserError(f"{path}: empty, expected a text; fill it, or remove it")
    return content


def _lines(path: Path) -> tuple[list[bytes], list[str]]:
    texts, labels = [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    text, label = _example(f"{path}, line {number}", line)
                    texts.append(text)
                    labels.append(label)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a file of JSON lines; {check_the_path(path)}") from error
    return texts, labels


def _example(thing: str, line: bytes) -> tuple[bytes, str]:
    expected = 'expected {"text": "...", "label": "..."}; correct the line'
    try:
        example = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{thing}: no JSON in UTF-8 ({error}), {expected}") from error
    text, label = (example.get(key) for key in ("text", "label")) if isinstance(example, dict) else (None, None)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{thing}: the text is {json.dumps(text)[:40]}, {expected}")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
        raise UserError(f"{thing}: the label is {json.dumps(label)}, {expected}")
    return _whole(thing, "text", text, expected), _whole(thing, "label", str(label), expected).decode()


def _whole(thing: str, name: str, text: str, expected: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{thing}: the {name} holds half a character ({error.reason}), {expected}") from error
