"""What a request's `timeout` and `priority` mean under a model's configuration: a place in the queue, and a deadline.

Spec: Triton, extension_schedule_policy (request parameters) and ModelQueuePolicy in model_config.proto. As there, a
priority that is 0 or beyond the model's levels is the default one, and a request's timeout may shorten the model's own
but not lengthen it. Knows no queue.
"""

from __future__ import annotations

import math

from service.model_knobs import SchedulerConfig
from service.protocol import Parameters

# Some 300 years; JSON may hold longer numbers than a float.
_LONGEST_US = 10**16


class Urgency:
    """The rules of one model."""

    def __init__(self, scheduling: SchedulerConfig) -> None:
        self._levels = scheduling.priority_levels
        self._default_priority = scheduling.default_priority
        self._default_timeout_us = scheduling.default_timeout_us
        self._may_override = scheduling.allow_timeout_override

    def priority(self, parameters: Parameters) -> int:
        """Lower runs first."""
        asked = parameters.get("priority", 0)
        return asked if isinstance(asked, int) and 0 < asked <= self._levels else self._default_priority

    def deadline_s(self, parameters: Parameters, arrived_s: float) -> float:
        """On the clock of `arrived_s`, in seconds; infinite without any timeout."""
        timeout_us = self._default_timeout_us
        asked = parameters.get("timeout", 0)
        if self._may_override and isinstance(asked, int) and asked > 0:
            timeout_us = min(asked, timeout_us or _LONGEST_US)
        return arrived_s + timeout_us / 1e6 if timeout_us else math.inf
