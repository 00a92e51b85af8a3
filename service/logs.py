"""How events are told: one line each, on stderr. Knows no event."""

from __future__ import annotations

import logging
import time


def configure_logging(level: str, who: str = "") -> None:
    """One line an event on stderr; times in UTC, as in ISO 8601. `who`: before each message."""
    handler = logging.StreamHandler()
    formatter = logging.Formatter(f"%(asctime)s.%(msecs)03dZ %(levelname)s {who}%(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn tells its own start and stop in four lines; we tell ours.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
