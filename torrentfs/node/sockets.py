"""This module reaches the TCP sockets that libtorrent opens in this process, which it does not hand out.

libtorrent never sets TCP_NODELAY: without it a single cold piece takes 44–88 ms instead of 2, on either end.
"""

import os
import socket
import stat

Address = tuple[str, int]
"""Numeric host and port, as libtorrent writes an endpoint."""


def tune_sockets() -> set[Address]:
    """Set TCP_NODELAY on every TCP socket of this process; return the far ends of those that are connected.

    Listening sockets pass the option on to what they accept, so only dialled ones need another call.
    Costs about 1 µs a descriptor and 5 µs a socket. Setting it on others' sockets does no harm.
    """
    connected: set[Address] = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (half the cost)
        try:
            # Nothing else is duplicated: closing any descriptor of SQLite's files drops its locks (fcntl(2)).
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            # A duplicate: libtorrent's thread may close its own, and someone reuse the number, at any time.
            duplicate = os.dup(int(name))
        except OSError:
            continue
        far_end = _tune(duplicate)
        if far_end is not None:
            connected.add(far_end)
    return connected


def _tune(descriptor: int) -> Address | None:
    """Take over *descriptor*; return the far end if it is a connected TCP socket."""
    try:
        # Family and type are given, so that none is asked of the kernel; they do not matter to what follows.
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError:  # not a socket
        os.close(descriptor)
        return None
    with stream:
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            name = stream.getpeername()
        except OSError:  # not TCP, or listening, or not yet connected
            return None
    return (name[0].partition("%")[0], name[1]) if isinstance(name, tuple) else None
