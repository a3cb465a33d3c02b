"""Ports to start servers on."""

import socket


def reserved_port() -> socket.socket:
    """Return a socket that keeps a free port of 127.0.0.1 until it is closed.

    It is bound and does not listen: who connects is refused, and a server that sets SO_REUSEADDR, as Python's and
    uvicorn's do, can listen there beside it. Linux gives the port to nobody else who asks for any.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
