"""This module is `torrentfs reload`."""

from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  torrentfs reload /opt/alice")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """Replace the server of the mount at MOUNTPOINT by the version and settings now installed.

    Jobs notice nothing: what they ask meanwhile is answered by the new server. All mounts of the same server
    are taken over; settings files are read again, options given at `torrentfs mount` stay.

    A new server that cannot start leaves the old one serving, and why is said (exit code 1). The cache, the
    trust file and --fuse cannot be changed so.
    """
    from torrentfs.daemon.mountpoint import resolve
    from torrentfs.daemon.reloading import reload

    done = reload(resolve(mountpoint))
    others = f" and {done.mounts - 1} more" if done.mounts > 1 else ""
    click.echo(f"{mountpoint}{others}: process {done.pid} serves now, torrentfs {done.version}")
