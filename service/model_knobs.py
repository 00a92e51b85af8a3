"""What an operator may choose for one model: how its requests are batched, which of its versions are served, and how
requests are shared among them.

Parts of config.json (see repository.py). The values alone: who acts on them knows what they mean for a queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

# As Triton's ModelConfig message has its integers: what config.pbtxt cannot say, config.json cannot either, and clients
# are told numbers (model_config.py) that they can hold.
LARGEST_INT32 = 2**31 - 1
LARGEST_INT64 = 2**63 - 1
_LARGEST_UINT32 = 2**32 - 1
_LARGEST_UINT64 = 2**64 - 1


class Schema(BaseModel):
    """Of a file that people write: a key that is not known is a mistake, and so is a number in quotes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SchedulerConfig(Schema):
    """The dynamic batcher's knobs; the defaults are meant to need no tuning. Times are in microseconds (`_us`)."""

    max_queue_size: int = Field(
        default=1024, ge=1, le=_LARGEST_UINT32, description="requests that may wait; one more is answered 503"
    )
    instances: int = Field(default=1, ge=1, le=64, description="batches of this model that may run at the same time")
    max_queue_delay_us: int | None = Field(
        default=None,
        ge=0,
        le=_LARGEST_UINT64,
        description="how long rows may wait for company at most; absent: as long as measured to pay",
    )
    default_timeout_us: int = Field(
        default=0, ge=0, le=_LARGEST_UINT64, description="timeout of a request that brings none; 0: none"
    )
    allow_timeout_override: bool = Field(
        default=True, description="a request's own timeout counts; where there is a default it may only be shorter"
    )
    priority_levels: int = Field(
        default=0, ge=0, le=_LARGEST_UINT64, description="1 is the most urgent; 0: all requests are equal"
    )
    default_priority: int = Field(default=0, ge=0, le=_LARGEST_UINT64, description="level of a request that names none")

    exact_batches: bool = Field(
        default=False,
        description="pad batches to sizes at which a row's answer does not depend on the others, bit for bit",
    )

    @model_validator(mode="after")
    def _default_priority_is_a_level(self) -> SchedulerConfig:
        if not min(1, self.priority_levels) <= self.default_priority <= self.priority_levels:
            raise ValueError(
                f"default_priority is {self.default_priority}; with priority_levels {self.priority_levels} it must be "
                f"{f'from 1 to {self.priority_levels}' if self.priority_levels else 0}"
            )
        return self


class VersionPolicy(Schema):
    """Which versions are loaded: the `latest` highest numbers, `all`, or those of `specific`; one of the three."""

    latest: int = Field(default=1, ge=1, le=_LARGEST_UINT32)
    all: bool = False
    specific: tuple[Annotated[int, Field(ge=1, le=LARGEST_INT64)], ...] = ()

    @model_validator(mode="after")
    def _is_one_policy(self) -> VersionPolicy:
        chosen = sorted(name for name in self.model_fields_set if getattr(self, name))
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other")
        return self

    def choose(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Which of the versions that there are, lowest first."""
        numbers = sorted(numbers)
        if self.specific:
            return tuple(number for number in numbers if number in self.specific)
        return tuple(numbers if self.all else numbers[-self.latest :])


_OnTrial = Annotated[int, Field(ge=1, le=LARGEST_INT64, description="the version on trial")]


class CanaryConfig(Schema):
    """A version that answers a share of the requests that name none."""

    version: _OnTrial
    weight: float = Field(ge=0, le=1, description="its share of the requests")


class ShadowConfig(Schema):
    """A version that is asked behind the answer of another, and whose answer is compared and never returned."""

    version: _OnTrial
    tolerance: float = Field(default=1e-4, ge=0, description="an element differs beyond tolerance * (1 + its size)")


class TrafficConfig(Schema):
    """How requests that name no version are shared; by default the highest version answers them all. One of the two."""

    canary: CanaryConfig | None = None
    shadow: ShadowConfig | None = None

    @model_validator(mode="after")
    def _is_one(self) -> TrafficConfig:
        if self.canary and self.shadow:
            raise ValueError("canary and shadow exclude each other")
        return self
