"""This module lets `python -m torrentfs` stand for the command `torrentfs`."""

from torrentfs.cli import main

if __name__ == "__main__":
    main()
