"""This module is `torrentfs publish`: a source in, a revision out, with progress on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torrentfs.cli.words import notice, print_json, size

if TYPE_CHECKING:
    from torrentfs.repository.publisher import Progress, Published


@click.command(
    epilog="""\b
Examples:
  torrentfs publish /srv/alice ./root-6.32.06 ROOT/v6-32-06
  torrentfs publish /srv/alice AliPhysics.tar.xz AliPhysics/v5-09-59
  torrentfs publish /srv/alice Alignment.par data/Alignment.par"""
)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repo: Path, source: Path, path: str, as_json: bool) -> None:
    """Publish SOURCE in the repository REPO as a revision of PATH.

    SOURCE is a directory, a single file, or an archive (.tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst, .zip),
    whose contents are published. PATH is where it will be seen in the tree; publishing it again makes its
    next revision, and jobs that have the earlier one open keep it.
    """
    from torrentfs.repository.publisher import publish
    from torrentfs.repository.workshop import Repository

    with _progress(path) as report:
        published = publish(Repository(repo, notice=notice), source, path, progress=report)
    if as_json:
        print_json(_record(published))
    else:
        click.echo(_line(published))


def _record(published: "Published") -> dict[str, Any]:
    """Return the stable keys of a publication."""
    return {
        "path": published.path,
        "revision": published.revision,
        "infohash": published.info_hash.hex(),
        "files": published.files,
        "bytes_in": published.bytes_in,
        "bytes_packed": published.bytes_packed,
        "seconds": round(published.seconds, 3),
    }


def _line(published: "Published") -> str:
    """Return the one line of result."""
    return (
        f"{published.path}@{published.revision} {published.info_hash.hex()} {published.files} files, "
        f"{size(published.bytes_in)} in, {size(published.bytes_packed)} packed, {published.seconds:.1f} s"
    )


@contextmanager
def _progress(path: str) -> Iterator[Callable[["Progress"], None] | None]:
    """Show a bar while publishing, on a terminal only."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), DownloadColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{path}: looking at the source", total=None)

        def report(progress: "Progress") -> None:
            done, total = progress.bytes_done, progress.bytes_total
            stage = "packing" if done < total else "writing and signing"
            bar.update(task, description=f"{path}: {stage}", completed=done, total=total or None)

        yield report
