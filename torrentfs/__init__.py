"""torrentfs: a software-distribution filesystem whose package versions are directories backed by torrents."""

__version__ = "0.1.0"
