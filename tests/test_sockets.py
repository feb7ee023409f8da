"""Tests of what the swarm does to the sockets of its process, and to nothing else."""

import fcntl
import socket
import subprocess
import sys
from pathlib import Path

from torrentfs.node.sockets import SILENCE_MAX_MS, tune_sockets

TRY = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError: sys.exit(3)
"""


def test_locks_that_sqlite_holds_stay(tmp_path: Path) -> None:
    with (tmp_path / "state").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)

        tune_sockets()

        tried = subprocess.run([sys.executable, "-c", TRY, tmp_path / "state"], check=False, timeout=60)
        assert tried.returncode == 3


def test_connected_sockets_are_told_by_their_far_ends() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
    ):
        far_ends = tune_sockets()

        assert server.getsockname() in far_ends
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_what_a_tuned_socket_accepts_is_tuned() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        tune_sockets()
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE_MAX_MS
