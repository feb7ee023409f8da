"""This module is `torrentfs refresh`."""

from pathlib import Path

import click

REFRESH_DEADLINE_S = 120.0


@click.command(epilog="\b\nExample:\n  torrentfs refresh /opt/alice")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """Make the mount at MOUNTPOINT ask for a newer catalog now, instead of within a minute."""
    from torrentfs.daemon.control_client import ask
    from torrentfs.daemon.mountpoint import resolve

    answer = ask(resolve(mountpoint), "refresh", REFRESH_DEADLINE_S)
    click.echo(f"catalog version {answer['version']} {'is new' if answer['changed'] else 'is current'}")
