"""This module is `torrentfs cache`: what a cache holds, and what is to stay in it, go or come."""

import time
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import click

from torrentfs.cli.words import print_json, progress_bar, size, table
from torrentfs.errors import CacheError, FetchError

ORDER_DEADLINE_S = 60.0
LOOK_S = 0.5

PLACE = click.argument("mountpoint", type=click.Path(path_type=Path))
PATTERNS = click.argument("patterns", metavar="PATH…", nargs=-1, required=True)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per path.")


@click.group(
    "cache",
    short_help="List, pin, evict, prefetch or verify what a cache holds.",
    epilog="\b\nExample:\n  torrentfs cache prefetch /opt/alice 'ROOT/*' --wait",
)
def command() -> None:
    """Look after the cache of a mount, or of a site's seeder, while it is used.

    MOUNTPOINT is the mount's, or the seeder's cache. PATH is a package version as `torrentfs list` shows it,
    or a shell pattern in quotes: 'ROOT/*'. What is meant is the version's current revision: its manifest, and
    all of the packs that it uses. Bounds are settings (node.cache_size_max, node.free_space_min).
    """


@command.command(epilog="\b\nExample:\n  torrentfs cache ls /opt/alice 'ROOT/*'")
@PLACE
@click.argument("patterns", metavar="[PATH…]", nargs=-1)
@AS_JSON
def ls(mountpoint: Path, patterns: tuple[str, ...], as_json: bool) -> None:
    """List versions with how much of each is here, and what is pinned."""
    _show(_order(mountpoint, "ls", patterns), as_json)


@command.command(epilog="\b\nExample:\n  torrentfs cache pin /opt/alice ROOT/v6-32-06")
@PLACE
@PATTERNS
@AS_JSON
def pin(mountpoint: Path, patterns: tuple[str, ...], as_json: bool) -> None:
    """Keep versions in the cache, what is here and what will come, until they are unpinned.

    A pin follows its path: once a newer revision is shown, that is kept.
    """
    _show(_order(mountpoint, "pin", patterns), as_json)


@command.command(epilog="\b\nExample:\n  torrentfs cache unpin /opt/alice 'ROOT/*'")
@PLACE
@PATTERNS
@AS_JSON
def unpin(mountpoint: Path, patterns: tuple[str, ...], as_json: bool) -> None:
    """Let versions leave the cache again when room is needed."""
    _show(_order(mountpoint, "unpin", patterns), as_json)


@command.command(epilog="\b\nExample:\n  torrentfs cache evict /opt/alice 'ROOT/v5-*'")
@PLACE
@PATTERNS
@AS_JSON
def evict(mountpoint: Path, patterns: tuple[str, ...], as_json: bool) -> None:
    """Remove versions from the cache now, but for what is pinned, or just being fetched.

    Jobs that use them go on: what they read next is fetched again.
    """
    _show(_order(mountpoint, "evict", patterns), as_json)


@command.command(epilog="\b\nExample:\n  torrentfs cache prefetch /opt/alice 'ROOT/*' --wait")
@PLACE
@PATTERNS
@click.option("--wait", is_flag=True, help="Return when all is here; fail when some of it does not come.")
@click.option("--deadline", default=3600.0, show_default=True, metavar="S", help="How long to wait.")
@AS_JSON
def prefetch(mountpoint: Path, patterns: tuple[str, ...], wait: bool, deadline: float, as_json: bool) -> None:
    """Fetch whole versions ahead of the jobs that will use them."""
    records = _order(mountpoint, "prefetch", patterns)
    if wait:
        ends_at = time.monotonic() + deadline
        total = sum(record["size"] for record in records)
        with progress_bar() as update:
            while any(record["coming"] for record in records) and time.monotonic() < ends_at:
                time.sleep(LOOK_S)
                records = _order(mountpoint, "ls", patterns)
                update(sum(record["cached"] for record in records), total)
    _show(records, as_json)
    missing = [record["path"] for record in records if not record["complete"]]
    if wait and missing:
        raise FetchError(f"not all came of {', '.join(missing)}: the mount's log says why")


@command.command(epilog="\b\nExample:\n  torrentfs cache verify /opt/alice --repair")
@PLACE
@click.argument("patterns", metavar="[PATH…]", nargs=-1)
@click.option("--repair", is_flag=True, help="Fetch again, whole, the packs that were damaged.")
@AS_JSON
def verify(mountpoint: Path, patterns: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Check all that the cache holds of versions, by default of all, against its checksums.

    What is damaged is dropped, and fetched again when it is read; exit code 1 says that something was.
    """
    records = _order(mountpoint, "ls", patterns)
    done, total = 0, sum(record["cached"] for record in records)
    with progress_bar() as update:
        for number, record in enumerate(records):
            what = "repair" if repair else "verify"
            [records[number]] = _order(mountpoint, what, [escape(record["path"])])
            done += record["cached"]
            update(done, total)
    _show(records, as_json)
    damaged = [record["path"] for record in records if record["damaged"]]
    if damaged:
        raise CacheError(f"pieces were damaged of {', '.join(damaged)}")


def _order(mountpoint: Path, do: str, patterns: Sequence[str]) -> list[dict[str, Any]]:
    """Raises: ControlError."""
    from torrentfs.daemon.control_client import ask
    from torrentfs.daemon.mountpoint import resolve

    given = {"do": do, "patterns": list(patterns)}
    records: list[dict[str, Any]] = ask(resolve(mountpoint), "cache", ORDER_DEADLINE_S, given)
    return records


def _show(records: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(records)
        return
    rows = [
        (
            record["path"],
            str(record["revision"]),
            size(record["size"]),
            size(record["cached"]),
            " ".join(word for word in ("pinned", "complete", "coming", "damaged") if record[word]),
        )
        for record in records
    ]
    click.echo(table(("PATH", "REVISION", "SIZE", "CACHED", ""), rows, right=(1, 2, 3)))
