"""This module is `torrentfs retire`: a path leaves, by a day that is said before."""

from pathlib import Path

import click

from torrentfs.cli.words import notice
from torrentfs.errors import UsageError

AFTER_DAYS = 30.0


@click.command(
    epilog="""\b
Examples:
  torrentfs retire /srv/alice ROOT/v5-34-30 --after 30
  torrentfs retire /srv/alice ROOT/v5-34-30 --undo"""
)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.argument("path")
@click.option(
    "--after",
    "days",
    type=click.FloatRange(min=0, max=36_500),
    metavar="DAYS",
    help=f"When it is gone.  [default: {AFTER_DAYS:g}]",
)
@click.option("--undo", is_flag=True, help="It stays.")
def command(repo: Path, path: str, days: float | None, undo: bool) -> None:
    """Have PATH leave the tree of the repository REPO.

    From now on `ls` does not list it (but of a mount with mount.show_retired); who knows its name uses it as
    before, until the day. Then it is gone for whoever opens it anew; jobs that use it go on.
    """
    import time

    from torrentfs.repository.curation import DAY_S, restored, retired
    from torrentfs.repository.workshop import Repository

    if undo and days is not None:
        raise UsageError("give either --after or --undo")
    repository = Repository(repo, notice=notice)
    if undo:
        repository.change(lambda before: restored(before, path))
        click.echo(f"{path} stays")
        return
    day_s = int(time.time() + (AFTER_DAYS if days is None else days) * DAY_S)
    repository.change(lambda before: retired(before, path, day_s))
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(day_s))
    click.echo(f"{path} is not listed any more, and gone on {day}")
