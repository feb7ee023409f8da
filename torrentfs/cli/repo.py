"""This module is `torrentfs repo`: making a repository and keeping its signatures fresh."""

from pathlib import Path

import click

from torrentfs.cli.words import duration, notice, print_json

DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.group("repo", short_help="Make and look after a repository.")
def command() -> None:
    """Make and look after a repository on the publisher's disk.

    REPO is a directory: REPO/public/ is for any web server, REPO/private/ holds the keys and is never served.
    """


@command.command(
    epilog="""\b
Example:
  torrentfs repo init /srv/alice --name alice --seeder origin.example.org:6881

\b
Then hand /srv/alice/public/root.json to the sites (mount --trust), and move
/srv/alice/private/root.pem and targets.pem to a safe place: publishing does
not need them."""
)
@click.argument("repo", type=DIRECTORY)
@click.option("--name", required=True, help="Name of the repository, as in /opt/NAME.")
@click.option(
    "--seeder", "seeders", multiple=True, metavar="HOST:PORT", help="Seeder that the catalog names."
)
def init(repo: Path, name: str, seeders: tuple[str, ...]) -> None:
    """Make an empty, signed repository in the directory REPO."""
    from torrentfs.repository.workshop import Repository

    repository = Repository.create(repo, name, seeders)
    click.echo(f"made repository {name} in {repo}; nodes trust it by {repository.public / 'root.json'}")


@command.command(
    epilog="""\b
Examples:
  torrentfs repo refresh /srv/alice                    (daily, from a timer)
  torrentfs repo refresh /srv/alice --seeder origin.example.org:6881"""
)
@click.argument("repo", type=DIRECTORY)
@click.option(
    "--seeder",
    "seeders",
    multiple=True,
    metavar="HOST:PORT",
    help="Name these seeders from now on, instead of before.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def refresh(repo: Path, seeders: tuple[str, ...], as_json: bool) -> None:
    """Sign the repository's metadata anew, so that nodes do not take it for stale.

    Snapshot and timestamp expire after 30 days: run this at least every week when nothing is published.
    """
    import time

    from torrentfs.repository.workshop import Repository

    catalog = Repository(repo, notice=notice).refresh(seeders or None)
    if as_json:
        print_json({"version": catalog.version, "expires": catalog.expires, "seeders": list(catalog.seeders)})
    else:
        click.echo(f"signed version {catalog.version}, good for {duration(catalog.expires - time.time())}")
