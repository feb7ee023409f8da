"""This module is the root command, and turns every failure into one line and an exit code.

Commands are imported when they are named: the start of the command line is what an admin waits for most
often.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from torrentfs import __version__
from torrentfs.errors import TorrentfsError, UsageError

FAILED = 1
USED_WRONGLY = 2

COMMANDS = {
    "repo": ("torrentfs.cli.repo", "Make and look after a repository."),
    "publish": ("torrentfs.cli.publish", "Publish a directory, file or archive as a package version."),
    "revert": ("torrentfs.cli.revert", "Make an earlier revision of a path the current one again."),
    "alias": ("torrentfs.cli.alias", "Give a path another name, which shows as a symbolic link."),
    "retire": ("torrentfs.cli.retire", "Have a path leave the tree by some day."),
    "seed": ("torrentfs.cli.seed", "Be a repository's origin: seed its packs, serve public/."),
    "list": ("torrentfs.cli.listing", "List the package versions of a repository or a mount."),
    "mount": ("torrentfs.cli.mount", "Mount a repository."),
    "umount": ("torrentfs.cli.umount", "End a mount, and with the last one its daemon."),
    "reload": ("torrentfs.cli.reload", "Replace a mount's server by the version and settings now installed."),
    "refresh": ("torrentfs.cli.refresh", "Make a mount ask for a newer catalog now."),
    "cache": ("torrentfs.cli.cache", "List, pin, evict, prefetch or verify what a mount's cache holds."),
    "stats": ("torrentfs.cli.stats", "Show what mounts and origins on this machine hold, fetch and serve."),
}
"""Name to module and one line of help, in the order in which `--help` shows them."""

REMOUNT = (
    "a mount is read-only and cannot be changed or mounted by type fuse.torrentfs: "
    "umount it, then mount it anew with `torrentfs mount` or `mount -t torrentfs`"
)

EPILOG = """\
\b
A first repository, from nothing to a mounted tree:
  torrentfs repo init /srv/alice --name alice
  torrentfs publish /srv/alice ./root-6.32.06 ROOT/v6-32-06
  torrentfs seed /srv/alice --http 192.0.2.1:8080 --listen 192.0.2.1:6881
  torrentfs mount /opt/alice --repository http://192.0.2.1:8080 \\
      --trust alice-root.json --cache /var/cache/torrentfs
  /opt/alice/ROOT/v6-32-06/bin/root

Exit codes: 0 done, 1 failed, 2 used wrongly.
"""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="torrentfs", message="%(prog)s %(version)s")
def torrentfs() -> None:
    """A software tree for every node of a grid, without a shared software area.

    A repository is published once; each node mounts it, fetches just the bytes that jobs touch, from its
    neighbours first, and verifies every one of them.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command in *arguments* and return its exit code."""
    if _is_from_mount_fuse(arguments):
        print(f"torrentfs: {REMOUNT}", file=sys.stderr)
        return USED_WRONGLY
    try:
        outcome = torrentfs.main(list(arguments), prog_name="torrentfs", standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USED_WRONGLY
    except BrokenPipeError:
        # Our reader has seen enough (`torrentfs list … | head`); the interpreter must not flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (click.ClickException, click.Abort, TorrentfsError, OSError, KeyboardInterrupt) as error:
        line, code = _explain(error)
        # One line, whatever a name or a library's message holds.
        print(" ".join(line.split()), file=sys.stderr)
        return code


def _is_from_mount_fuse(arguments: Sequence[str]) -> bool:
    """Tell whether mount(8) calls by way of mount.fuse: SOURCE MOUNTPOINT -o OPTIONS, no command of ours.

    It does so when it is told to change a mount, whose type is fuse.torrentfs to the kernel.
    """
    return len(arguments) >= 4 and arguments[0] not in COMMANDS and arguments[2] == "-o"


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what to tell of *error*, and the exit code."""
    match error:
        case click.UsageError():
            where = error.ctx.command_path if error.ctx else "torrentfs"
            return f"{where}: {error.format_message()} See {where} --help.", USED_WRONGLY
        case click.ClickException():
            return f"torrentfs: {error.format_message()}", FAILED
        case UsageError():
            return f"torrentfs: {error}", USED_WRONGLY
        case TorrentfsError():
            return f"torrentfs: {error}", FAILED
        case OSError():
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            return f"torrentfs: {where}{error.strerror or error}", FAILED
        case _:
            return "torrentfs: interrupted", FAILED
