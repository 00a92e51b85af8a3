"""BatchNorm tools on any `nn.Module` and any iterable of batches; they know no trainer and no data set.

layers.py       which modules hold running statistics
moments.py      mean and variance over many batches, in float64
population.py   the running statistics, measured anew before they are frozen and folded
"""
