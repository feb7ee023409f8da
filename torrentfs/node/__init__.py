"""One cache and its sources: it knows info-hashes, not repositories or mounts.

A `Node` fetches pieces from peers and mirrors, keeps and seeds them; a `View` is what one mount sees of it.
"""

from torrentfs.node.flights import Sources
from torrentfs.node.node import Node, NodeStats, TorrentStats
from torrentfs.node.view import View

__all__ = ["Node", "NodeStats", "Sources", "TorrentStats", "View"]
