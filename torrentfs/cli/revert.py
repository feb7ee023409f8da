"""This module is `torrentfs revert`: an earlier revision of a path becomes the current one again."""

from pathlib import Path

import click

from torrentfs.cli.words import notice


@click.command(epilog="\b\nExample:\n  torrentfs revert /srv/alice ROOT/v6-32-06 3")
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.argument("path")
@click.argument("number", metavar="N", type=click.IntRange(min=1))
def command(repo: Path, path: str, number: int) -> None:
    """Make revision N of PATH the current one again, in the repository REPO.

    It becomes a new revision, which costs nothing: no byte is stored or sent again. Jobs keep the revision
    that they are in.
    """
    import time

    from torrentfs.repository.curation import reverted
    from torrentfs.repository.workshop import Repository

    now_s = int(time.time())
    catalog = Repository(repo, notice=notice).change(lambda before: reverted(before, path, number, now_s))
    current = catalog.versions[path].current
    click.echo(f"{path}@{current.number} is what {path}@{number} was")
