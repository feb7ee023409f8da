"""This module tests the filesystem that FUSE sessions serve: waiting, deadlines, errors, counts."""

import errno
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest
import trio
import trio.testing
from local_content import MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.errors import (
    CacheError,
    DeadlineError,
    FetchError,
    FormatError,
    IsADirectory,
    NameTooLong,
    NotSupported,
    StaleInode,
    TorrentfsError,
    TreeError,
)
from torrentfs.fuse.errnos import TABLE, errno_of
from torrentfs.fuse.failures import LINES_MAX, LINES_WINDOW_S, MEMORY_MAX, MEMORY_S, Failures
from torrentfs.fuse.filesystem import ROUNDS_MAX, SPARE_REQUESTS, Filesystem
from torrentfs.fuse.waits import SAMPLES_MAX, Waits
from torrentfs.repository.metainfo import InfoHash, Kind, NotCached, TorrentRef
from torrentfs.tree import Inode, Slice, Tree

PACK = TorrentRef(InfoHash(bytes(32)), 1 << 20, Kind.PACK)
FRAME = 1000
DEADLINE_S = 60.0


class Scripted(Tree):
    """A tree with one file, whose slices the test says; plans may miss something first."""

    def __init__(self, slices: Sequence[Slice]) -> None:
        super().__init__(Frames(), MemoryLedger(), (0, 0))
        self.slices = tuple(slices)
        self.error: Exception | None = None

    def plan(self, inode: Inode, offset: int, length: int) -> tuple[Slice, ...]:
        if self.error is not None:
            raise self.error
        return self.slices


class Frames:
    """A source of frames: those in `here` can be read, the others come *delay_s* after they are asked for."""

    def __init__(self, here: Sequence[int] = (), delay_s: float = 1.0) -> None:
        self.here = set(here)
        self.delay_s = delay_s
        self.asked: list[tuple[int, float]] = []
        self.error: Exception | None = None

    def range(self, ref: TorrentRef, offset: int, length: int) -> bytes:
        raise NotCached(ref, offset, length)

    def expect(self, refs: Sequence[TorrentRef]) -> None:
        pass

    def frame(self, ref: TorrentRef, offset: int, stored: int) -> bytes:
        if offset not in self.here:
            raise NotCached(ref, offset, stored)
        return bytes([offset % 251]) * FRAME

    def needing(self, wanted: Sequence[NotCached]) -> AbstractContextManager[None]:
        return nullcontext()

    async def ensure(self, missing: NotCached, deadline: float) -> None:
        self.asked.append((missing.offset, trio.current_time()))
        if trio.current_time() + self.delay_s > deadline:
            await trio.sleep_until(deadline)
            raise DeadlineError("no source had it")
        await trio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        self.here.add(missing.offset)


FILE = Inode(5 << 24 | 7)


def piece(number: int, length: int = FRAME) -> Slice:
    return Slice(PACK, number, 100, 0, length)


def made(slices: Sequence[Slice], frames: Frames) -> tuple[Filesystem, Scripted]:
    tree = Scripted(slices)
    return Filesystem(tree, frames, MountSettings(read_deadline_s=DEADLINE_S)), tree


async def read(filesystem: Filesystem, inode: Inode = FILE) -> bytes:
    """Read as a session does."""
    try:
        return bytes(filesystem.read(inode, 0, 1 << 20))
    except NotCached as missing:
        return bytes(await filesystem.read_later(missing, inode, 0, 1 << 20))


async def fail(filesystem: Filesystem, inode: Inode = FILE) -> int:
    """Read as a session does; return the errno that comes of it."""
    with pytest.raises(TorrentfsError) as caught:
        await read(filesystem, inode)
    return filesystem.fault(caught.value, inode, "read")


async def test_cached_read_does_not_wait(autojump_clock):
    filesystem, _ = made([piece(1), Slice(None, 0, 0, 0, 3), piece(2)], Frames([1, 2]))

    data = filesystem.read(FILE, 0, 1 << 20)

    assert data == b"\x01" * FRAME + bytes(3) + b"\x02" * FRAME
    assert filesystem.stats().waits == 0
    assert filesystem.stats().bytes_read == 2 * FRAME + 3


async def test_all_that_a_read_misses_is_fetched_side_by_side(autojump_clock):
    frames = Frames([2])
    filesystem, _ = made([piece(number) for number in range(1, 6)], frames)

    data = await read(filesystem)

    assert len(data) == 5 * FRAME
    assert sorted(offset for offset, _ in frames.asked) == [1, 3, 4, 5]
    assert len({time for _, time in frames.asked}) == 1


async def test_waits_are_counted(autojump_clock):
    filesystem, _ = made([piece(1)], Frames(delay_s=3.0))

    await read(filesystem)

    stats = filesystem.stats()
    assert (stats.waiting, stats.waits) == (0, 1)
    assert stats.wait_p50_s == pytest.approx(3.0)


async def test_a_dead_source_ends_in_eio_at_the_deadline(autojump_clock):
    filesystem, _ = made([piece(1)], Frames(delay_s=1000))
    started = trio.current_time()

    with pytest.raises(DeadlineError):
        await read(filesystem)

    assert trio.current_time() - started == pytest.approx(DEADLINE_S)


async def test_a_source_that_forgets_its_deadline_is_ended(autojump_clock):
    class Endless(Frames):
        """A source that never answers."""

        async def ensure(self, missing: NotCached, deadline: float) -> None:
            await trio.sleep_forever()

    filesystem, _ = made([piece(1)], Endless())
    started = trio.current_time()

    with pytest.raises(DeadlineError):
        await read(filesystem)

    assert DEADLINE_S <= trio.current_time() - started < DEADLINE_S + 1
    assert filesystem.stats().waiting == 0


@pytest.mark.warns("read of ordinal 5 .* failed: no source had it")
async def test_a_failure_is_logged_and_counted_once_and_remembered_a_moment(autojump_clock):
    frames = Frames(delay_s=1000)
    filesystem, _ = made([piece(1)], frames)
    assert await fail(filesystem) == errno.EIO
    failed = trio.current_time()

    assert await fail(filesystem) == errno.EIO

    assert trio.current_time() == failed
    assert filesystem.stats().errors == 1


@pytest.mark.warns("failed: no source had it")
async def test_a_later_read_tries_anew(autojump_clock):
    frames = Frames(delay_s=1000)
    filesystem, _ = made([piece(1)], frames)
    await fail(filesystem)
    frames.delay_s = 1

    await trio.sleep(MEMORY_S)

    assert len(await read(filesystem)) == FRAME


@pytest.mark.warns("failed: no source had it")
async def test_what_is_cached_is_read_right_after_a_failure(autojump_clock):
    frames = Frames(delay_s=1000)
    filesystem, _ = made([piece(1)], frames)
    await fail(filesystem)
    frames.here.add(1)

    assert len(filesystem.read(FILE, 0, 10)) == FRAME


async def test_cancelled_waiters_leave_nothing_behind(autojump_clock):
    filesystem, _ = made([piece(1)], Frames(delay_s=10))

    with trio.move_on_after(1):
        await read(filesystem)

    assert filesystem.stats().waiting == 0
    assert filesystem.stats().errors == 0


async def test_cached_reads_and_lookups_are_answered_while_200_wait(autojump_clock):
    frames = Frames([1], delay_s=1000)
    filesystem, _ = made([piece(1)], frames)
    order: list[str] = []

    async def wait(number: int) -> None:
        with pytest.raises(DeadlineError):
            await filesystem.later(
                NotCached(PACK, 9, 1), Inode(number << 24), lambda: filesystem.read(FILE, 0, 1)
            )
        order.append("waited")

    async with trio.open_nursery() as nursery:
        for number in range(1, 201):
            nursery.start_soon(wait, number)
        await trio.testing.wait_all_tasks_blocked()
        assert filesystem.stats().waiting == 200
        before = trio.current_time()
        assert len(await read(filesystem)) == FRAME
        order.append("read")
        assert trio.current_time() == before

    assert order[0] == "read"
    assert filesystem.stats().waiting == 0


async def test_so_many_may_wait_that_some_requests_are_left_for_others(autojump_clock):
    filesystem = Filesystem(
        Scripted([piece(1)]), Frames(delay_s=1000), MountSettings(requests_max=SPARE_REQUESTS + 3)
    )

    async with trio.open_nursery() as nursery:
        for number in range(1, 4):
            nursery.start_soon(fail, filesystem, Inode(number << 24))
        await trio.testing.wait_all_tasks_blocked()

        with pytest.raises(FetchError, match="3 requests wait"):
            await read(filesystem, Inode(9 << 24))

        assert filesystem.stats().waiting == 3
        nursery.cancel_scope.cancel()


async def test_what_is_missing_again_and_again_ends(autojump_clock):
    class Leaky(Frames):
        """A source that says it has what it has not."""

        async def ensure(self, missing: NotCached, deadline: float) -> None:
            self.asked.append((missing.offset, 0))
            await trio.lowlevel.checkpoint()

    frames = Leaky()
    filesystem, _ = made([piece(1)], frames)

    with pytest.raises(FetchError):
        await read(filesystem)

    assert len(frames.asked) == ROUNDS_MAX


async def test_one_of_several_missing_frames_fails_the_read_with_its_reason(autojump_clock):
    frames = Frames()
    frames.error = CacheError("the disk is full")
    filesystem, _ = made([piece(1), piece(2)], frames)

    with pytest.raises(CacheError, match="the disk is full"):
        await read(filesystem)


async def test_a_frame_shorter_than_promised_is_refused():
    filesystem, _ = made([piece(1, FRAME + 1)], Frames([1]))

    with pytest.raises(FormatError):
        filesystem.read(FILE, 0, 10)


@pytest.mark.warns("met a fault of ours")
async def test_a_fault_of_ours_is_eio_with_a_traceback_in_the_log(caplog):
    filesystem, tree = made([], Frames())
    tree.error = ZeroDivisionError("oops")
    filesystem = Filesystem(tree, Frames(), MountSettings())

    with pytest.raises(ZeroDivisionError) as caught:
        filesystem.read(FILE, 0, 1)

    assert filesystem.fault(caught.value, FILE, "read") == errno.EIO
    assert "ZeroDivisionError: oops" in caplog.text
    assert filesystem.stats().errors == 1


async def test_answers_of_the_tree_are_no_errors():
    filesystem, _ = made([], Frames())

    assert filesystem.fault(StaleInode("gone"), FILE, "read") == errno.ESTALE
    assert filesystem.fault(IsADirectory("no file"), FILE, "read") == errno.EISDIR
    assert filesystem.stats().errors == 0


async def test_long_names_and_other_namespaces_are_refused():
    filesystem, _ = made([], Frames())

    with pytest.raises(NameTooLong):
        filesystem.lookup(Inode(1), b"x" * 256)
    with pytest.raises(NotSupported):
        filesystem.xattr(FILE, b"security.capability")
    assert filesystem.lookup(Inode(1), b"x" * 255) is None


def test_every_answer_of_the_tree_has_an_errno():
    answers = {kind for kind in TreeError.__subclasses__() if not kind.__subclasses__()}

    assert set(TABLE) == answers
    assert errno_of(FetchError("x")) == errno.EIO
    assert errno_of(ValueError("x")) == errno.EIO


def test_percentiles_are_of_the_last_waits():
    waits = Waits()
    for number in range(SAMPLES_MAX + 100):
        waits.end(1000.0 if number < 100 else number - 99.0)

    stats = waits.stats()

    assert stats.waits == SAMPLES_MAX + 100
    assert stats.wait_p50_s == SAMPLES_MAX // 2
    assert stats.wait_p99_s == pytest.approx(SAMPLES_MAX * 0.99, abs=1)
    assert Waits().stats().wait_p99_s is None


def test_remembered_failures_are_bounded():
    failures = Failures()
    for number in range(MEMORY_MAX + 5):
        failures.remember(Inode(number), FetchError("x"), 0.0)

    assert failures.recall(Inode(0), 0.0) is None
    assert failures.recall(Inode(MEMORY_MAX), 0.0) is not None
    assert failures.recall(Inode(MEMORY_MAX), MEMORY_S) is None


@pytest.mark.warns("failed: reason", "30 more failures were not logged")
async def test_a_flood_of_failures_is_a_few_lines(autojump_clock, caplog):
    filesystem, _ = made([], Frames())
    for number in range(LINES_MAX + 30):
        filesystem.fault(FetchError("reason"), Inode(number << 24), "read")
    await trio.sleep(LINES_WINDOW_S)

    filesystem.fault(FetchError("reason"), FILE, "read")

    assert len(caplog.records) == LINES_MAX + 2
    assert filesystem.stats().errors == LINES_MAX + 31


def test_attributes_of_the_root_are_those_of_a_directory():
    filesystem, _ = made([], Frames())

    assert stat.S_ISDIR(filesystem.attributes(Inode(1)).mode)
