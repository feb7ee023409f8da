"""This module reads what clients ask a tracker (BEP 3, 48), and writes its answers (BEP 7, 23, 48). No I/O.

A query is bytes from anybody: what cannot be used is refused with a reason, and nothing else is raised.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NewType
from urllib.parse import unquote_to_bytes

from torrentfs.errors import FormatError
from torrentfs.repository import bencode
from torrentfs.repository.metainfo import InfoHash

QUERY_LENGTH_MAX = 8192
FIELD_COUNT_MAX = 128
SCRAPE_COUNT_MAX = 64
"""Torrents in one scrape; with escapes for all bytes they are 5 kB."""
KEY_LENGTH = 20
_PORT = re.compile(rb"[0-9]{1,5}")
_NUMBER = re.compile(rb"[0-9]{1,9}")
_HUGE = re.compile(rb"[0-9]{10,}")

TorrentKey = NewType("TorrentKey", bytes)
"""What trackers call a torrent: 20 bytes, of a v2 info-hash the first ones (BEP 52)."""

Endpoint = NewType("Endpoint", bytes)
"""Address and port as they travel, big-endian: 6 bytes (BEP 23) or, for IPv6, 18 (BEP 7)."""


class RefusedError(FormatError):
    """A request that the tracker does not serve; its text is for the client's log."""


class UnknownTorrentError(RefusedError):
    """A torrent that this tracker does not serve."""


class Event(Enum):
    """What happened at the client since its last announce, as far as it matters here."""

    NONE = b""
    COMPLETED = b"completed"
    STOPPED = b"stopped"


@dataclass(frozen=True, slots=True)
class Announce:
    """A client's wish to be listed, and for others."""

    torrent: TorrentKey
    port: int
    peer_id: bytes
    event: Event
    is_complete: bool
    wanted: int | None
    """How many others; None: as many as the tracker likes."""


@dataclass(frozen=True, slots=True)
class Census:
    """Who is in a swarm."""

    complete: int
    incomplete: int
    downloaded: int
    """How often a client said that it completed the torrent."""


def torrent_key(info_hash: InfoHash) -> TorrentKey:
    """Return what trackers call the torrent *info_hash*."""
    return TorrentKey(info_hash[:KEY_LENGTH])


def parse_announce(query: bytes) -> Announce:
    """Read the query of an announce.

    Counts that make no sense (libtorrent sends left=-1 before it has the metainfo) are as good as none;
    `ip=` and its like are not looked at, for a client is where it speaks from.

    Raises: RefusedError.
    """
    fields = _fields(query)
    torrent = _key(_single(fields, b"info_hash"))
    port = _single(fields, b"port")
    if _PORT.fullmatch(port) is None or not 0 < int(port) < 1 << 16:
        raise RefusedError("port is none that can be dialled")
    event = _single(fields, b"event")
    wanted = _single(fields, b"numwant")
    return Announce(
        torrent,
        int(port),
        _single(fields, b"peer_id")[:KEY_LENGTH],
        Event(event) if event in (b"completed", b"stopped") else Event.NONE,
        _single(fields, b"left") == b"0",
        _count(wanted),
    )


def parse_scrape(query: bytes) -> list[TorrentKey]:
    """Read which torrents a scrape asks for, each once, in its order.

    Raises: RefusedError: also if it asks for all that there are.
    """
    keys = list(dict.fromkeys(map(_key, _fields(query).get(b"info_hash", ()))))
    if not 0 < len(keys) <= SCRAPE_COUNT_MAX:
        raise RefusedError(f"name one to {SCRAPE_COUNT_MAX} torrents by info_hash")
    return keys


def write_peers(census: Census, peers: Iterable[Endpoint], interval_s: int) -> bytes:
    """Return the answer to an announce: always compact, which a tracker may choose (BEP 23)."""
    peers = list(peers)
    return bencode.encode(
        {
            b"complete": census.complete,
            b"downloaded": census.downloaded,
            b"incomplete": census.incomplete,
            b"interval": interval_s,
            b"peers": b"".join(peer for peer in peers if len(peer) == 6),
            b"peers6": b"".join(peer for peer in peers if len(peer) == 18),
        }
    )


def write_scrape(found: Mapping[TorrentKey, Census]) -> bytes:
    """Return the answer to a scrape."""
    files: dict[bytes, bencode.Value] = {
        key: {
            b"complete": census.complete,
            b"downloaded": census.downloaded,
            b"incomplete": census.incomplete,
        }
        for key, census in found.items()
    }
    return bencode.join({b"files": bencode.encode(files)})


def write_refusal(reason: str) -> bytes:
    """Return the answer to what is refused; clients show *reason* to their users."""
    return bencode.encode({b"failure reason": reason.encode()})


def _fields(query: bytes) -> dict[bytes, list[bytes]]:
    """Return the values of each key of *query*, unescaped. A plus sign is one: no client means a space."""
    if len(query) > QUERY_LENGTH_MAX:
        raise RefusedError(f"a query of more than {QUERY_LENGTH_MAX} bytes")
    parts = query.split(b"&")
    if len(parts) > FIELD_COUNT_MAX:
        raise RefusedError(f"more than {FIELD_COUNT_MAX} fields")
    fields: dict[bytes, list[bytes]] = {}
    for part in parts:
        name, _, value = part.partition(b"=")
        fields.setdefault(unquote_to_bytes(name), []).append(unquote_to_bytes(value))
    return fields


def _single(fields: Mapping[bytes, Sequence[bytes]], name: bytes) -> bytes:
    values = fields.get(name, (b"",))
    if len(values) > 1:
        raise RefusedError(f"{name.decode()} is there {len(values)} times")
    return values[0]


def _key(value: bytes) -> TorrentKey:
    if len(value) != KEY_LENGTH:
        raise RefusedError(f"info_hash has {len(value)} bytes, not {KEY_LENGTH}")
    return TorrentKey(value)


def _count(text: bytes) -> int | None:
    """Return a number that may be beyond all bounds; None for what is none."""
    if _HUGE.fullmatch(text):
        return 10**9
    return int(text) if _NUMBER.fullmatch(text) else None
