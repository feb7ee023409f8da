"""Tests of the swarm: real sessions, two or three of them, on loopback."""

import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import libtorrent as lt
import pytest
import trio

from torrentfs.config import SiteSettings, SwarmSettings
from torrentfs.errors import FormatError, ListenError
from torrentfs.node.holes import punch
from torrentfs.node.swarm import Swarm
from torrentfs.repository.metainfo import PIECE_LENGTH, Hasher, InfoHash, Metainfo, PieceIndex

PIECES = 12
LENGTH = PIECES * PIECE_LENGTH - 1000
DEADLINE_S = 10


class Recorder:
    """Keeps what the swarm tells, and lets tests wait for it."""

    def __init__(self) -> None:
        self.arrived: list[PieceIndex] = []
        self.failed: list[PieceIndex] = []
        self.disk_errors: list[str] = []
        self.connected = 0
        self.counts: Sequence[int] = ()
        self._changed = trio.Event()

    def pieces_arrived(self, info_hash: InfoHash, pieces: Sequence[PieceIndex]) -> None:
        self.arrived.extend(pieces)
        self._tell()

    def piece_failed(self, info_hash: InfoHash, piece: PieceIndex) -> None:
        self.failed.append(piece)
        self._tell()

    def disk_failed(self, info_hash: InfoHash, reason: str) -> None:
        self.disk_errors.append(reason)
        self._tell()

    def peers_changed(self, info_hash: InfoHash, connected: int) -> None:
        self.connected = connected
        self._tell()

    def seen(self, info_hash: InfoHash, counts: Sequence[int]) -> None:
        self.counts = counts
        self._tell()

    async def until(self, condition: Callable[["Recorder"], object]) -> None:
        with trio.fail_after(DEADLINE_S):
            while not condition(self):
                await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def running(
    listen: str = "127.0.0.1:0", site: SiteSettings | None = None
) -> AsyncIterator[tuple[Swarm, Recorder]]:
    """A swarm that serves, and what it tells."""
    recorder = Recorder()
    swarm = Swarm(SwarmSettings(listen=listen), site or SiteSettings(), recorder)
    async with trio.open_nursery() as nursery:
        await nursery.start(swarm.run)
        yield swarm, recorder
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(LENGTH)


@pytest.fixture(scope="module")
def metainfo(content: bytes) -> Metainfo:
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish(".tar.zst")


@pytest.fixture
def whole(content: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "whole"
    file.write_bytes(content)
    return file


def piece_of(data: bytes, piece: int) -> bytes:
    return data[piece * PIECE_LENGTH : (piece + 1) * PIECE_LENGTH]


def read_piece(file: Path, piece: int) -> bytes:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return os.pread(descriptor, PIECE_LENGTH, piece * PIECE_LENGTH)
    finally:
        os.close(descriptor)


def pieces(*numbers: int) -> list[PieceIndex]:
    return [PieceIndex(number) for number in numbers]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_urgent_piece_comes_from_a_peer_and_is_readable(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])

        node.want(metainfo.info_hash, pieces(7), urgent=True)
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [7]
        assert read_piece(tmp_path / "cache", 7) == piece_of(content, 7)
        assert node.connected(metainfo.info_hash) == 1


async def test_pieces_that_nobody_wants_do_not_come(metainfo: Metainfo, whole: Path, tmp_path: Path) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])
        node.want(metainfo.info_hash, pieces(2, 3, 11), urgent=False)
        await seen.until(lambda seen: len(seen.arrived) == 3)

        counters = await node.counters()

        assert sorted(seen.arrived) == [2, 3, 11]
        assert counters.downloaded == 3 * PIECE_LENGTH - 1000
        assert (counters.redundant, counters.failed, counters.uploaded) == (0, 0, 0)
        assert counters.torrent_peers == {metainfo.info_hash: 1}
        assert (await origin.counters()).uploaded == counters.downloaded


async def test_single_pieces_come_once_from_one_of_many_peers(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    """libtorrent would ask all of them for a piece that is the only one wanted."""
    have = [True] * (PIECES - 2) + [False] * 2
    async with AsyncExitStack() as stack:
        peers = [(await stack.enter_async_context(running()))[0] for _ in range(4)]
        node, seen = await stack.enter_async_context(running())
        for number, peer in enumerate(peers):
            file = tmp_path / f"peer{number}"
            file.write_bytes(whole.read_bytes())
            peer.add(metainfo, file, have)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [peer.listen for peer in peers])
        await seen.until(lambda seen: seen.connected == 4)

        for piece in pieces(*range(PIECES - 2)):
            node.want(metainfo.info_hash, [piece], urgent=True)
            node.look(metainfo.info_hash)
            await seen.until(lambda seen, piece=piece: piece in seen.arrived)

        assert seen.arrived == [*range(PIECES - 2)]
        assert (await node.counters()).redundant <= PIECE_LENGTH


async def test_what_no_peer_has_is_not_asked_for_beside_what_is_wanted_for_long(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    async with running() as (origin, _), running() as (peer, _), running() as (node, seen):
        part = tmp_path / "part"
        part.write_bytes(whole.read_bytes())
        peer.add(metainfo, part, [True] * 4 + [False] * (PIECES - 4))
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [peer.listen])
        node.want(metainfo.info_hash, pieces(5), urgent=True)
        await seen.until(lambda seen: seen.connected == 1)
        node.look(metainfo.info_hash)
        await seen.until(lambda seen: seen.counts)

        node.unwant(metainfo.info_hash, pieces(5))
        node.connect(metainfo.info_hash, [origin.listen])
        await seen.until(lambda seen: seen.connected == 2)
        for piece in pieces(11, 10):
            node.want(metainfo.info_hash, [piece], urgent=True)
            await seen.until(lambda seen, piece=piece: piece in seen.arrived)

        assert seen.arrived == [11, 10]
        assert (await node.counters()).downloaded == 2 * PIECE_LENGTH - 1000


async def test_a_peer_is_never_sent_what_was_given_back_to_the_disk(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    """Once `drop` has returned, libtorrent reads no more of the pieces."""
    async with AsyncExitStack() as stack:
        origin, peer = [(await stack.enter_async_context(running()))[0] for _ in range(2)]
        node, seen = await stack.enter_async_context(running())
        origin.add(metainfo, whole, None, seed=True)
        part = tmp_path / "part"
        part.write_bytes(whole.read_bytes())
        peer.add(metainfo, part, [True] * PIECES)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen, peer.listen])
        await seen.until(lambda seen: seen.connected == 2)

        for last in range(PIECES, 0, -1):
            node.want(metainfo.info_hash, pieces(*range(PIECES)), urgent=True)
            await seen.until(lambda seen: seen.arrived)
            lost = pieces(*range(last - 1, PIECES))
            peer.drop(metainfo.info_hash, lost)
            with part.open("r+b") as file:
                for piece in lost:
                    punch(file.fileno(), piece * PIECE_LENGTH, metainfo.piece_span(piece))
            node.drop(metainfo.info_hash, pieces(*range(PIECES)))
            seen.arrived.clear()
        node.want(metainfo.info_hash, pieces(*range(PIECES)), urgent=True)
        await seen.until(lambda seen: len(set(seen.arrived)) == PIECES)

        assert seen.failed == []
        assert (tmp_path / "cache").read_bytes() == whole.read_bytes()
        assert (await node.counters()).failed == 0


async def test_what_came_once_is_seeded_to_the_next_node(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    async with running() as (origin, _), running() as (first, seen), running() as (second, seen_by_second):
        origin.add(metainfo, whole, None, seed=True)
        first.add(metainfo, tmp_path / "first", [False] * PIECES, [origin.listen])
        first.want(metainfo.info_hash, pieces(4), urgent=True)
        await seen.until(lambda seen: seen.arrived)
        second.add(metainfo, tmp_path / "second", [False] * PIECES, [first.listen])

        second.want(metainfo.info_hash, pieces(4), urgent=True)
        await seen_by_second.until(lambda seen: seen.arrived)

        assert read_piece(tmp_path / "second", 4) == piece_of(content, 4)
        assert (await first.counters()).uploaded == PIECE_LENGTH


async def test_injected_piece_is_verified_reported_and_seeded(
    content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    async with running() as (first, seen), running() as (second, seen_by_second):
        first.add(metainfo, tmp_path / "first", [False] * PIECES)
        first.inject(metainfo.info_hash, PieceIndex(11), piece_of(content, 11))
        await seen.until(lambda seen: seen.arrived)
        second.add(metainfo, tmp_path / "second", [False] * PIECES, [first.listen])

        second.want(metainfo.info_hash, pieces(11), urgent=True)
        await seen_by_second.until(lambda seen: seen.arrived)

        assert seen.arrived == [11]
        assert read_piece(tmp_path / "first", 11) == piece_of(content, 11)
        assert read_piece(tmp_path / "second", 11) == piece_of(content, 11)


@pytest.mark.warns("failed its hash")
async def test_injected_piece_with_a_flipped_bit_fails_and_a_good_one_follows(
    content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    bad = bytearray(piece_of(content, 5))
    bad[100_000] ^= 1
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES)

        node.inject(metainfo.info_hash, PieceIndex(5), bytes(bad))
        await seen.until(lambda seen: seen.failed)
        node.inject(metainfo.info_hash, PieceIndex(5), piece_of(content, 5))
        await seen.until(lambda seen: seen.arrived)

        assert (seen.failed, seen.arrived) == ([5], [5])
        assert read_piece(tmp_path / "cache", 5) == piece_of(content, 5)


async def test_injected_piece_of_another_length_is_refused(metainfo: Metainfo, tmp_path: Path) -> None:
    async with running() as (node, _):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES)

        with pytest.raises(FormatError):
            node.inject(metainfo.info_hash, PieceIndex(5), b"short")


async def test_piece_that_is_here_already_is_reported_again_when_injected(
    content: bytes, metainfo: Metainfo, whole: Path
) -> None:
    async with running() as (node, seen):
        node.add(metainfo, whole, [True] * PIECES)

        node.inject(metainfo.info_hash, PieceIndex(5), piece_of(content, 5))
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [5]


async def test_pieces_said_to_be_here_are_seeded_and_not_fetched(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    have = [piece != 3 for piece in range(PIECES)]
    async with running() as (first, seen), running() as (second, seen_by_second):
        first.add(metainfo, whole, have)
        second.add(metainfo, tmp_path / "second", [False] * PIECES, [first.listen])

        first.want(metainfo.info_hash, pieces(6), urgent=True)
        second.want(metainfo.info_hash, pieces(6), urgent=True)
        await seen_by_second.until(lambda seen: seen.arrived)

        assert seen.arrived == []
        assert read_piece(tmp_path / "second", 6) == piece_of(content, 6)


@pytest.mark.warns("does not hold what was said", "cannot|shorter")
async def test_file_that_is_cut_short_after_we_looked_is_checked_and_goes_on(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torrentfs.node.swarm.credible", lambda metainfo, file, have: list(have))
    short = tmp_path / "short"
    short.write_bytes(content[: 2 * PIECE_LENGTH])
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, short, [True] * PIECES, [origin.listen])
        await seen.until(lambda seen: seen.connected)

        node.want(metainfo.info_hash, pieces(1, 2), urgent=True)
        await seen.until(lambda seen: 2 in seen.arrived)

        assert 1 not in seen.arrived


@pytest.mark.warns("is shorter than")
async def test_claims_past_the_end_of_the_file_are_not_believed(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_bytes(content[: 2 * PIECE_LENGTH])
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, short, [True] * PIECES, [origin.listen])

        node.want(metainfo.info_hash, pieces(1, 2), urgent=True)
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [2]


async def test_dropped_piece_is_fetched_again(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    rotten = tmp_path / "rotten"
    rotten.write_bytes(content[:PIECE_LENGTH] + bytes(PIECE_LENGTH) + content[2 * PIECE_LENGTH :])
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, rotten, [True] * PIECES, [origin.listen])
        await seen.until(lambda seen: seen.connected)

        node.drop(metainfo.info_hash, pieces(1))
        node.want(metainfo.info_hash, pieces(1), urgent=True)
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [1]
        assert rotten.read_bytes() == content


async def test_removed_torrent_can_be_added_again_at_once(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])
        await seen.until(lambda seen: seen.connected)

        node.remove(metainfo.info_hash)
        assert node.connected(metainfo.info_hash) == 0
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])
        node.want(metainfo.info_hash, pieces(0), urgent=True)
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [0]


async def test_unwanted_pieces_do_not_come_when_a_peer_turns_up(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES)
        node.want(metainfo.info_hash, pieces(1, 2), urgent=True)
        node.want(metainfo.info_hash, pieces(3, 4), urgent=False)

        node.unwant(metainfo.info_hash, pieces(1, 3))
        node.connect(metainfo.info_hash, [origin.listen])
        await seen.until(lambda seen: len(seen.arrived) == 2)

        assert sorted(seen.arrived) == [2, 4]
        assert (await node.counters()).downloaded == 2 * PIECE_LENGTH


async def test_peer_that_was_down_is_dialled_when_a_piece_is_wanted(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    address = ("127.0.0.1", free_port())
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [address])
        node.want(metainfo.info_hash, pieces(0), urgent=True)
        assert node.connected(metainfo.info_hash) == 0
        async with running(f"127.0.0.1:{address[1]}") as (origin, _):
            origin.add(metainfo, whole, None, seed=True)
            await seen.until(lambda seen: seen.arrived == [0])
        await seen.until(lambda seen: not seen.connected)

        async with running(f"127.0.0.1:{address[1]}") as (origin, _):
            origin.add(metainfo, whole, None, seed=True)
            node.want(metainfo.info_hash, pieces(1), urgent=True)
            await seen.until(lambda seen: seen.arrived == [0, 1])

        assert seen.failed == []


async def test_peer_that_goes_while_a_piece_is_awaited_is_dialled_again(
    metainfo: Metainfo, whole: Path, tmp_path: Path
) -> None:
    address = ("127.0.0.1", free_port())
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [address])
        async with running(f"127.0.0.1:{address[1]}") as (idle, _):
            idle.add(metainfo, tmp_path / "none", [False] * PIECES)
            await seen.until(lambda seen: seen.connected)
            node.want(metainfo.info_hash, pieces(6), urgent=True)
        await seen.until(lambda seen: not seen.connected)

        async with running(f"127.0.0.1:{address[1]}") as (origin, _):
            origin.add(metainfo, whole, None, seed=True)
            await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [6]


async def test_peer_may_be_named(metainfo: Metainfo, whole: Path, tmp_path: Path) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)

        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [("localhost", origin.listen[1])])
        await seen.until(lambda seen: seen.connected == 1)

        assert node.peers(metainfo.info_hash) == [origin.listen]


class MovingHost(trio.abc.HostnameResolver):
    """Knows one host, which moves."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.address, port))]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


async def test_named_peer_that_moves_is_found_again_when_a_piece_is_wanted(
    metainfo: Metainfo, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torrentfs.node.names.AGE_MAX_S", 0.0)
    resolver = MovingHost("127.0.0.7")  # nobody listens there
    trio.socket.set_custom_hostname_resolver(resolver)
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [("seed.example", origin.listen[1])])
        with trio.fail_after(DEADLINE_S):
            while not node._torrents[metainfo.info_hash].peers:  # noqa: ASYNC110 - it has no event
                await trio.sleep(0.01)

        resolver.address = "127.0.0.1"
        with trio.fail_after(DEADLINE_S):
            for piece in range(PIECES):
                node.want(metainfo.info_hash, pieces(piece), urgent=True)
                await trio.sleep(0.05)
                if seen.connected:
                    break
        await seen.until(lambda seen: seen.arrived)

        assert node.peers(metainfo.info_hash) == [origin.listen]


async def test_file_is_where_we_say_whatever_the_metainfo_says(
    content: bytes, metainfo: Metainfo, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "in" / "ours", [False] * PIECES)
        node.inject(metainfo.info_hash, PieceIndex(0), piece_of(content, 0))
        await seen.until(lambda seen: seen.arrived)

    assert [path.name for path in tmp_path.rglob("*")] == ["in", "ours"]


async def test_taken_port_is_refused() -> None:
    async with running() as (origin, _):
        with pytest.raises(ListenError, match=r"cannot listen on 127\.0\.0\.1:"):
            await Swarm(
                SwarmSettings(listen=f"127.0.0.1:{origin.listen[1]}"), SiteSettings(), Recorder()
            ).run()


@pytest.mark.warns("")
async def test_unwritable_file_is_reported_and_tried_again(
    content: bytes, metainfo: Metainfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torrentfs.node.swarm.RECOVER_PAUSE_S", 0.0)
    (tmp_path / "cache").mkdir()  # a directory cannot be written
    async with running() as (node, seen):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES)
        node.inject(metainfo.info_hash, PieceIndex(0), piece_of(content, 0))
        await seen.until(lambda seen: seen.disk_errors)

        (tmp_path / "cache").rmdir()
        node.inject(metainfo.info_hash, PieceIndex(0), piece_of(content, 0))
        await seen.until(lambda seen: seen.arrived)

        assert (seen.failed, seen.arrived) == ([], [0])


@pytest.mark.warns("alerts were lost")
async def test_what_happened_unseen_is_found_out(
    metainfo: Metainfo, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        with monkeypatch.context() as deaf:
            for event in ("connect", "disconnected"):
                deaf.delitem(node._dispatch, getattr(lt, f"peer_{event}_alert"))
            deaf.setattr("torrentfs.node.torrent.Torrent.finished", lambda torrent, piece: False)
            node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])
            node.want(metainfo.info_hash, pieces(3, 5), urgent=True)
            with trio.fail_after(DEADLINE_S):
                handle = node._torrents[metainfo.info_hash].handle
                while not all(map(handle.have_piece, (3, 5))):  # noqa: ASYNC110 - nothing tells, as is wanted
                    await trio.sleep(0.01)
            node._take_alerts()
        assert (seen.arrived, seen.connected) == ([], 0)

        node._on_alerts_dropped(None)
        await seen.until(lambda seen: seen.arrived)

        assert (sorted(seen.arrived), seen.connected) == ([3, 5], 1)


@pytest.mark.warns("No space left on device")
async def test_a_full_disk_is_told_of_what_peers_send_and_tried_again(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to("/dev/full")
    async with running() as (origin, _), running() as (node, seen):
        origin.add(metainfo, whole, None, seed=True)
        node.add(metainfo, tmp_path / "cache", [False] * PIECES, [origin.listen])
        node.want(metainfo.info_hash, pieces(3), urgent=True)
        await seen.until(lambda seen: seen.disk_errors)

        node.want(metainfo.info_hash, pieces(4), urgent=True)
        await seen.until(lambda seen: len(seen.disk_errors) == 2)
        (tmp_path / "cache").unlink()
        monkeypatch.setattr("torrentfs.node.swarm.RECOVER_PAUSE_S", 0.0)
        node.want(metainfo.info_hash, pieces(3), urgent=True)
        await seen.until(lambda seen: seen.arrived)

        assert seen.arrived == [3]
        assert read_piece(tmp_path / "cache", 3) == piece_of(content, 3)


@pytest.mark.warns("No such file", "does not hold what was said")
async def test_what_could_not_be_read_for_a_peer_is_seeded_again_when_it_can(
    content: bytes, metainfo: Metainfo, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torrentfs.node.swarm.REVIVE_AFTER_S", 0.05)
    async with running() as (first, seen), running() as (second, seen_by_second):
        first.add(metainfo, whole, [True] * PIECES)
        second.add(metainfo, tmp_path / "second", [False] * PIECES, [first.listen])
        await seen_by_second.until(lambda seen: seen.connected)
        aside = whole.rename(tmp_path / "aside")
        second.want(metainfo.info_hash, pieces(6), urgent=True)
        await seen.until(lambda seen: seen.disk_errors)

        aside.rename(whole)
        await seen_by_second.until(lambda seen: seen.arrived)

        assert read_piece(tmp_path / "second", 6) == piece_of(content, 6)


async def test_a_swarm_that_has_closed_bears_an_unwant(metainfo: Metainfo, tmp_path: Path) -> None:
    async with running() as (node, _):
        node.add(metainfo, tmp_path / "cache", [False] * PIECES)
        node.want(metainfo.info_hash, pieces(3), urgent=True)

    node.unwant(metainfo.info_hash, pieces(3))
