"""This module writes numbers and tables the way people read them, and JSON the way programs do."""

import json
from collections.abc import Sequence
from typing import Any

import click

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


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


def duration(seconds: float) -> str:
    """Return *seconds* in the two units that matter: "3 h 12 min"."""
    whole = round(max(seconds, 0))
    for unit, length, smaller, part in (
        ("d", 86_400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // part} {smaller}"
    return f"{whole} s"


def notice(line: str) -> None:
    """Tell on standard error what somebody should know though nothing has failed."""
    click.echo(f"torrentfs: {line}", err=True)


def print_json(value: Any, *, lines: bool = False) -> None:
    """Print *value*; with *lines* on one line, for who reads a stream of them."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if lines else 2))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return *rows* under *heads* in aligned columns; those whose index is in *right* end at the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    )
