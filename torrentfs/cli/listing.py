"""This module is `torrentfs list`: the package versions of a repository on disk, or of a mount."""

import time
from pathlib import Path
from typing import Any

import click

from torrentfs.cli.words import print_json, size, table
from torrentfs.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  torrentfs list /srv/alice
  torrentfs list /opt/alice --json
  torrentfs list /srv/alice --whitelist > /etc/opentracker/whitelist.txt"""
)
@click.argument("place", metavar="REPO|MOUNTPOINT", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects, one per path.")
@click.option(
    "--whitelist",
    is_flag=True,
    help="Print instead what an external tracker has to know of REPO: all its torrents, one a line.",
)
def command(place: Path, as_json: bool, whitelist: bool) -> None:
    """List the package versions of a repository on disk or of a mount, each with its current revision.

    With --whitelist: the manifests and packs of all revisions, by the 40 hexadecimal digits that trackers
    know them by (the first of their info-hashes), as opentracker reads them.
    """
    if whitelist:
        if as_json:
            raise UsageError("--whitelist and --json exclude each other")
        for key in _tracker_keys(place):
            click.echo(key)
        return
    versions, aliases = _catalog(place)
    if as_json:
        print_json(versions)
        return
    if versions:
        heads = ("PATH", "REVISION", "STATE", "CONTENTS", "ENTRIES", "PUBLISHED", "INFO-HASH")
        click.echo(table(heads, [_row(version) for version in versions], right=(1, 3, 4)))
    else:
        click.echo("nothing is published here yet")
    for name, target in sorted(aliases.items()):
        click.echo(f"{name} -> {target}")


def _catalog(place: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the versions and aliases in the catalog of *place*.

    Raises: UsageError, RepositoryError, ControlError.
    """
    from torrentfs.daemon.mountpoint import is_mounted, resolve

    mountpoint = resolve(place)
    # A mount first, and without a look inside: its tree may have a public/ too, or its daemon hang.
    if is_mounted(mountpoint):
        from torrentfs.daemon.control_client import ask

        answer = ask(mountpoint, "list")
    elif (place / "public").is_dir():
        from torrentfs.daemon.report import listing
        from torrentfs.repository.workshop import Repository

        answer = listing(Repository(place).catalog())
    else:
        raise UsageError(f"{place} is neither a repository (no public/ in it) nor a mount of torrentfs")
    return answer["packages"], answer["aliases"]


def _tracker_keys(directory: Path) -> list[str]:
    """Return what trackers call the torrents of the repository in *directory*.

    Raises: UsageError, RepositoryError.
    """
    from torrentfs.daemon.inventory import Inventory
    from torrentfs.http.announce import torrent_key
    from torrentfs.repository.workshop import Repository

    if not (directory / "public").is_dir():
        raise UsageError(f"{directory} is no repository (no public/ in it): --whitelist needs one on disk")
    repository = Repository(directory)
    refs = Inventory(repository.public).refs(repository.catalog())
    return sorted(torrent_key(info_hash).hex() for info_hash in refs)


def _row(version: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells that people see of *version*."""
    return (
        version["path"],
        str(version["revision"]),
        version["state"],
        size(version["size"]),
        str(version["entries"]),
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(version["published"])),
        version["infohash"],
    )
