import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from fakes import Published, Web

from torrentfs.errors import UsageError
from torrentfs.node.mirrors import PAUSE_MAX_S, PAUSE_MIN_S, PAUSES_MAX, Mirror, MirrorError
from torrentfs.repository.metainfo import InfoHash

ONE, TWO = InfoHash(bytes(32)), InfoHash(b"\1" * 32)


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def idle(clock: Clock) -> Mirror:
    return Mirror("file:///nowhere", requests_max=1, timeout_s=1.0, clock=clock)


def test_pauses_grow_to_a_limit_and_end_with_a_success() -> None:
    clock = Clock()
    mirror = idle(clock)
    pauses = []

    for _ in range(10):
        mirror.failed(MirrorError("down"), ONE, clock.now)
        pauses.append(mirror.ready_at(ONE) - clock.now)
        clock.now = mirror.ready_at(ONE) + 1

    assert pauses[:3] == [PAUSE_MIN_S, 2 * PAUSE_MIN_S, 4 * PAUSE_MIN_S]
    assert max(pauses) == PAUSE_MAX_S
    mirror.succeeded(ONE)
    assert mirror.ready_at(ONE) < clock.now
    assert mirror.reason(ONE) == ""


def test_the_same_failure_again_is_no_news_until_a_success() -> None:
    mirror = idle(Clock())
    assert mirror.is_news(MirrorError("down"), ONE)

    mirror.failed(MirrorError("down"), ONE, 0.0)

    assert not mirror.is_news(MirrorError("down"), ONE)
    assert mirror.is_news(MirrorError("slow"), ONE)
    mirror.succeeded(ONE)
    assert mirror.is_news(MirrorError("down"), ONE)


def test_failures_side_by_side_count_once() -> None:
    clock = Clock()
    mirror = idle(clock)
    asked_at = clock.now - 1

    for _ in range(8):
        mirror.failed(MirrorError("down"), ONE, asked_at)

    assert mirror.ready_at(ONE) == clock.now + PAUSE_MIN_S


def test_a_mirror_that_lacks_one_torrent_is_asked_for_others() -> None:
    clock = Clock()
    mirror = idle(clock)

    mirror.failed(MirrorError("HTTP status 404", absent=True), ONE, clock.now)

    assert mirror.ready_at(ONE) > clock.now > mirror.ready_at(TWO)
    assert (mirror.reason(ONE), mirror.reason(TWO)) == ("file:///nowhere/: HTTP status 404", "")


def test_what_a_mirror_lacks_is_remembered_for_a_bounded_number_of_torrents() -> None:
    mirror = idle(Clock())

    for number in range(PAUSES_MAX + 10):
        mirror.failed(MirrorError("no", absent=True), InfoHash(number.to_bytes(32, "big")), 100.0)

    assert len(mirror._pauses) == PAUSES_MAX


@pytest.mark.parametrize("base", ["ftp://example.org/", "file://host/path", "http:///path", "nonsense", ""])
def test_a_url_of_another_kind_is_refused(base: str) -> None:
    with pytest.raises(UsageError):
        Mirror(base, requests_max=1, timeout_s=1.0)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("stall", "no bytes for 0.2 s"),
        ("stall data", "no bytes for 0.2 s"),
        ("short", "peer closed connection"),
        ("error", "HTTP status 500"),
        ("absent", "HTTP status 404"),
    ],
)
async def test_a_fault_is_named(fault: str, reason: str) -> None:
    pack = Published.of(bytes(100))
    async with trio.open_nursery() as nursery:
        web = await nursery.start(Web(pack.files(), fault).run)
        mirror = Mirror(web.url, requests_max=1, timeout_s=0.2)

        with pytest.raises(MirrorError, match=reason) as caught:
            async for _ in mirror.ranges(next(iter(pack.files())), 10, 20, 100):
                pass

        assert caught.value.absent is (fault == "absent")
        await mirror.close()
        nursery.cancel_scope.cancel()


async def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    pack = Published.of(bytes(100))
    (tmp_path / "file").write_bytes(bytes(100))
    async with trio.open_nursery() as nursery:
        web = await nursery.start(Web(pack.files() | {"file": bytes(100)}).run)
        for base in (web.url, tmp_path.as_uri()):
            mirror = Mirror(base, requests_max=1, timeout_s=1.0)

            with pytest.raises(MirrorError):
                async for _ in mirror.ranges("file", 10, 20, 101):
                    pass

            await mirror.close()
        nursery.cancel_scope.cancel()


async def test_a_small_file_is_read_up_to_its_limit_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    async with trio.open_nursery() as nursery:
        web = await nursery.start(Web({"file": bytes(100)}).run)
        for base in (web.url, tmp_path.as_uri()):
            mirror = Mirror(base, requests_max=1, timeout_s=1.0)

            assert await mirror.whole("file", 100) == bytes(100)
            with pytest.raises(MirrorError, match="longer than 99"):
                await mirror.whole("file", 99)

            await mirror.close()
        nursery.cancel_scope.cancel()


async def test_a_dead_server_fails_with_a_reason() -> None:
    mirror = Mirror("http://127.0.0.1:1/", requests_max=1, timeout_s=1.0)

    with pytest.raises(MirrorError):
        await mirror.whole("file", 10)

    await mirror.close()


def test_a_node_does_not_import_what_only_command_lines_need() -> None:
    code = (
        "import sys; from torrentfs.node.mirrors import Mirror;"
        "Mirror('http://127.0.0.1:1/', requests_max=1, timeout_s=1.0);"
        "sys.exit(str({'rich', 'click', 'pygments', 'tuf'} & set(sys.modules) or ''))"
    )

    result = subprocess.run(
        [sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False
    )

    assert result.stderr.strip() == ""


async def test_a_directory_that_hangs_is_given_up_when_its_reader_leaves(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")  # to open it waits for a writer, as a network filesystem may for ever
    mirror = Mirror(tmp_path.as_uri(), requests_max=1, timeout_s=1.0)

    with trio.move_on_after(0.05) as scope:
        await mirror.whole("file", 100)

    assert scope.cancelled_caught
    os.close(os.open(tmp_path / "file", os.O_RDWR))  # lets the thread end
