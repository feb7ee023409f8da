"""From a source to a revision: walk, hash, reuse, pack, write the manifest, commit.

Nothing here is imported where packages are only read. `nodes` is the tree that a source becomes, `source` and
`archive` read it, `packer` and `manifest_writer` write, `publication` brings contents into packs, and
`publishing` does it all.
"""

from torrentfs.repository.publisher.progress import Progress
from torrentfs.repository.publisher.publishing import Published, Wanted, publish, publish_all

__all__ = ["Progress", "Published", "Wanted", "publish", "publish_all"]
