"""Tests of the background check: nothing that an earlier start left is seeded before it was found right."""

from pathlib import Path

import msgspec
import pytest
import trio
import trio.lowlevel
from worlds import DATA, MANIFEST, PACK, SETTINGS, World, read, until, world

from torrentfs.node import checker
from torrentfs.node.held import CHECKED, Held
from torrentfs.repository.metainfo import PIECE_LENGTH

INFO_HASH = PACK.ref.info_hash


def held(w: World) -> Held:
    found = w.node._store.get(INFO_HASH)
    assert found is not None
    return found


async def fill(directory: Path) -> None:
    """Have all of the pack in the cache."""
    async with world(directory) as w:
        await read(w.view(await w.web()), PACK.ref, 0, len(DATA))


def damage(directory: Path, piece: int) -> None:
    with (directory / PACK.ref.kind.url_path(INFO_HASH)).open("r+b") as file:
        file.seek(piece * PIECE_LENGTH + 77)
        file.write(b"rotten")


async def test_what_an_earlier_start_left_is_seeded_once_it_was_checked(tmp_path: Path) -> None:
    await fill(tmp_path)

    async with world(tmp_path) as w:
        await until(lambda: w.swarm.have.get(INFO_HASH) == set(range(9)))

        assert set(held(w).states) == {CHECKED}


@pytest.mark.warns(r"pieces \[3\] are damaged")
async def test_a_damaged_piece_is_never_seeded(tmp_path: Path) -> None:
    await fill(tmp_path)
    damage(tmp_path, 3)

    async with world(tmp_path) as w:
        await until(lambda: INFO_HASH in w.swarm.have)

        assert w.swarm.have[INFO_HASH] == set(range(9)) - {3}
        assert (await w.node.stats()).damaged_pieces == 1


async def test_what_is_opened_before_it_was_checked_is_seeded_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job comes while the check has far to go."""
    monkeypatch.setattr(checker, "BATCH_PIECES", 1)
    monkeypatch.setattr(checker, "QUIET_LOOK_S", 0.01)
    await fill(tmp_path)
    slow = msgspec.structs.replace(SETTINGS, check_rate=4 * PIECE_LENGTH)

    async with world(tmp_path, slow) as w:
        web = await w.web()
        view = w.view(web)
        await until(lambda: held(w).states[0] == CHECKED)
        view.expect([PACK.ref])
        w.node._fetcher.torrents.open(PACK.ref, view.sources, 10.0)
        await until(lambda: INFO_HASH in w.swarm.have)
        assert w.swarm.have[INFO_HASH] < set(range(9))
        assert await read(view, PACK.ref, 8 * PIECE_LENGTH, 1000) == DATA[8 * PIECE_LENGTH :]
        assert not web.asked

        await until(lambda: w.swarm.have[INFO_HASH] == set(range(9)))


@pytest.mark.warns(r"pieces \[5\] are damaged")
async def test_a_scrub_finds_what_rots_while_the_node_runs(tmp_path: Path) -> None:
    """And the swarm hears of it at once."""
    settings = msgspec.structs.replace(SETTINGS, scrub_days=0.2 / checker.DAY_S)
    async with world(tmp_path, settings) as w:
        await read(w.view(await w.web()), PACK.ref, 0, len(DATA))
        damage(tmp_path, 5)

        await until(lambda: 5 not in w.swarm.have[INFO_HASH])
        await trio.lowlevel.checkpoint()

        assert w.swarm.have[INFO_HASH] == set(range(9)) - {5}


async def test_manifests_are_checked_before_packs(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        view = w.view(await w.web(files={**PACK.files(), **MANIFEST.files()}))
        await read(view, PACK.ref, 0, 10)
        await read(view, MANIFEST.ref, 0, 10)

    async with world(tmp_path) as w:
        await until(lambda: len(w.swarm.added) == 2)

        assert list(w.swarm.added) == [MANIFEST.ref.info_hash, INFO_HASH]


@pytest.mark.warns("state of the cache cannot be read")
@pytest.mark.parametrize("loss", ["damaged", "missing"])
async def test_a_lost_state_is_made_anew_from_what_is_there(tmp_path: Path, loss: str) -> None:
    await fill(tmp_path)
    damage(tmp_path, 2)
    state = tmp_path / "state.sqlite"
    if loss == "damaged":
        state.write_bytes(b"no database" * 1000)
    else:
        state.unlink()

    async with world(tmp_path) as w:
        web = await w.web()
        view = w.view(web)
        await until(lambda: w.swarm.have.get(INFO_HASH) == set(range(9)) - {2})

        assert not w.node._store.strays
        assert await read(view, PACK.ref, 0, len(DATA)) == DATA
        assert [wanted for _, wanted in web.asked] == [f"bytes={2 * PIECE_LENGTH}-{3 * PIECE_LENGTH - 1}"]


async def test_a_job_does_not_wait_for_a_lost_state_to_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "BATCH_PIECES", 1)
    monkeypatch.setattr(checker, "QUIET_LOOK_S", 0.01)
    await fill(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    slow = msgspec.structs.replace(SETTINGS, check_rate=8 * PIECE_LENGTH)

    async with world(tmp_path, slow) as w:
        view = w.view(await w.web())

        assert await read(view, PACK.ref, 8 * PIECE_LENGTH, 1000) == DATA[8 * PIECE_LENGTH :]
        assert w.node._store.strays
        await until(lambda: w.swarm.have.get(INFO_HASH) == set(range(9)))
        assert held(w).cached == len(DATA)


async def test_what_no_metainfo_vouches_for_is_deleted(tmp_path: Path) -> None:
    await fill(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    (tmp_path / "metainfo" / f"{INFO_HASH.hex()}.torrent").unlink()

    async with world(tmp_path):
        await until(lambda: not [*(tmp_path / "packs").iterdir(), *(tmp_path / "leaving").iterdir()])


@pytest.mark.parametrize("length", [0, 100])
async def test_what_damaged_metainfo_vouches_for_is_deleted(tmp_path: Path, length: int) -> None:
    await fill(tmp_path)
    (tmp_path / "state.sqlite").unlink()
    (tmp_path / "metainfo" / f"{INFO_HASH.hex()}.torrent").write_bytes(b"d" * length)

    async with world(tmp_path) as w:
        await until(lambda: not w.node._store.strays)

        assert not [*(tmp_path / "packs").iterdir()]
