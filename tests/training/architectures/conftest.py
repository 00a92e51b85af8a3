"""For every test of networks: one thread."""

from tests.training.bn.conftest import one_thread

__all__ = ["one_thread"]
