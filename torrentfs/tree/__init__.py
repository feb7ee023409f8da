"""The filesystem as a function: inodes, attributes, directories, which frames a read needs. Pure, no I/O."""

from torrentfs.tree.attributes import Attributes
from torrentfs.tree.inode import ROOT, Inode
from torrentfs.tree.revisions import Content, Ledger
from torrentfs.tree.slices import Slice
from torrentfs.tree.tree import Tree
from torrentfs.tree.upper import Changes, Totals

__all__ = ["ROOT", "Attributes", "Changes", "Content", "Inode", "Ledger", "Slice", "Totals", "Tree"]
