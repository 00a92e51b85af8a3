"""The real tables that ship inside scikit-learn (no download), and its digits: `sklearn:NAME`.

One input, the whole row as it was measured; the network's first part fills gaps and its first BatchNorm normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

from training.datasets import digits
from training.datasets.dataset import Columns, Dataset, Examples, InputDescription
from training.datasets.options import Options
from training.datasets.splitting import stratified
from training.errors import UserError

TABLES: Mapping[str, tuple[Callable[[], Any], str]] = {
    "breast_cancer": (
        load_breast_cancer,
        "W. Wolberg, O. Mangasarian, N. Street, W. Street, Breast Cancer Wisconsin (Diagnostic), UCI repository (1993)",
    ),
    "iris": (load_iris, "R. A. Fisher, The use of multiple measurements in taxonomic problems (1936)"),
    "wine": (load_wine, "S. Aeberhard and M. Forina, Wine, UCI repository (1992)"),
}


def load(where: str, options: Options) -> Dataset:
    """Inputs float32 [rows, features]. Raises UserError."""
    if where == "digits":
        return digits.load("", options)
    if where not in TABLES:
        raise UserError(f"sklearn:{where}: there is no {where!r} here; there are {', '.join(('digits', *TABLES))}")
    loader, origin = TABLES[where]
    bunch = loader()
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    train, test = stratified(labels, classes, options, f"sklearn:{where}")
    everything = Examples({"row": bunch.data.astype(np.float32)}, labels)
    features = ", ".join(str(name) for name in bunch.feature_names)
    return Dataset(
        inputs=(InputDescription("row", f"as measured, not scaled; NaN where unknown: {features}"),),
        front=Columns(fills=tuple(map(float, np.median(everything.at(train).only, axis=0)))),
        classes=classes,
        train=everything.at(train),
        test=everything.at(test),
        origin=origin,
    )
