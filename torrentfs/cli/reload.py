"""This module is `torrentfs reload`."""

from pathlib import Path

import click


@click.command(epilog="\b\nExample:\n  torrentfs reload /opt/alice")
@click.argument("mountpoint", type=click.Path(path_type=Path))
def command(mountpoint: Path) -> None:
    """Replace the server of the mount at MOUNTPOINT by the version and settings now installed.

    Jobs wait a moment: what they ask meanwhile is answered by the new server. All mounts of the same server,
    those with the same cache, are taken over; settings files are read again, options given at `torrentfs
    mount` stay.

    A new server that cannot start leaves the old one serving, and why is said (exit code 1; 2 if a setting is
    wrong). The cache, the trust file and --fuse cannot be changed so, nor what the kernel was told when it
    mounted, its readahead for one.
    """
    from torrentfs.daemon.mountpoint import resolve
    from torrentfs.daemon.reloading import reload

    done = reload(resolve(mountpoint))
    others = f" and {done.mounts - 1} more" if done.mounts > 1 else ""
    click.echo(f"{mountpoint}{others}: process {done.pid} serves now, torrentfs {done.version}")
