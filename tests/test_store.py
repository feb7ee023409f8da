import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from fakes import Published
from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.errors import CacheError
from torrentfs.node import place
from torrentfs.node.held import Held
from torrentfs.node.state import LOG_LENGTH_MAX
from torrentfs.node.store import Store
from torrentfs.repository.metainfo import PIECE_LENGTH, InfoHash, PieceIndex

FLIPS = 150
PACK = Published.of(random.Random(1).randbytes(5 * PIECE_LENGTH + 100))


def filled(directory: Path, pieces: list[int], pack: Published = PACK) -> tuple[Store, Held]:
    """Return a store that has all of *pack* on disk, and claims *pieces* of it."""
    store = Store(directory, open_files_max=4, pieces_in_memory_max=4)
    held = store.add(pack.ref, PIECE_LENGTH)
    store.path(pack.ref).write_bytes(pack.data)
    store.claim(held, [PieceIndex(piece) for piece in pieces])
    return store, held


def reopened(store: Store) -> tuple[Store, Held]:
    store.close()
    store = Store(store.directory, open_files_max=4, pieces_in_memory_max=4)
    held = store.get(PACK.ref.info_hash)
    assert held is not None
    return store, held


def test_only_claimed_pieces_are_read(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [0, 1])

    assert store.read(held, PIECE_LENGTH - 5, 10) == PACK.data[PIECE_LENGTH - 5 :][:10]
    assert store.read(held, 2 * PIECE_LENGTH - 5, 10) is None
    assert held.missing(2 * PIECE_LENGTH - 5, 10) == [2]
    store.close()


def test_what_is_held_is_counted_to_the_last_short_piece(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [4, 5])

    assert held.cached == PIECE_LENGTH + 100
    assert reopened(store)[1].cached == PIECE_LENGTH + 100


def test_a_cached_share_is_known_before_any_piece_is_looked_at(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, [0, 5])
    store.close()

    assert [held.cached for held in Store(tmp_path, open_files_max=4, pieces_in_memory_max=4).all()] == [
        PIECE_LENGTH + 100
    ]


def test_a_second_daemon_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    first = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)

    with pytest.raises(CacheError, match=f"in use by process {os.getpid()}"):
        Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)
    first.close()
    Store(tmp_path, open_files_max=4, pieces_in_memory_max=4).close()


def test_claims_survive_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from test_store import filled; filled(Path(sys.argv[2]), [1, 3]);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", code, tests, str(tmp_path)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL

    store = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)
    held = store.get(PACK.ref.info_hash)

    assert held is not None
    assert [*map(bool, held.states)] == [False, True, False, True, False, False]
    assert store.read(held, 3 * PIECE_LENGTH, PIECE_LENGTH) == PACK.data[3 * PIECE_LENGTH : 4 * PIECE_LENGTH]
    store.close()


@pytest.mark.warns("damaged on disk")
@pytest.mark.parametrize("damage", ["flip", "hole", "truncate"])
def test_a_claim_that_no_longer_holds_is_dropped_at_the_first_read(tmp_path: Path, damage: str) -> None:
    store, held = filled(tmp_path, [0, 4])
    path = store.path(PACK.ref)
    store.close()
    with path.open("r+b") as file:
        file.seek(4 * PIECE_LENGTH)
        if damage == "flip":
            file.write(bytes([PACK.data[4 * PIECE_LENGTH] ^ 1]))
        elif damage == "hole":
            file.write(bytes(PIECE_LENGTH))
        elif damage == "truncate":
            file.truncate(4 * PIECE_LENGTH + 9)

    store = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)
    held = store.get(PACK.ref.info_hash)  # type: ignore[assignment]

    assert store.read(held, 4 * PIECE_LENGTH + 100, 10) is None
    assert held.lost == [4]
    assert store.mismatches == 1
    assert reopened(store)[1].states[4] == 0


def test_a_piece_that_is_not_on_disk_is_not_claimed(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [])
    os.truncate(store.path(PACK.ref), PIECE_LENGTH)

    with pytest.raises(CacheError, match="shorter"):
        store.claim(held, [PieceIndex(0), PieceIndex(1)])

    assert not any(held.states)
    store.close()


@pytest.mark.warns("damaged on disk")
def test_a_file_that_is_deleted_under_us_is_not_read_for_what_the_swarm_writes_anew(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [0])
    os.truncate(store.path(PACK.ref), PIECE_LENGTH)
    os.truncate(store.path(PACK.ref), len(PACK.data))
    store.path(PACK.ref).unlink()
    with store.path(PACK.ref).open("wb") as file:
        file.seek(3 * PIECE_LENGTH)
        file.write(PACK.data[3 * PIECE_LENGTH : 4 * PIECE_LENGTH])

    store.claim(held, [PieceIndex(3)])

    assert store.read(held, 3 * PIECE_LENGTH, PIECE_LENGTH) == PACK.data[3 * PIECE_LENGTH : 4 * PIECE_LENGTH]
    assert [*map(bool, held.states)] == [False, False, False, True, False, False]
    assert held.lost == [0]
    store.close()


@pytest.mark.warns("readonly database")
def test_a_state_that_can_no_longer_be_written_lets_a_node_end(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [0])
    store.read(held, 0, 1)
    store._state._connection.execute("PRAGMA query_only = 1")

    store.close()

    Store(tmp_path, open_files_max=4, pieces_in_memory_max=4).close()


@pytest.mark.warns("state of the cache cannot be read")
def test_a_damaged_state_is_forgotten(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, [0])
    store.close()
    (tmp_path / "state.sqlite").write_bytes(random.Random(1).randbytes(8192))

    store = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)

    assert not store.all()
    assert (tmp_path / "state.damaged").exists()
    store.close()


@pytest.mark.warns("of version 4, and this release reads 3")
def test_a_state_of_a_newer_release_is_put_aside(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, [0])
    store._state._connection.execute("PRAGMA user_version = 4")
    store.close()

    again = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)

    assert not again.all()
    assert (tmp_path / "state.damaged").exists()
    again.close()


@pytest.mark.warns("cannot be read")
@pytest.mark.warns("is not used")
@pytest.mark.warns("damaged on disk")
def test_no_flipped_bit_of_the_state_does_harm(tmp_path: Path) -> None:
    """Bytes are right or absent, and the store goes on."""
    packs = [Published.of(random.Random(seed).randbytes(4 * PIECE_LENGTH)) for seed in range(2)]
    whole, chance = [PieceIndex(piece) for piece in range(4)], random.Random(5)
    store = Store(tmp_path / "0", open_files_max=4, pieces_in_memory_max=4)
    for pack in packs:
        store.path(pack.ref).write_bytes(pack.data)
        store.claim(store.add(pack.ref, PIECE_LENGTH), whole)
    store.pins.pin("alice:A/v1", [packs[0].ref.info_hash])
    store.checkpoint()
    store.close()
    good = (tmp_path / "0" / "state.sqlite").read_bytes()
    for number in range(1, FLIPS + 1):
        directory, data = tmp_path / str(number), bytearray(good)
        place.lay_out(directory)
        for pack in packs:
            (directory / "packs" / store.path(pack.ref).name).write_bytes(pack.data)
        # Every other one where it hurts most.
        at = chance.randrange(len(data) if number % 2 else 200)
        data[at] ^= 1 << chance.randrange(8)
        (directory / "state.sqlite").write_bytes(data)

        flipped = Store(directory, open_files_max=4, pieces_in_memory_max=4)

        for pack in packs:
            held = flipped.add(pack.ref, PIECE_LENGTH)
            flipped.path(pack.ref).write_bytes(pack.data)
            for piece in whole:
                read = flipped.read(held, piece * PIECE_LENGTH, PIECE_LENGTH)
                assert read in {None, pack.data[piece * PIECE_LENGTH : (piece + 1) * PIECE_LENGTH]}
            with suppress(CacheError):  # at worst it goes through memory until the next start
                flipped.claim(held, held.missing(0, 4 * PIECE_LENGTH))
                flipped.checkpoint()
        flipped.close()
        shutil.rmtree(directory)


def test_a_state_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    store, _ = filled(tmp_path, [0, 2])
    store._state._connection.executescript(
        "INSERT INTO pieces SELECT torrent, piece, digest FROM fresh;"
        "DROP TABLE pins; DROP TABLE fresh; DROP TABLE boot; PRAGMA user_version = 1"
    )
    store.close()

    again = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)

    [held] = again.all()
    assert again.get(held.ref.info_hash) is held
    assert [*map(bool, held.states)] == [True, False, True, False, False, False]
    again.pins.pin("alice:A/v1", [held.ref.info_hash])
    assert held.ref.info_hash in again.pins
    again.close()


def test_pins_last_and_are_counted_by_their_labels(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [0])
    store.pins.pin("alice:A/v1", [held.ref.info_hash])
    store.pins.pin("alice:A/v2", [held.ref.info_hash, InfoHash(bytes(32))])
    store.pins.pin("alice:A/v1", [])

    store, held = reopened(store)

    assert (held.ref.info_hash in store.pins, [*store.pins.labels]) == (True, ["alice:A/v2"])
    store.pins.pin("alice:A/v2", [])
    assert (held.ref.info_hash in store.pins, [*store.pins.labels]) == (False, [])
    store.close()


@pytest.mark.parametrize("place", ["metadata", "public/metadata"])
def test_a_repository_is_not_taken_for_a_cache(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "timestamp.json").touch()

    with pytest.raises(CacheError, match="published repository"):
        Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)


def test_a_cache_below_a_file_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(CacheError, match="Not a directory"):
        Store(tmp_path / "file" / "cache", open_files_max=4, pieces_in_memory_max=4)


def test_open_files_are_bounded(tmp_path: Path) -> None:
    store = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)
    before = len(list(Path("/proc/self/fd").iterdir()))

    for number in range(20):
        pack = Published.of(bytes([number]) * 100)
        held = store.add(pack.ref, PIECE_LENGTH)
        store.path(pack.ref).write_bytes(pack.data)
        store.claim(held, [PieceIndex(0)])

    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 4
    store.close()


def test_metainfo_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, open_files_max=4, pieces_in_memory_max=4)
    store.keep_metainfo(PACK.metainfo)

    assert store.metainfo(PACK.ref.info_hash) == PACK.metainfo.torrent()
    assert store.metainfo(Published.of(b"other").ref.info_hash) is None
    store.close()


def test_a_checkpoint_empties_the_log(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [0])
    store.read(held, 0, 1)
    store.flush_uses()

    store.checkpoint()

    rows = store._state._connection.execute("SELECT used > 0 FROM torrents").fetchall()
    assert rows == [(1,)]
    store.close()


def test_the_states_log_does_not_stay_long(tmp_path: Path) -> None:
    store, held = filled(tmp_path, [])
    log = tmp_path / "state.sqlite-wal"
    while not store.is_log_long:
        store.claim(held, [PieceIndex(0), PieceIndex(1)])
        store.forget(held, [PieceIndex(0), PieceIndex(1)])
        held.leaving.clear()
    assert log.stat().st_size > LOG_LENGTH_MAX

    store.checkpoint()
    store.claim(held, [PieceIndex(0)])

    assert log.stat().st_size <= LOG_LENGTH_MAX
    assert not store.is_log_long
    store.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["claim", "drop", "reopen"]), st.sets(st.integers(0, 5))), max_size=12
)


@pytest.mark.warns("damaged on disk")
@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_a_store_holds_what_was_claimed_and_not_dropped(steps: list[tuple[str, set[int]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store, held = filled(Path(directory), [])
        model: set[int] = set()
        for step, numbers in steps:
            pieces = [PieceIndex(number) for number in numbers]
            if step == "claim":
                store.claim(held, pieces)
                model |= numbers
            elif step == "drop":
                store.drop(held, pieces)
                model -= numbers
            else:
                store, held = reopened(store)

        assert {piece for piece, here in enumerate(held.states) if here} == model
        assert held.cached == sum(held.span(PieceIndex(piece)) for piece in model)
        store.close()


def test_who_still_looks_at_what_was_removed_changes_nothing(tmp_path: Path) -> None:
    """The background check does, from a thread, while room is made."""
    store, held = filled(tmp_path, [0, 1])
    store, held = reopened(store)
    store.remove(held)

    assert store.judge(held, [(PieceIndex(0), b""), (PieceIndex(1), b"")]) == 0

    assert (store.cached, held.cached, held.lost, store.mismatches) == (0, 0, [], 0)
    store.close()
