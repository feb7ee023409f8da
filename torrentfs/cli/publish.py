"""This module is `torrentfs publish`: a source in, a revision out, with progress on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import msgspec
from msgspec import Meta

from torrentfs.cli.words import notice, print_json, size
from torrentfs.errors import UsageError

if TYPE_CHECKING:
    from torrentfs.repository.publisher import Progress, Published, Wanted

BATCH_MAX, ALIASES_MAX, BATCH_LENGTH_MAX = 10_000, 100, 4 * 1024 * 1024


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of publications that become one commit."""

    publish: Annotated[list["Publication"], Meta(min_length=1, max_length=BATCH_MAX)]


class Publication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them; *source* is relative to the file."""

    source: str
    path: str
    alias: Annotated[list[str], Meta(max_length=ALIASES_MAX)] = []
    requires: list[str] | None = None
    in_place: Literal["replace", "link"] | None = None


@click.command(
    epilog="""\b
Examples:
  torrentfs publish /srv/alice ./root-6.32.06 ROOT/v6-32-06 --alias latest
  torrentfs publish /srv/alice AliPhysics.tar.xz AliPhysics/v5-09-59 --requires ROOT/v6-32-06
  torrentfs publish /srv/alice Alignment.par data/Alignment.par
  torrentfs publish /srv/alice --batch release.toml"""
)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.argument("path", required=False)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Have NAME, beside PATH, lead to it; with a slash in it NAME is from the root of the tree.",
)
@click.option("--requires", multiple=True, metavar="PATH", help="A path that jobs need beside this one.")
@click.option(
    "--in-place",
    type=click.Choice(["replace", "link"]),
    help="What newer revisions do to PATH from now on: show there, or be what a symbolic link leads to.",
)
@click.option(
    "--batch",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Publish what a TOML file says, all in one commit; no SOURCE and PATH then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    repo: Path,
    source: Path | None,
    path: str | None,
    aliases: tuple[str, ...],
    requires: tuple[str, ...],
    in_place: Literal["replace", "link"] | None,
    batch: Path | None,
    as_json: bool,
) -> None:
    """Publish SOURCE in the repository REPO as a revision of PATH.

    SOURCE is a directory, a single file, or an archive (.tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst, .zip),
    whose contents are published. PATH is where it will be seen in the tree; publishing it again makes its
    next revision, and jobs that have the earlier one open keep it. With --in-place link PATH is a symbolic
    link into .revisions/: a program that has entered it stays in its revision to the end, by name too.

    A batch is a file of [[publish]] tables with the keys source (relative to the file), path, and, if need
    be, alias and requires, both lists, and in_place. Nodes see all of it or nothing.
    """
    from torrentfs.repository.publisher import Wanted, publish_all
    from torrentfs.repository.workshop import Repository

    if batch is not None:
        if source is not None or aliases or requires or in_place:
            raise UsageError("--batch says all: nothing that one publication has goes beside it")
        wanted = _read_batch(batch)
    elif source is None or path is None:
        raise UsageError("give SOURCE and PATH, or --batch FILE")
    else:
        wanted = [Wanted(source, path, aliases, requires or None, in_place)]
    with ExitStack() as stack:

        def progress(one: Wanted) -> Callable[["Progress"], None] | None:
            stack.close()
            return stack.enter_context(_progress(one.path))

        done = publish_all(Repository(repo, notice=notice), wanted, progress=progress)
    if as_json:
        records = [_record(published) for published in done]
        print_json(records if batch is not None else records[0])
    else:
        for published in done:
            click.echo(_line(published))


def _read_batch(file: Path) -> "list[Wanted]":
    """Raises: UsageError: it cannot be read, or says something else."""
    from torrentfs.repository.publisher import Wanted

    try:
        with file.open("rb") as stream:
            text = stream.read(BATCH_LENGTH_MAX + 1)
        if len(text) > BATCH_LENGTH_MAX:
            raise UsageError(f"{file} is longer than {BATCH_LENGTH_MAX} bytes")
        batch = msgspec.toml.decode(text, type=Batch)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}") from error
    return [
        Wanted(file.parent / one.source, one.path, one.alias, one.requires, one.in_place)
        for one in batch.publish
    ]


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
