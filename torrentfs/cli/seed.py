"""This module is `torrentfs seed`: the origin of a repository."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from torrentfs.daemon.seed import Origin


@click.command(
    epilog="""\b
Examples:
  torrentfs seed /srv/alice --http 0.0.0.0:8080 --listen 192.0.2.1:6881
  torrentfs seed /srv/alice --listen 0.0.0.0:6881 --advertise origin.example.org:6881
  torrentfs seed /srv/alice --http 0.0.0.0:8080 --tracker --site 10.0.0.0/8 --site 2001:db8::/32"""
)
@click.argument("repo", type=click.Path(path_type=Path, file_okay=False))
@click.option("--http", metavar="HOST:PORT", default="", help="Serve public/ here, with byte ranges.")
@click.option("--listen", metavar="HOST:PORT", help="Where peers reach it; port 0: any free one.")
@click.option(
    "--advertise", metavar="HOST:PORT", default="", help="What the catalog names instead of --listen."
)
@click.option("--tracker", is_flag=True, help="Be a BitTorrent tracker too, at /announce of the web server.")
@click.option(
    "--site", metavar="NETWORK", multiple=True, help="Whom the tracker serves, as ADDRESS/BITS; repeatable."
)
def command(
    repo: Path, http: str, listen: str | None, advertise: str, tracker: bool, site: tuple[str, ...]
) -> None:
    """Be the origin of the repository REPO: seed all its packs, and serve public/ over HTTP.

    It stays until SIGTERM or Ctrl-C, and notices new revisions by itself. Where it can read the online keys,
    it puts its address into the catalog, so that nodes find it, and signs the catalog anew every day. An
    address without a fixed port is put there only by --advertise.

    With --tracker, nodes in the networks named by --site find each other by it, for all that REPO has.
    """
    from torrentfs.config import SeedSettings, SwarmSettings, TrackerSettings, parse_address
    from torrentfs.daemon.notify import notify_ready
    from torrentfs.daemon.seed import run

    swarm = SwarmSettings(listen=listen) if listen else SwarmSettings()
    for address in filter(None, (http, swarm.listen, advertise)):
        parse_address(address)

    def ready(origin: "Origin") -> None:
        click.echo(_line(origin))
        sys.stdout.flush()
        notify_ready()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = SeedSettings(
        swarm=swarm,
        http=http,
        advertise=advertise,
        networks=site,
        tracker=TrackerSettings(enabled=tracker),
    )
    run(repo, settings, ready)


def _line(origin: "Origin") -> str:
    """Return where the origin can be reached."""
    from torrentfs.config import format_address
    from torrentfs.http.tracker import ANNOUNCE

    web = f"http://{format_address(*origin.http)}" if origin.http else "no web server"
    peers = format_address(*origin.swarm.listen)
    tracker = f", tracker {web}{ANNOUNCE}" if origin.tracker else ""
    return (
        f"seeding {origin.catalog.name}, version {origin.catalog.version}: peers at {peers}, {web}{tracker}"
    )
