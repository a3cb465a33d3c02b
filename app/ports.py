"""The end of a port: nobody comes in between the last look at who waits and its closing.

Whoever the kernel has let in by then would be reset, with a request on the way: between the two the interpreter may be
somebody else's for milliseconds.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress

SO_ATTACH_FILTER = 26  # Linux; Python has no name for it

# A program for Linux's packet filter (man 2 bpf's "classic" one; struct sock_filter: code, jumps, operand). On a
# listening socket it sees a packet from its TCP header on.
LOAD_FLAGS = 0x30, 0, 0, 13  # the byte of flags
DROP_IF_SYN = 0x45, 0, 1, 0x02  # go on with the next step, else with the one after that
DROP = 0x06, 0, 0, 0
PASS = 0x06, 0, 0, 0xFFFF_FFFF
PROGRAM = b"".join(struct.pack("HBBI", *step) for step in (LOAD_FLAGS, DROP_IF_SYN, DROP, PASS))


def turn_away(port: socket.socket) -> None:
    """Let no new connection in; those that are there can still be accepted. Without effect where it is not Linux.

    A client that comes now asks again after a second, and finds the port closed: it never was accepted.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(PROGRAM)
        with suppress(OSError):  # a sandbox may forbid it
            port.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(PROGRAM) // 8, ctypes.addressof(program))
            )
