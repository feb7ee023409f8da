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


@command.command(
    epilog="""\b
Examples:
  torrentfs repo gc /srv/alice --dry-run
  torrentfs repo gc /srv/alice --grace 14                (daily, from a timer)

\b
A policy, /srv/alice/policy.toml; of rules that match a path, the first counts:
  [[keep]]
  paths = "ROOT/*"             shell pattern
  revisions = 3                the last ones of each path stay
  versions = 10                the last ones of each directory stay;
  retire_after_days = 30       others are retired, by so many days"""
)
@click.argument("repo", type=DIRECTORY)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option(
    "--grace",
    "days",
    default=14.0,
    show_default=True,
    type=click.FloatRange(min=0, max=36_500),
    metavar="DAYS",
    help="How long retired paths stay once they are gone, and files that no revision needs any more.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def gc(repo: Path, dry_run: bool, days: float, as_json: bool) -> None:
    """Remove what the repository REPO needs no more.

    By REPO/policy.toml, old revisions go and old versions are retired; retired paths leave the catalog some
    time after their day; then packs and manifests go that no revision points into. Give jobs that still use
    them time: --grace is longer than the longest job.
    """
    import dataclasses

    from torrentfs.cli.words import size
    from torrentfs.repository.cleaning import clean
    from torrentfs.repository.curation import DAY_S
    from torrentfs.repository.workshop import Repository

    report = clean(Repository(repo, notice=notice), grace_s=days * DAY_S, dry_run=dry_run)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    for what, names in (
        ("retired", report.retired),
        ("out of the catalog", report.dropped),
        ("kept", report.kept),
        ("deleted", report.deleted),
    ):
        for name in names:
            click.echo(f"{what}: {name}")
    would = "would be " if dry_run else ""
    click.echo(f"{size(report.bytes_deleted)} in {len(report.deleted)} files {would}deleted")
    if report.waiting:
        click.echo(
            f"{size(report.bytes_waiting)} in {len(report.waiting)} files wait for the end of their grace"
        )


@command.command(
    epilog="""\b
Examples:
  torrentfs repo check /srv/alice
  torrentfs repo check /srv/alice --repair --from /mnt/mirror/alice"""
)
@click.argument("repo", type=DIRECTORY)
@click.option("--repair", is_flag=True, help="Make right what can be.")
@click.option(
    "--from",
    "copy",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIRECTORY",
    help="A copy of public/ to take from what is damaged; it is checked too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(repo: Path, repair: bool, copy: Path | None, as_json: bool) -> None:
    """Check all of the repository REPO: signatures, manifests, every byte of every pack.

    Exit code 1 says that something is wrong, and still is. Metainfo is made anew by --repair; what else is
    damaged is taken from a copy of public/, if one is named.
    """
    import dataclasses

    from torrentfs.cli.words import progress_bar, size
    from torrentfs.errors import RepositoryError, UsageError
    from torrentfs.repository.checking import check as check_all
    from torrentfs.repository.workshop import Repository

    if copy is not None and not repair:
        raise UsageError("--from goes with --repair")
    with progress_bar("checking") as report:
        findings = check_all(Repository(repo, notice=notice), mend=repair, copy=copy, progress=report)
    if as_json:
        print_json(dataclasses.asdict(findings))
    else:
        for line in findings.mended:
            click.echo(f"mended: {line}")
        for line in findings.faults:
            click.echo(f"wrong: {line}")
        click.echo(f"{findings.torrents} torrents, {size(findings.bytes_checked)} checked")
    if findings.faults:
        raise RepositoryError(f"{repo}: {len(findings.faults)} of its parts are wrong")
