"""This module is `torrentfs umount`."""

from pathlib import Path

import click


@click.command(epilog="\b\nExamples:\n  torrentfs umount /opt/alice\n  torrentfs umount --force /opt/alice")
@click.argument("mountpoint", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="End it although it is used or held; jobs there get errors.")
def command(mountpoint: Path, force: bool) -> None:
    """End the mount at MOUNTPOINT; return when nothing serves it any more.

    Its daemon ends with the last mount of its cache. While a job uses the mount nothing is changed. A dead
    mount, whose processes were killed, is taken away.

    A container that began while the tree was mounted, and a bind mount, hold it: then it is unmounted here,
    the daemon serves them on, and who they are is said (exit code 1). It ends when they do, or by --force.
    """
    from torrentfs.daemon.ending import end

    end(mountpoint, force=force)
