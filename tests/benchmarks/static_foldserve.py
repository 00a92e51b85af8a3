"""`foldserve` with a batcher that judges nothing, as other servers have it: the baseline of `make bench-schedule`.

A batch runs when it is full, or when its oldest request has waited for `max_queue_delay_us`. No setting does that to
the scheduler itself: there `max_queue_delay_us` is a bound on waiting, and `max_batch_size` one on rows.
"""

from __future__ import annotations

import math
import sys

from service.__main__ import main
from service.arrivals import Arrivals
from service.latency_curve import LatencyCurve

if __name__ == "__main__":
    Arrivals.worth_waiting_until = lambda self, rows, max_rows, now: math.inf  # type: ignore[method-assign]
    LatencyCurve.rows_to_run = lambda self, rows, larger=False: rows  # type: ignore[method-assign]
    sys.exit(main())
