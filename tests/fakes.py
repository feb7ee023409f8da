"""Stand-ins for what lies outside a node: a swarm without a network, and a web server that can misbehave."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from torrentfs.node.seams import SwarmEvents
from torrentfs.repository.metainfo import Hasher, InfoHash, Kind, Metainfo, PieceIndex, TorrentRef


@dataclass(frozen=True, slots=True)
class FakeCounters:
    """Figures of a swarm that uploads nothing."""

    uploaded: int = 0
    redundant: int = 0
    peers: int = 0


class FakeSwarm:
    """A swarm whose only peer is the test: `peer` holds what it can send, once `connect_peer` was called.

    As in the real one, pieces lie on disk before they are told of, and are told of later than asked for.
    """

    def __init__(self, events: SwarmEvents) -> None:
        self.events = events
        self.peer: dict[InfoHash, bytes] = {}
        self.added: dict[InfoHash, tuple[Metainfo, Path]] = {}
        self.have: dict[InfoHash, set[int]] = {}
        self.wanted: dict[InfoHash, dict[PieceIndex, bool]] = {}
        self.dialled: list[tuple[str, int]] = []
        self.own = "192.0.2.1"
        self.alerts_most = 0
        self.neighbours: list[str] = []
        self.neighbours_have: set[int] = set()
        """Pieces that some neighbour has, but does not send."""
        self._connected: set[InfoHash] = set()
        self._tell, self._told = trio.open_memory_channel[tuple[InfoHash, list[int]]](10_000)
        self._send, self._receive = trio.open_memory_channel[tuple[InfoHash, PieceIndex, bytes]](10_000)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_looks)
            task_status.started()
            async for info_hash, piece, data in self._receive:
                self._arrive(info_hash, piece, data)

    async def _answer_looks(self) -> None:
        async for info_hash, counts in self._told:
            self.events.seen(info_hash, counts)

    def add(
        self,
        metainfo: Metainfo,
        file: Path,
        have: Sequence[bool] | None,
        peers: Iterable[tuple[str, int]] = (),
    ) -> None:
        assert metainfo.info_hash not in self.added, "added twice"
        self.added[metainfo.info_hash] = (metainfo, file)
        self.have[metainfo.info_hash] = {index for index, here in enumerate(have or ()) if here}
        self.wanted[metainfo.info_hash] = {}
        self.dialled += peers

    def remove(self, info_hash: InfoHash) -> None:
        for about in (self.added, self.have, self.wanted):
            del about[info_hash]
        self._connected.discard(info_hash)

    def connect(self, info_hash: InfoHash, peers: Iterable[tuple[str, int]]) -> None:
        self.dialled += peers

    def drop(self, info_hash: InfoHash, pieces: Collection[PieceIndex]) -> None:
        self.have[info_hash] -= set(pieces)
        self._connected.discard(info_hash)
        self.events.peers_changed(info_hash, 0)

    def reveal(self, info_hash: InfoHash, have: Sequence[bool]) -> bool:
        news = {index for index, here in enumerate(have) if here} - self.have[info_hash]
        self.have[info_hash] |= news
        if news:
            self._connected.discard(info_hash)
            self.events.peers_changed(info_hash, 0)
        return bool(news)

    def want(self, info_hash: InfoHash, pieces: Sequence[PieceIndex], *, urgent: bool) -> None:
        self.wanted[info_hash].update(dict.fromkeys(pieces, urgent))
        self._serve(info_hash)

    def unwant(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        for piece in pieces:
            self.wanted[info_hash].pop(piece, None)

    def inject(self, info_hash: InfoHash, piece: PieceIndex, data: bytes) -> None:
        self._send.send_nowait((info_hash, piece, data))

    def look(self, info_hash: InfoHash) -> None:
        if info_hash not in self.added:
            return
        metainfo, _ = self.added[info_hash]
        has = int(info_hash in self._connected and info_hash in self.peer)
        counts = [int(bool(has or piece in self.neighbours_have)) for piece in range(metainfo.piece_count)]
        self._tell.send_nowait((info_hash, counts))

    def company(self, info_hash: InfoHash) -> tuple[str, frozenset[str]]:
        return self.own, frozenset(self.neighbours if info_hash in self._connected else ())

    def received(self) -> dict[str, int]:
        return {}

    def connected(self, info_hash: InfoHash) -> int:
        return int(info_hash in self._connected)

    async def counters(self) -> FakeCounters:
        return FakeCounters(peers=len(self._connected))

    def connect_peer(self, info_hash: InfoHash) -> None:
        """Let the test's peer appear."""
        self._connected.add(info_hash)
        self.events.peers_changed(info_hash, 1)
        self._serve(info_hash)

    def disconnect_peer(self, info_hash: InfoHash) -> None:
        """Let it go again."""
        self._connected.discard(info_hash)
        self.events.peers_changed(info_hash, 0)

    def _serve(self, info_hash: InfoHash) -> None:
        data = self.peer.get(info_hash)
        if data is None or info_hash not in self._connected:
            return
        metainfo, _ = self.added[info_hash]
        for piece in list(self.wanted[info_hash]):
            start = piece * metainfo.piece_length
            self._send.send_nowait((info_hash, piece, data[start : start + metainfo.piece_span(piece)]))
        self.wanted[info_hash].clear()

    def _arrive(self, info_hash: InfoHash, piece: PieceIndex, data: bytes) -> None:
        metainfo, path = self.added[info_hash]
        if piece in self.have[info_hash]:
            return
        if not metainfo.verify(piece, data):
            self.events.piece_failed(info_hash, piece)
            return
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(piece * metainfo.piece_length)
            file.write(data)
        self.have[info_hash].add(piece)
        self.wanted[info_hash].pop(piece, None)
        self.events.pieces_arrived(info_hash, [piece])


@dataclass(frozen=True, slots=True)
class Published:
    """A torrent and its bytes."""

    ref: TorrentRef
    metainfo: Metainfo
    data: bytes

    @staticmethod
    def of(data: bytes, kind: Kind = Kind.PACK) -> "Published":
        hasher = Hasher()
        hasher.update(data)
        metainfo = hasher.finish(kind.suffix)
        return Published(TorrentRef(metainfo.info_hash, len(data), kind), metainfo, data)

    def files(self) -> dict[str, bytes]:
        """Return what a mirror holds of it, by path."""
        kind, info_hash = self.ref.kind, self.ref.info_hash
        return {kind.url_path(info_hash): self.data, kind.torrent_path(info_hash): self.metainfo.torrent()}


@dataclass
class Web:
    """A web server on loopback that holds *files*; `fault` is what is wrong with it.

    Faults: "stall" (accepts, never answers), "stall data" (answers, sends nothing), "absent" (404),
    "whole" (ignores ranges), "wrong" (other bytes), "short" (closes half way), "error" (500), "" (none).
    Metainfo is always served right, but for "stall", "absent" and "error".
    """

    files: dict[str, bytes]
    fault: str = ""
    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Paths and Range headers."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def run(self, *, task_status: trio.TaskStatus["Web"] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self)
        await trio.serve_listeners(self._serve, listeners)

    async def _serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # the client went away in the middle of an answer
            async with stream:
                while (head := await _head(stream)) is not None:
                    path, headers = head
                    self.asked.append((path, headers.get("range", "")))
                    await self._answer(stream, path, headers.get("range", ""))

    async def _answer(self, stream: trio.SocketStream, path: str, wanted: str) -> None:
        body = self.files.get(path)
        if self.fault == "stall":
            await trio.sleep_forever()
        if self.fault == "error":
            return await _send(stream, "500 Oh", b"")
        if body is None or self.fault == "absent":
            return await _send(stream, "404 Not Found", b"")
        if not wanted or self.fault == "whole":
            return await _send(stream, "200 OK", body)
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        extra = f"Content-Range: bytes {first}-{last}/{len(body)}\r\n"
        body = body[first : last + 1]
        if self.fault == "wrong":
            body = bytes(byte ^ 1 for byte in body)
        if self.fault in {"stall data", "short"}:
            keep = len(body) // 2 if self.fault == "short" else 0
            await _send(stream, "206 Partial", body, extra, keep)
            if self.fault == "stall data":
                await trio.sleep_forever()
            raise trio.BrokenResourceError
        return await _send(stream, "206 Partial", body, extra)


async def _head(stream: trio.SocketStream) -> tuple[str, dict[str, str]] | None:
    buffer = b""
    while b"\r\n\r\n" not in buffer:
        chunk = await stream.receive_some()
        if not chunk:
            return None
        buffer += chunk
    lines = buffer.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    return lines[0].split(" ")[1].removeprefix("/"), headers


async def _send(
    stream: trio.SocketStream, status: str, body: bytes, extra: str = "", keep: int | None = None
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    await stream.send_all(head.encode() + body[:keep])
