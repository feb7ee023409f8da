"""Finding the metainfo of a torrent of which nothing but the info-hash is known."""

from pathlib import Path

import msgspec
import pytest
import trio
from fakes import Published
from worlds import PACK, SETTINGS, until, world

from torrentfs.errors import FetchError
from torrentfs.node import lookup
from torrentfs.repository.metainfo import InfoHash, Kind

TORRENT = PACK.ref.kind.torrent_path(PACK.ref.info_hash)
UNKNOWN = Published.of(b"nobody has this").ref.info_hash


async def test_what_was_found_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        web = await w.web()
        found = await w.view(web).find(PACK.ref.info_hash, Kind.PACK)
        again = await w.view().find(PACK.ref.info_hash, Kind.PACK)

    assert found == again == PACK.metainfo
    assert web.asked == [(TORRENT, "")]


async def test_one_search_serves_all_and_goes_on_when_the_first_who_asked_goes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        silent, other = await w.web("stall"), await w.web()
        view = w.view(silent, other)
        found: list[object] = []

        async def ask(scope: trio.CancelScope) -> None:
            with scope:
                found.append(await view.find(PACK.ref.info_hash, Kind.PACK))

        scopes = [trio.CancelScope() for _ in range(10)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, scopes[0])
            await until(lambda: bool(silent.asked))
            for scope in scopes[1:]:
                nursery.start_soon(ask, scope)
            scopes[0].cancel()

    assert found == 9 * [PACK.metainfo]
    assert silent.asked == other.asked == [(TORRENT, "")]


async def test_what_nobody_has_is_not_searched_for_again_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        webs = [await w.web(), await w.web()]
        view = w.view(*webs)
        for _ in range(3):
            assert await view.find(UNKNOWN, Kind.PACK) is None
        assert [len(web.asked) for web in webs] == [1, 1]

        assert await view.find(UNKNOWN, Kind.MANIFEST) is None, "which may be there though no pack is"
        assert [len(web.asked) for web in webs] == [2, 2]

        monkeypatch.setattr(lookup, "ABSENT_S", 0.0)
        other = InfoHash(bytes(32))
        for _ in range(2):
            assert await view.find(other, Kind.PACK) is None
        assert [len(web.asked) for web in webs] == [4, 4]
        # A mirror that lacks what nobody has is as good as before.
        assert await view.find(PACK.ref.info_hash, Kind.PACK) == PACK.metainfo


async def test_what_is_remembered_to_be_absent_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "ABSENT_MAX", 3)
    async with world(tmp_path) as w:
        view = w.view(await w.web())
        for number in range(10):
            assert await view.find(InfoHash(bytes([number] * 32)), Kind.PACK) is None

        assert len(w.node._fetcher.lookup._absent) == 3


@pytest.mark.parametrize("fault", ["stall", "error"])
async def test_a_mirror_that_fails_leaves_it_open(tmp_path: Path, fault: str) -> None:
    async with world(tmp_path) as w:
        bad, lacking = await w.web(fault), await w.web(files={})
        view = w.view(bad, lacking)
        with pytest.raises(FetchError, match=bad.url):
            await view.find(PACK.ref.info_hash, Kind.PACK)
        count = len(bad.asked)
        with pytest.raises(FetchError, match=bad.url):
            await view.find(PACK.ref.info_hash, Kind.PACK)

        assert len(bad.asked) == count, "it is put aside"
        bad.fault = ""
        with trio.fail_after(5):
            while True:
                try:
                    assert await view.find(PACK.ref.info_hash, Kind.PACK) == PACK.metainfo
                    break
                except FetchError:
                    await trio.sleep(0.05)


async def test_searches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "SEARCHES_MAX", 2)
    async with world(tmp_path, msgspec.structs.replace(SETTINGS, mirror_timeout_s=1000.0)) as w:
        view = w.view(await w.web("stall"))
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(view.find, InfoHash(bytes([number] * 32)), Kind.PACK)
            await until(lambda: len(w.node._fetcher.lookup._searches) == 2)

            with pytest.raises(FetchError, match="2 torrents are searched for already"):
                await view.find(PACK.ref.info_hash, Kind.PACK)
            nursery.cancel_scope.cancel()


async def test_what_a_mirror_sends_in_its_place_is_not_believed(tmp_path: Path) -> None:
    files = {TORRENT: Published.of(b"something else").metainfo.torrent()}
    async with world(tmp_path) as w:
        liar, honest = await w.web(files=files), await w.web()

        assert await w.view(liar, honest).find(PACK.ref.info_hash, Kind.PACK) == PACK.metainfo
