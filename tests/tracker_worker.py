"""This program is a worker as far as finding neighbours goes: a libtorrent session, a torrent and a tracker.

Usage: tracker_worker.py ADDRESS TORRENT INFO_HASH FILE TRACKER, and on standard input, line by line:

    seed    take up the torrent, all of which is in FILE
    fetch   take it up with an empty file beside FILE, want its first piece
    remove  leave it

It prints what happens, one JSON object a line, with `ms` since the torrent was taken up: `announced` (and how
many `peers` the tracker told), `refused` (and `why`), `connected` (and `to` whom), `piece`. It ends with its
input. The torrent is taken up as torrentfs does, but that it is told of a tracker.
"""

import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Any

import libtorrent as lt

from torrentfs.config import SiteSettings, SwarmSettings
from torrentfs.node.session import session_settings, torrent_parameters
from torrentfs.node.site import Site
from torrentfs.node.sockets import tune_sockets
from torrentfs.repository.metainfo import InfoHash, Metainfo, parse

LISTEN_DEADLINE_S = 10
NO_SITE = Site(SiteSettings())


class Worker:
    """A session that listens at *address*, and one torrent of it."""

    def __init__(self, address: str, metainfo: Metainfo, file: Path, tracker: str) -> None:
        self._metainfo, self._file, self._tracker = metainfo, file, tracker
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        self._ring.setblocking(False)
        parameters: Any = lt.session_params()
        settings = session_settings(SwarmSettings(), NO_SITE, address, 0)
        # Other clients say that they leave.
        settings["stop_tracker_timeout"] = 5
        parameters.settings = settings
        parameters.disk_io_constructor = "posix_disk_io_constructor"
        self._session = lt.session(parameters)
        self._session.set_alert_fd(self._ring.fileno())
        self._handle: Any = None
        self._since = 0.0
        self._wanting = False

    def run(self) -> None:
        """Do as standard input says, until its end."""
        pending = b""
        while True:
            readable, _, _ = select.select([self._bell, 0], [], [])
            if self._bell in readable:
                self._bell.recv(4096)
                for alert in self._session.pop_alerts():
                    self._tell(alert)
            if 0 in readable:
                data = os.read(0, 4096)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self._do(line.decode())

    def _do(self, word: str) -> None:
        if word == "remove":
            self._session.remove_torrent(self._handle)
            return
        seed = word == "seed"
        if not seed:
            self._file = self._file.with_name(f"cache.{os.getpid()}.{time.monotonic_ns()}")
        parameters = torrent_parameters(
            self._metainfo, self._file, [seed] * self._metainfo.piece_count, [], NO_SITE, seed=seed
        )
        parameters.trackers = [self._tracker]
        self._since, self._wanting = time.monotonic(), not seed
        self._handle = self._session.add_torrent(parameters)

    def _tell(self, alert: Any) -> None:
        if isinstance(alert, lt.listen_succeeded_alert):
            tune_sockets()
            self._say(listening=alert.port)
        elif isinstance(alert, lt.torrent_checked_alert):
            if self._wanting:
                # Before it announces: who wants nothing is announced as "paused", and never as "stopped".
                self._handle.piece_priority(0, 7)
                self._handle.set_piece_deadline(0, 0)
            self._handle.resume()
        elif isinstance(alert, lt.tracker_reply_alert):
            self._say(announced=self._tracker, peers=alert.num_peers)
        elif isinstance(alert, lt.tracker_error_alert):
            self._say(refused=self._tracker, why=alert.message())
        elif isinstance(alert, lt.peer_connect_alert):
            tune_sockets()
            self._say(connected=True, to=list(alert.endpoint))
        elif isinstance(alert, lt.piece_finished_alert) and self._wanting:
            self._say(piece=alert.piece_index)

    def _say(self, **event: Any) -> None:
        print(json.dumps({**event, "ms": round(1000 * (time.monotonic() - self._since), 1)}), flush=True)


def main(address: str, torrent: str, info_hash: str, file: str, tracker: str) -> None:
    metainfo = parse(Path(torrent).read_bytes(), InfoHash(bytes.fromhex(info_hash)))
    Worker(address, metainfo, Path(file), tracker).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
