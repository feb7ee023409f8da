"""This module is `torrentfs seed`: the origin of a repository, or the pull-through seeder of a site."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torrentfs.errors import UsageError

if TYPE_CHECKING:
    from torrentfs.daemon.box import Box
    from torrentfs.daemon.seed import Origin


@click.command(
    epilog="""\b
Examples:
  torrentfs seed /srv/alice --http 0.0.0.0:8080 --listen 192.0.2.1:6881
  torrentfs seed /srv/alice --listen 0.0.0.0:6881 --advertise origin.example.org:6881
  torrentfs seed /srv/alice --http 0.0.0.0:8080 --tracker --site 10.0.0.0/8 --site 2001:db8::/32
  torrentfs seed --config /etc/torrentfs/box.toml"""
)
@click.argument("repo", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="Seed a cache; settings from this TOML file."
)
@click.option("--http", metavar="HOST:PORT", default="", help="Serve public/ here, with byte ranges.")
@click.option("--listen", metavar="HOST:PORT", default="", help="Where peers reach it; port 0: any free one.")
@click.option(
    "--advertise", metavar="HOST:PORT", default="", help="What the catalog names instead of --listen."
)
@click.option("--tracker", is_flag=True, help="Be a BitTorrent tracker too, at /announce of the web server.")
@click.option(
    "--site", metavar="NETWORK", multiple=True, help="Whom the tracker serves, as ADDRESS/BITS; repeatable."
)
def command(repo: Path | None, file: Path | None, **options: Any) -> None:
    """Seed the repository REPO as its origin, or with --config a cache: a site's seeder (VO box).

    The origin seeds all packs of REPO, and serves its public/ over HTTP. It notices new revisions by itself.
    Where it can read the online keys, it puts its address into the catalog, so that nodes find it, and signs
    the catalog anew every day. An address without a fixed port is put there only by --advertise. With
    --tracker, nodes in the networks named by --site find each other by it, for all that REPO has.

    With --config it seeds what the file's cache holds, without a mount, and at seed.http it serves the
    repository to its site or region: what is not in the cache yet it fetches, once, when somebody asks for
    it. Settings are a mount's, in docs/admin.md; all are in the file.

    Either stays until SIGTERM or Ctrl-C.
    """
    from torrentfs.daemon.logfile import log_to_stderr

    if (repo is None) == (file is None):
        raise UsageError("name a repository to seed, or --config FILE to seed a cache")
    log_to_stderr()
    if repo is not None:
        _seed(repo, **options)
        return
    assert file is not None
    if given := [f"--{name}" for name, value in options.items() if value]:
        raise UsageError(f"{', '.join(given)} cannot go with --config: say it in {file}")
    _pull(file)


def _seed(repo: Path, http: str, listen: str, advertise: str, tracker: bool, site: tuple[str, ...]) -> None:
    """Be the origin of *repo*."""
    from torrentfs.config import SeedSettings, SwarmSettings, TrackerSettings, parse_address
    from torrentfs.daemon.seed import run

    swarm = SwarmSettings(listen=listen) if listen else SwarmSettings()
    for address in filter(None, (http, swarm.listen, advertise)):
        parse_address(address)
    settings = SeedSettings(
        swarm=swarm,
        http=http,
        advertise=advertise,
        networks=site,
        tracker=TrackerSettings(enabled=tracker),
    )
    run(repo, settings, lambda origin: _say_ready(_line(origin)))


def _pull(file: Path) -> None:
    """Be the pull-through seeder that *file* describes."""
    from torrentfs.config import load_mount
    from torrentfs.daemon.box import run
    from torrentfs.daemon.request import made

    configuration = load_mount(file)
    place = configuration.mountpoint or configuration.cache
    if not place:
        raise UsageError(f"{file}: cache: say which directory is to hold what is seeded")
    run(made(Path(place), file, {}), lambda box: _say_ready(_box_line(box)))


def _say_ready(line: str) -> None:
    from torrentfs.daemon.notify import notify_ready

    click.echo(line)
    sys.stdout.flush()
    notify_ready()


def _line(origin: "Origin") -> str:
    """Return where the origin can be reached."""
    from torrentfs.config import format_address

    where = _where(format_address(*origin.swarm.listen), origin.http, has_tracker=origin.tracker is not None)
    return f"seeding {origin.catalog.name}, version {origin.catalog.version}: {where}"


def _box_line(box: "Box") -> str:
    """Return where a pull-through seeder can be reached."""
    from torrentfs.config import format_address

    peers = format_address(*box.listen) if box.listen[1] else ""
    return f"seeding what is asked for of {box.repository}: " + _where(
        peers, box.http, has_tracker=box.tracker is not None
    )


def _where(peers: str, http: tuple[str, int] | None, *, has_tracker: bool) -> str:
    from torrentfs.config import format_address
    from torrentfs.http.tracker import ANNOUNCE

    web = f"http://{format_address(*http)}" if http else "no web server"
    tracker = f", tracker {web}{ANNOUNCE}" if has_tracker else ""
    return f"{f'peers at {peers}' if peers else 'no BitTorrent'}, {web}{tracker}"
