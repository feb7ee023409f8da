"""The command line: words in, words out. One module per subcommand group; what they do is done elsewhere.

Exit codes: 0 done, 1 failed, 2 used wrongly. An error is one line on standard error.
"""

import sys

from torrentfs.cli.app import run

__all__ = ["main"]


def main() -> None:
    """Run the command that the program's arguments name, and exit."""
    sys.exit(run(sys.argv[1:]))
