"""BatchNorm tools on any `nn.Module` and any iterable of batches; they know no trainer and no data set.

layers.py       which modules hold running statistics
moments.py      mean and variance over many batches, in float64
population.py   the running statistics, measured anew before they are frozen and folded
diagnosis.py    a network examined: lint.py by its make, health.py by figures that measure.py takes
structure.py    what stands before and behind each layer
facts.py        what only the one who trained can tell
findings.py     what can be found, and the table of all checks
figures.py      the figures, without torch
"""
