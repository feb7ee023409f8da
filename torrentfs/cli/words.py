"""This module writes numbers and tables the way people read them, and JSON the way programs do."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from torrentfs.repository.units import size

__all__ = ["duration", "notice", "print_json", "progress_bar", "size", "table"]


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


@contextmanager
def progress_bar(description: str = "") -> Iterator[Callable[[int, int], None]]:
    """Give what shows how many bytes of how many are done, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


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
