"""This module is `torrentfs umount`."""

from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  torrentfs umount /opt/alice")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """End the mount at MOUNTPOINT; return when its daemon has gone.

    While a job uses the mount nothing is changed. A mount whose daemon was killed is taken away.
    """
    from torrentfs.daemon.ending import end  # noqa: PLC0415

    end(mountpoint)
