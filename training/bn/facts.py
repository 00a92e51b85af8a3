"""What only the one who trained a network can tell about it. All of it is optional; what is missing is not guessed.

Promises: an unknown name or a value of a wrong kind is refused. Knows no network and no torch.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Group(BaseModel):
    """One parameter group of an optimiser; parameters by the names that `named_parameters` gives them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: tuple[str, ...]
    weight_decay: float = Field(default=0.0, ge=0)


class Facts(BaseModel):
    """Of one training run; None: not told.

    steps: of the optimiser, in all. accumulation: batches whose gradients make one step. batch_rows: rows in one
    forward pass of one process, the last of an epoch aside. rows: in the training data. drop_last: a last batch that is
    not full is left out. shuffle: rows come in a new order each epoch. learning_rate: the highest. groups: of the
    optimiser. fullgraph: compiled by torch.compile with fullgraph=True. finished: training is over, and the network is
    to serve.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=1)
    accumulation: int | None = Field(default=None, ge=1)
    batch_rows: int | None = Field(default=None, ge=1)
    rows: int | None = Field(default=None, ge=1)
    drop_last: bool | None = None
    shuffle: bool | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    groups: tuple[Group, ...] | None = None
    fullgraph: bool | None = None
    finished: bool | None = None
