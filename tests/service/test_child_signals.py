from __future__ import annotations

import os
import signal
import subprocess
import sys

from service.child_signals import kept_from_children

SAYS_WHEN = "print('begun', flush=True); input(); print('still there')"


def test_a_child_does_not_see_them_from_its_first_instruction_on() -> None:
    with kept_from_children(signal.SIGINT):
        child = subprocess.Popen(
            [sys.executable, "-c", SAYS_WHEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    with child:
        child.send_signal(signal.SIGINT)  # its interpreter has hardly begun
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        child.send_signal(signal.SIGINT)
        assert child.communicate(b"\n", timeout=30) == (b"still there\n", b"")
    assert child.returncode == 0


def test_what_comes_to_us_meanwhile_is_not_lost() -> None:
    """Where there are other threads, one of them may take it at once."""
    seen: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: seen.append(number))
    try:
        with kept_from_children(signal.SIGHUP), kept_from_children(signal.SIGHUP):
            os.kill(os.getpid(), signal.SIGHUP)
        assert seen == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, before)
