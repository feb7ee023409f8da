"""Numbers and tables for people."""

import pytest

from torrentfs.cli.words import duration, size, table


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (10**18, "1000.0 PB"),
    ],
)
def test_sizes_have_one_unit(length: int, text: str) -> None:
    assert size(length) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_columns_are_aligned() -> None:
    lines = table(("PATH", "SIZE"), [("a", "10 B"), ("longer", "5 B")], right=(1,)).split("\n")

    assert lines == ["PATH    SIZE", "a       10 B", "longer   5 B"]


def test_a_table_without_rows_is_its_heads() -> None:
    assert table(("A", "B"), []) == "A  B"
