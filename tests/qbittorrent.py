"""This module gives tests Debian's qBittorrent without its window, run by its Web API, on loopback."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from contrib.grid import await_port, free_port, process
from torrentfs.repository.metainfo import InfoHash

DEADLINE_S = 60
HASH_LENGTH = 40
"""It names a torrent by so much of its info-hash."""
CONFIGURATION = """
[LegalNotice]
Accepted=true

[BitTorrent]
Session\\Port={port}
Session\\DHTEnabled=false
Session\\LSDEnabled=false
Session\\Interface=lo
Session\\InterfaceName=lo
Session\\DefaultSavePath={save}

[Network]
PortForwardingEnabled=false

[Preferences]
WebUI\\Address=127.0.0.1
WebUI\\Port={web}
WebUI\\LocalHostAuth=false
WebUI\\UseUPnP=false
"""


class Client:
    """A running qBittorrent; *port* is where peers reach it, *directory* where it saves."""

    def __init__(self, port: int, web: int, directory: Path) -> None:
        self.port, self.directory = port, directory
        self._web = httpx.Client(base_url=f"http://127.0.0.1:{web}/api/v2", timeout=DEADLINE_S)

    def add(self, torrent: bytes = b"", magnet: str = "") -> None:
        """Take up what the metainfo *torrent*, or a *magnet* link, describes."""
        if torrent:
            self._post("torrents/add", files={"torrents": ("a.torrent", torrent)})
        else:
            self._post("torrents/add", data={"urls": magnet})

    def connect(self, info_hash: InfoHash, port: int) -> None:
        """Tell it of a peer of the torrent, at *port* of loopback."""
        self.state(info_hash, lambda _: True)
        self._post("torrents/addPeers", data={"hashes": _name(info_hash), "peers": f"127.0.0.1:{port}"})

    def state(self, info_hash: InfoHash, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Return what it says of the torrent once *condition* holds of that."""
        deadline = time.monotonic() + DEADLINE_S
        found: Any = None
        while time.monotonic() < deadline:
            found = self._web.get("torrents/info", params={"hashes": _name(info_hash)}).json()
            if found and condition(found[0]):
                state: dict[str, Any] = found[0]
                return state
            time.sleep(0.05)
        raise AssertionError(found)

    def await_whole(self, info_hash: InfoHash) -> Path:
        """Return the torrent's file once it has all of it."""
        state = self.state(
            info_hash, lambda torrent: torrent["progress"] == 1 and torrent["amount_left"] == 0
        )
        return Path(state["content_path"])

    def _post(self, path: str, **request: Any) -> None:
        answer = self._web.post(path, **request)
        assert answer.status_code == httpx.codes.OK and answer.text != "Fails.", answer.text


def _name(info_hash: InfoHash) -> str:
    return info_hash.hex()[:HASH_LENGTH]


@contextmanager
def qbittorrent(directory: Path) -> Iterator[Client]:
    """Run one whose profile and data are in *directory*."""
    port, web, save = free_port(), free_port(), directory / "saved"
    profile = directory / "qBittorrent" / "config"
    profile.mkdir(parents=True)
    save.mkdir()
    (profile / "qBittorrent.conf").write_text(CONFIGURATION.format(port=port, web=web, save=save))
    log = directory / "log"
    with process(["qbittorrent-nox", f"--profile={directory}"], log) as running:
        for each in (web, port):
            await_port(running, "127.0.0.1", each, log)
        yield Client(port, web, save)
