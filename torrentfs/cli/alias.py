"""This module is `torrentfs alias`: other names for paths, which show as symbolic links."""

from pathlib import Path

import click

from torrentfs.cli.words import notice
from torrentfs.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  torrentfs alias /srv/alice ROOT/latest ROOT/v6-32-06
  torrentfs alias /srv/alice ROOT/latest --remove"""
)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.argument("name")
@click.argument("target", required=False)
@click.option("--remove", is_flag=True, help="Remove the alias.")
def command(repo: Path, name: str, target: str | None, remove: bool) -> None:
    """Have NAME lead to TARGET in the tree of the repository REPO; both are paths from its root.

    An alias that is there is moved, in one step. It shows as a symbolic link: a program that has entered it
    stays where it led then.
    """
    from torrentfs.repository.curation import with_alias, without_alias
    from torrentfs.repository.workshop import Repository

    if remove == (target is not None):
        raise UsageError("give either TARGET or --remove")
    repository = Repository(repo, notice=notice)
    if target is None:
        repository.change(lambda before: without_alias(before, name))
        click.echo(f"{name} is no alias any more")
    else:
        place = target
        repository.change(lambda before: with_alias(before, name, place))
        click.echo(f"{name} -> {target}")
