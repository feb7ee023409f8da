"""This module writes lengths the way people read them."""

from typing import Final

UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def size(length: int | None) -> str:
    """Return *length* bytes as people write it: "12.3 MB"; an unknown one as a dash."""
    if length is None:
        return "–"
    value = float(length)
    for unit in UNITS:
        if value < 999.95 or unit == UNITS[-1]:
            return f"{length} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
