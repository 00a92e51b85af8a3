"""`python no_outbound.py COMMAND ...`: runs a command that the kernel kills with SIGSYS if it opens a connection.

A seccomp filter (seccomp(2), classic BPF) is set on this process and `exec`ed through, so that it holds for every
thread and child, native libraries included, from the first instruction to the last: nothing can slip between two
samples, as it could with a look at /proc. Refused are `connect` on any socket and every UDP socket of the internet
families (a server over TCP needs neither; a name look-up needs both). No privileges needed; Linux, x86-64 or arm64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import subprocess
import sys

# From linux/prctl.h, linux/seccomp.h, linux/audit.h and linux/bpf_common.h; system call numbers from asm/unistd.h.
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
SYSTEM_CALLS = {  # machine: (audit architecture, socket, connect)
    "x86_64": (0xC000003E, 41, 42),
    "aarch64": (0xC00000B7, 198, 203),
}
LOAD, JUMP_EQUAL, MASK, RETURN = 0x20, 0x15, 0x54, 0x06
OFFSET_NUMBER, OFFSET_ARCHITECTURE, OFFSET_ARGUMENTS = 0, 4, 16  # of struct seccomp_data; arguments are 8 bytes each
NOT_PERMITTED = 77
SOCKET_TYPE_MASK = 0xF  # socket(2): SOCK_NONBLOCK and SOCK_CLOEXEC are or-ed into the type


def supported() -> bool:
    """Whether the table knows this machine, and the kernel (or a sandbox around us) lets a process filter itself."""
    if sys.platform != "linux" or platform.machine() not in SYSTEM_CALLS:
        return False
    return subprocess.run([sys.executable, __file__, "true"], check=False).returncode != NOT_PERMITTED


def filter_program(machine: str) -> bytes:
    """The filter as an array of `struct sock_filter`. Jumps count instructions from the next one."""
    architecture, socket_call, connect_call = SYSTEM_CALLS[machine]
    instructions = [
        (LOAD, 0, 0, OFFSET_ARCHITECTURE),
        (JUMP_EQUAL, 0, 10, architecture),  # another architecture's numbering: kill
        (LOAD, 0, 0, OFFSET_NUMBER),
        (JUMP_EQUAL, 8, 0, connect_call),
        (JUMP_EQUAL, 0, 6, socket_call),
        (LOAD, 0, 0, OFFSET_ARGUMENTS),
        (JUMP_EQUAL, 1, 0, socket.AF_INET),
        (JUMP_EQUAL, 0, 3, socket.AF_INET6),
        (LOAD, 0, 0, OFFSET_ARGUMENTS + 8),
        (MASK, 0, 0, SOCKET_TYPE_MASK),
        (JUMP_EQUAL, 1, 0, socket.SOCK_DGRAM),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, KILL_PROCESS),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def forbid_outbound_connections() -> None:
    """Sets the filter on this process, for good. Raises OSError when the kernel, or a sandbox around us, forbids it."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    code = filter_program(platform.machine())
    program = Program(len(code) // 8, code)
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    try:
        forbid_outbound_connections()
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_PERMITTED)
    os.execvp(sys.argv[1], sys.argv[1:])
