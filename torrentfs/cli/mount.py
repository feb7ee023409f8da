"""This module is `torrentfs mount`: settings from a file and the command line, then a daemon."""

import os
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torrentfs.errors import UsageError

if TYPE_CHECKING:
    from torrentfs.daemon.request import Request


@click.command(
    epilog="""\b
Examples:
  torrentfs mount /opt/alice              (settings from /etc/torrentfs/alice.toml)
  torrentfs mount /opt/alice --repository https://origin.example.org/alice \\
      --trust /etc/torrentfs/alice-root.json --cache /var/cache/torrentfs
  torrentfs mount mnt --repository file:///srv/alice/public \\
      --trust /srv/alice/public/root.json --peer 192.0.2.7:6881 --foreground

\b
With --repository no file is read unless --config names it. An option here wins
over the file; --peer and --mirror add to it."""
)
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("--config", "file", type=click.Path(path_type=Path), help="Read settings from this TOML file.")
@click.option("--repository", metavar="URL", help="http(s)://… or file://… of the repository's public/.")
@click.option("--trust", metavar="ROOT.json", type=click.Path(), help="The publisher's root.json.")
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(),
    help="Where this node keeps what it has; mounts with the same one share a daemon.",
)
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT", help="Ask this seeder or node too.")
@click.option("--mirror", "mirrors", multiple=True, metavar="URL", help="Another copy of public/.")
@click.option("--listen", metavar="HOST:PORT", help="Where peers reach this node; port 0: any free one.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting: mount.read_deadline_s=20."
)
@click.option(
    "--fuse",
    type=click.Choice(["auto", "native", "pyfuse3"]),
    help="Who speaks with the kernel. native outlives its server; auto takes it where the kernel can.",
)
@click.option("--foreground", is_flag=True, help="Stay, and log to standard error too.")
def command(
    mountpoint: Path, file: Path | None, foreground: bool, settings: tuple[str, ...], **options: Any
) -> None:
    """Mount a repository at the directory MOUNTPOINT; return when the tree answers, leaving a daemon.

    A new node needs the repository's URL and root.json; what it fetches it keeps in --cache, checks again
    when it reads it, and shares with its peers. End the mount with `torrentfs umount` or umount(8); SIGTERM
    to its daemon ends all mounts of that cache.
    """
    from torrentfs.daemon.request import made

    request = made(mountpoint, file, _values(settings, options))
    if foreground:
        _stay(request)
        return
    from torrentfs.daemon.starting import start

    _tell(start(request))


def _stay(request: "Request") -> None:
    """Serve the mount in this process, as its keeper if it has one; or stay until another has served it."""
    from torrentfs.daemon.notify import notify_ready

    if request.front == "pyfuse3":
        from torrentfs.daemon.alone import run

        # What else there is to say is in the log, which goes to standard error.
        run(request, lambda _: notify_ready(), foreground=True)
        return
    from torrentfs.daemon.starting import become_keeper, join, succeeds_keeper
    from torrentfs.daemon.staying import stay

    if succeeds_keeper():
        become_keeper(request)
    deadline = time.monotonic() + request.configuration.mount.start_deadline_s
    while (notice := join(request, deadline)) is None:
        become_keeper(request)
    _tell(notice)
    notify_ready()
    stay(request.mountpoint, request.cache)


def _tell(notice: str) -> None:
    if notice:
        click.echo(f"torrentfs: {' '.join(notice.split())}", err=True)


def _values(settings: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return what the command line says, in the shape of a settings file."""
    values: dict[str, Any] = {
        name: options[name] for name in ("repository", "trust", "cache") if options[name]
    }
    for name in ("trust", "cache"):
        if name in values:
            values[name] = os.path.abspath(values[name])  # noqa: PTH100 - resolve() would follow links
    for name in ("peers", "mirrors"):
        if options[name]:
            values[name] = list(options[name])
    if options["fuse"]:
        _put(values, "mount.fuse", options["fuse"])
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {setting}: write KEY=VALUE, as in mount.read_deadline_s=20")
        _put(values, key, _value(text))
    if options["listen"]:
        _put(values, "node.swarm.listen", options["listen"])
    return values


def _value(text: str) -> Any:
    """Return *text* as TOML has it; what is not TOML is a string without its quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted *key* in nested *values*."""
    *tables, name = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise UsageError(f"--set {key}: {table} is not a group of settings")
    values[name] = value
