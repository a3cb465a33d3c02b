"""The beginning and the end of a port.

It is opened before anything is loaded, so that one that is not free is reported at once. Before its end the kernel is
made to let nobody in: a connection that came between the last look at the port and its closing would be reset, with a
request on the way, since another thread may have the interpreter in between for milliseconds.
"""

from __future__ import annotations

import asyncio
import ctypes
import ipaddress
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterable

from app.settings import SettingsError

log = logging.getLogger(__name__)

SO_ATTACH_FILTER = 26  # Linux; Python has no name for it

# A program for Linux's packet filter (man 2 bpf's "classic" one; struct sock_filter: code, jumps, operand). On a
# listening socket it sees a packet from its TCP header on.
LOAD_FLAGS = 0x30, 0, 0, 13  # the byte of flags
DROP_IF_SYN = 0x45, 0, 1, 0x02  # go on with the next step, else with the one after that
DROP = 0x06, 0, 0, 0
PASS = 0x06, 0, 0, 0xFFFF_FFFF
PROGRAM = b"".join(struct.pack("HBBI", *step) for step in (LOAD_FLAGS, DROP_IF_SYN, DROP, PASS))

# A client whose handshake is half done when nobody is let in any more takes itself for connected. Its last packet has
# this long to come; a port that closes before resets the connection, with a request on the way.
HANDSHAKES_S = 0.2


def open_port(host: str, port: int, backlog: int, scheme: str = "http") -> socket.socket:
    """Listen at `host`, at "::" to IPv4, too. Raises SettingsError, one line, if that is not possible."""
    kind = _family(host, port)
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=kind, backlog=backlog, dualstack_ipv6=both)
    except OSError as error:
        raise SettingsError(f"port {port} at {host}: {os.strerror(error.errno or 0)}") from error
    shown = f"[{host}]" if ":" in host else host
    log.info("listening on %s://%s:%d", scheme, shown, listener.getsockname()[1])
    return listener


def _family(host: str, port: int) -> socket.AddressFamily:
    """Return the kind of address that a host's name or address stands for, IPv4 where it is both.

    Raises SettingsError for one that stands for none, which `create_server` would call "Unknown error -2".
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SettingsError(f"host {host}: {error.strerror}") from error
    except UnicodeError as error:  # a part of it is empty, or too long
        raise SettingsError(f"host {host}: neither an address nor a name") from error
    families = {family for family, *_ in found}
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6


def is_loopback(listener: socket.socket) -> bool:
    """Whether a port can be reached from this host only."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def drop_new_connections(listener: socket.socket) -> bool:
    """Let no new connection in; those that are there can still be accepted. Return whether it is so: only on Linux.

    A client that connects now tries again after a second, and finds the port closed: it never was accepted.
    """
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(PROGRAM)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(PROGRAM) // 8, ctypes.addressof(program))
        )
    except OSError:  # a sandbox may forbid it
        return False
    return True


async def let_last_ones_in(listeners: Iterable[socket.socket]) -> None:
    """Let no new connection in, and wait until those whose handshakes had begun are there.

    They are to be accepted meanwhile. Where new ones cannot be kept out, nobody is waited for: there is no last one.
    """
    kept_out = [drop_new_connections(listener) for listener in listeners]
    if any(kept_out):
        await asyncio.sleep(HANDSHAKES_S)
