"""This module is how our processes are run."""

import sys
from pathlib import Path

import torrentfs


def keeper_command() -> list[str]:
    """Return how a keeper is run: what `[OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…` is appended to."""
    # Imported, not run as a script: compiling it would leave 2.1 MB of 5.2 MB private memory for good.
    launch = "import sys; sys.path.append(sys.argv.pop(1)); from torrentfs.daemon.keeper.main import main"
    root = Path(torrentfs.__file__).parents[1]
    return [sys.executable, "-I", "-S", "-c", f"{launch}; sys.exit(main())", str(root)]


def server_command() -> list[str]:
    """Return the command that a keeper is to run."""
    # -P: a module of that name in the current directory must not run in our place.
    return [sys.executable, "-P", "-m", "torrentfs.daemon.server"]


def alone_command() -> list[str]:
    """Return how a daemon without a keeper is run; the mountpoint is appended, for who looks at processes."""
    return [sys.executable, "-P", "-m", "torrentfs.daemon.alone"]
