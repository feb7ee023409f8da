"""The power of the cache's disk is cut at random instants: what the state claims then is true of the files.

A real ext4 filesystem is shut down as if by a power cut; the machine's restart is another boot ID.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import Disk, disk
from fakes import Published

from torrentfs.node import state
from torrentfs.node.held import CHECKED, CLAIMED, MISSING, ON_DISK, Held
from torrentfs.node.store import Store
from torrentfs.repository.metainfo import PIECE_LENGTH, PieceIndex

pytestmark = [pytest.mark.root, pytest.mark.needs("mkfs.ext4")]

PACKS = [Published.of(random.Random(seed).randbytes(12 * PIECE_LENGTH)) for seed in range(3)]
ROUNDS, STEPS_MAX = 30, 30
STEPS = ("arrive", "arrive", "arrive", "settle", "sync_log", "sync_names", "punch", "remove")


@pytest.fixture
def power(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path / "image", tmp_path / "disk", 64 * 1024 * 1024) as made:
        yield made


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the file that tells the kernel's boot ID."""
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr(state, "BOOT_ID", path)
    return path


def opened(power: Disk) -> Store:
    return Store(power.place / "cache", open_files_max=4, pieces_in_memory_max=4)


def arrive(store: Store, pack: Published, pieces: list[PieceIndex]) -> Held:
    """Do as the swarm does: write, then claim."""
    held = store.add(pack.ref, PIECE_LENGTH)
    file = os.open(store.path(pack.ref), os.O_WRONLY | os.O_CREAT)
    for piece in pieces:
        start = piece * PIECE_LENGTH
        os.pwrite(file, pack.data[start : start + PIECE_LENGTH], start)
    os.close(file)
    store.claim(held, pieces)
    return held


def sync_log(store: Store) -> None:
    """Have the kernel write the state's log at a bad time: before the data."""
    log = os.open(store.directory / "state.sqlite-wal", os.O_RDONLY)
    os.fdatasync(log)
    os.close(log)


def sync_names(store: Store) -> None:
    """Have the kernel write names and holes at a bad time: before the state's log."""
    directory = os.open(store.directory / "packs", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def claims(store: Store) -> dict[Published, set[PieceIndex]]:
    """Return what is claimed. No reading yet, which would drop what is wrong."""
    found = {}
    for pack in PACKS:
        held = store.get(pack.ref.info_hash)
        states = held.states if held else b""
        found[pack] = {PieceIndex(piece) for piece, state in enumerate(states) if state in ON_DISK}
    return found


def false_claims(store: Store) -> int:
    """Return how many pieces are claimed whose bytes are not in the files."""
    false = 0
    for pack, pieces in claims(store).items():
        path = store.path(pack.ref)
        data = path.read_bytes() if path.exists() else b""
        for piece in pieces:
            start = piece * PIECE_LENGTH
            false += data[start : start + PIECE_LENGTH] != pack.data[start : start + PIECE_LENGTH]
    return false


def cut(power: Disk, store: Store) -> None:
    power.fail()
    store.close()
    power.unmount()
    power.mount()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_what_is_claimed_after_a_power_cut_is_true(power: Disk, boot: Path, seed: int) -> None:
    """And what was claimed when the state was last settled, and not forgotten since, is still claimed."""
    chance = random.Random(seed)
    store = opened(power)
    promised: dict[Published, set[PieceIndex]] = {pack: set() for pack in PACKS}
    for _ in range(chance.randrange(STEPS_MAX)):
        pack = chance.choice(PACKS)
        held = store.get(pack.ref.info_hash)
        here = claims(store)[pack]
        match chance.choice(STEPS):
            case "arrive":
                missing = [piece for piece in map(PieceIndex, range(12)) if piece not in here]
                arrive(store, pack, chance.sample(missing, min(len(missing), chance.randint(1, 6))))
            case "settle":
                store.checkpoint()
                promised = claims(store)
            case "sync_log":
                sync_log(store)
            case "sync_names":
                sync_names(store)
            case "punch" if held and here:
                going = chance.sample(sorted(here), chance.randint(1, len(here)))
                promised[pack].difference_update(going)
                store.forget(held, going)
                store.give_back(held, going)
                held.leaving.clear()
            case "remove" if held:
                promised[pack] = set()
                store.remove(held)
                store.empty()
    cut(power, store)
    boot.write_text("second\n")

    store = opened(power)

    assert false_claims(store) == 0
    kept = claims(store)
    assert all(promised[pack] <= kept[pack] for pack in PACKS)
    for pack, pieces in kept.items():
        for piece in pieces:
            held = store.get(pack.ref.info_hash)
            assert held is not None
            assert store.read(held, piece * PIECE_LENGTH, PIECE_LENGTH) is not None
    assert store.mismatches == 0
    store.close()


@pytest.mark.warns("damaged on disk")
@pytest.mark.parametrize("boots", ["first", "second"])
def test_a_log_that_overtakes_the_data_is_found_out_by_the_boot(power: Disk, boot: Path, boots: str) -> None:
    """The control: without another boot ID the claims are there, and false; their checksums tell."""
    store = opened(power)
    os.sync()
    arrive(store, PACKS[0], [PieceIndex(0), PieceIndex(5)])
    sync_log(store)
    # The directory knows the file, but what is in it was never written.
    sync_names(store)
    cut(power, store)
    boot.write_text(f"{boots}\n")

    store = opened(power)

    assert false_claims(store) == (2 if boots == "first" else 0)
    held = store.get(PACKS[0].ref.info_hash)
    assert held is not None
    assert store.read(held, 0, 10) is None
    assert held.states[0] == MISSING
    assert held.states[5] == (CLAIMED if boots == "first" else MISSING)
    store.close()


def test_a_kill_without_a_power_cut_costs_no_claim(power: Disk, boot: Path) -> None:
    store = opened(power)
    arrive(store, PACKS[1], [PieceIndex(3)])
    store.close()

    store = opened(power)

    held = store.get(PACKS[1].ref.info_hash)
    assert held is not None
    assert store.check(held, 3 * PIECE_LENGTH, PIECE_LENGTH)
    assert held.states[3] == CHECKED
    store.close()


@pytest.mark.warns("may be lost")
def test_claims_of_data_that_cannot_be_synced_are_given_up(
    power: Disk, boot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what of it is on disk: only fdatasync fails here, as it does once after a failed write."""
    store = opened(power)
    arrive(store, PACKS[0], [PieceIndex(0)])
    arrive(store, PACKS[1], [PieceIndex(0)])
    synced = os.fdatasync
    bad = store.path(PACKS[0].ref).stat().st_ino

    def fails_once(file: int) -> None:
        if os.fstat(file).st_ino == bad:
            raise OSError(5, "Input/output error")
        synced(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails_once)
        store.checkpoint()
    store.close()

    store = opened(power)

    assert claims(store)[PACKS[0]] == set()
    assert claims(store)[PACKS[1]] == {0}
    store.close()
