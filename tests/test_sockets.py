"""Tests of what the swarm does to the sockets of its process, and to nothing else."""

import fcntl
import socket
import subprocess
import sys
from pathlib import Path

from torrentfs.node.sockets import tune_sockets

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
