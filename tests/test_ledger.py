"""The ledger: what was written down survives restarts, torn writes and damage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torrentfs.daemon.ledger import RECORD_LENGTH, open_ledger
from torrentfs.errors import CacheError
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef


def manifest(number: int) -> TorrentRef:
    return TorrentRef(InfoHash(bytes([number]) * 32), 1000 + number, Kind.MANIFEST)


def test_what_was_recorded_is_found_after_a_restart(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.record({7: manifest(1)})
        ledger.record({1 << 37: manifest(2)})

    with open_ledger(tmp_path / "ledger") as ledger:
        assert ledger.find(7) == manifest(1)
        assert ledger.find(1 << 37) == manifest(2)
        assert ledger.find(8) is None


def test_the_same_again_writes_nothing(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.record({7: manifest(1)})
        ledger.record({7: manifest(1)})

    assert (tmp_path / "ledger").stat().st_size == RECORD_LENGTH


def test_a_repacked_revisions_later_manifest_counts(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.record({7: manifest(1)})
        ledger.record({7: manifest(2)})

    with open_ledger(tmp_path / "ledger") as ledger:
        assert ledger.find(7) == manifest(2)


@given(kept=st.integers(0, 3), torn=st.integers(0, RECORD_LENGTH - 1))
def test_a_torn_end_is_cut_off_and_written_over(
    tmp_path_factory: pytest.TempPathFactory, kept: int, torn: int
) -> None:
    file = tmp_path_factory.mktemp("ledger") / "ledger"
    with open_ledger(file) as ledger:
        for number in range(4):
            ledger.record({number: manifest(number)})
    file.write_bytes(file.read_bytes()[: kept * RECORD_LENGTH + torn])

    with open_ledger(file) as ledger:
        ledger.record({9: manifest(9)})

    with open_ledger(file) as ledger:
        assert [number for number in range(10) if ledger.find(number)] == [*range(kept), 9]


def test_a_damaged_record_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "ledger"
    with open_ledger(file) as ledger:
        ledger.record({7: manifest(1)})
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)

    with open_ledger(file) as ledger:
        assert ledger.find(7) is None


def test_a_ledger_that_cannot_be_opened_is_a_cache_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="missing"), open_ledger(tmp_path / "missing" / "ledger"):
        pass


def test_many_are_recorded_at_once(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger") as ledger:
        ledger.record({7: manifest(1)})
        ledger.record({7: manifest(1), 8: manifest(2), 9: manifest(3)})

    with open_ledger(tmp_path / "ledger") as ledger:
        assert [ledger.find(number) for number in (7, 8, 9)] == [manifest(1), manifest(2), manifest(3)]
    assert (tmp_path / "ledger").stat().st_size == 3 * RECORD_LENGTH
