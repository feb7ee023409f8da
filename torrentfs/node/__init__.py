"""One cache and its sources: it knows info-hashes, not repositories or mounts.

A `Node` fetches pieces from peers and mirrors, keeps and seeds them; a `View` is what one mount sees of it.
"""

from torrentfs.node.flights import Sources
from torrentfs.node.node import Aside, Node, NodeStats, SourceStats, TorrentStats
from torrentfs.node.view import View

__all__ = ["Aside", "Node", "NodeStats", "SourceStats", "Sources", "TorrentStats", "View"]
