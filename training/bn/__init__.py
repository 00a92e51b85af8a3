"""BatchNorm tools on any `nn.Module` and any iterable of batches; they know no trainer and no data set.

algorithm.py    BatchNorm itself, forward and backward, in NumPy
conventions.py  how ten frameworks keep running statistics, and what one's are in another's words
variants.py     ghost, renorm, sync, masked and frozen BatchNorm: other in training, the same when they serve
replacing.py    one kind of normalisation for another, in a network that is there
layers.py       which modules hold running statistics
moments.py      mean and variance over many batches, in float64
population.py   the running statistics, measured anew before they are frozen and folded
diagnosis.py    a network examined: lint.py by its make, health.py by figures that measure.py takes
structure.py    what stands before and behind each layer
facts.py        what only the one who trained can tell
findings.py     what can be found, and the table of all checks
figures.py      the figures, without torch
"""
