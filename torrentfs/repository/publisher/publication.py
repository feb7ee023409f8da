"""This module brings a source's contents into packs and writes the manifest: all but the commit.

Contents that earlier packs may hold, going by their size, are hashed first: the choice among those packs
must be made before the first new byte is packed. Everything else is read once.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from torrentfs.errors import PublishError
from torrentfs.repository.catalog import Catalog
from torrentfs.repository.manifest_format import HASH_LENGTH, HOLE, PACK_COUNT_MAX, Extent
from torrentfs.repository.metainfo import Metainfo
from torrentfs.repository.pack import FRAME_LENGTH
from torrentfs.repository.publisher import content as stream
from torrentfs.repository.publisher import tar
from torrentfs.repository.publisher.base import Base, choose_base, open_base
from torrentfs.repository.publisher.content_index import ContentIndex, Place, open_index
from torrentfs.repository.publisher.holes import data_segments
from torrentfs.repository.publisher.manifest_writer import PackRow, write_manifest
from torrentfs.repository.publisher.nodes import Content, Node, Reader, Run, Source, walk
from torrentfs.repository.publisher.packer import Packer
from torrentfs.repository.publisher.progress import Meter, Progress
from torrentfs.repository.publisher.reuse import OLD_PACK_COUNT_MAX, choose
from torrentfs.repository.publisher.standing import Standing
from torrentfs.repository.workshop import Repository

PARTS = b".torrentfs-parts"
PART_BLOCKS = 64
"""Of a file that changed in part so many new blocks at most make one member: they are kept in memory."""
"""Where tar shows the parts of a file that no pack can hold."""
THREADS_MAX = 16
_SMALL_LENGTH = FRAME_LENGTH - 8 * 1024
"""Files up to here are read in one go; whether one fits a frame is known with its header."""


class Publication:
    """One run, within the repository's lock."""

    def __init__(
        self,
        repository: Repository,
        catalog: Catalog,
        source: Source,
        path: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        """Take the source, which becomes a revision of *path*."""
        self._repository = repository
        self._catalog = catalog
        self._source = source
        self._earlier = choose_base(catalog, path)
        self._file_name = path.rpartition("/")[2].encode()
        """What tar calls the source if it is a single file."""
        self._meter = Meter(progress)
        self._contents: dict[bytes, Content] = {}
        self._large_sizes: set[int] = set()
        self._empty = Content(stream.Hash(0, None).digest(), 0)
        self._hashed: dict[int, bytes] = {}
        self._metered: dict[int, int] = {}
        self._old_packs: list[int] = []
        self._base: Base | None = None
        self._standing: Standing | None = None
        self._whole = True
        self._part_count = 0
        self.files = 0
        self.bytes_in = 0
        self.bytes_packed = 0

    def run(self) -> tuple[Metainfo, int]:
        """Publish all but the catalog; return the manifest and its number of entries.

        Raises:
            PublishError: the source cannot be read, or has changed meanwhile.
            RepositoryError: what was published before cannot be read.
        """
        self._count()
        with open_index(self._repository.private / "contents.sqlite") as index:
            packer = Packer(self._repository.public / "packs", min(os.cpu_count() or 1, THREADS_MAX))
            try:
                index.catch_up(self._catalog, self._repository.public)
                if not index.empty:
                    self._reuse(index)
                with open_base(self._repository.public, self._earlier, index.identity) as base:
                    self._base = base
                    self._pack(packer)
                self._source.check()
                return self._write(index, packer)
            finally:
                packer.abandon()

    def _count(self) -> None:
        for _, node in walk(self._source.root):
            if node.is_file:
                self.files += 1
                self.bytes_in += node.size if node.leader is None else 0
        self._meter.begin(self.bytes_in)

    def _reuse(self, index: ContentIndex) -> None:
        """Point at contents that earlier packs hold."""
        probed = [
            (path, node)
            for path, node in walk(self._source.root)
            if node.is_file and node.leader is None and node.size and index.has_size(node.size)
        ]
        standing = self._standing = Standing(self._repository.public, index.pack, self._repository.notice)
        places: dict[bytes, list[Place]] = {}
        sizes: dict[bytes, int] = {}
        for path, node in probed:
            half = self._metered[id(node)] = node.size // 2
            with self._meter.step(half, node.size):
                digest = self._hashed[id(node)] = self._digest(node, path)
            sizes[digest] = node.size
            if digest not in places:
                places[digest] = [place for place in index.places(digest) if standing.has(place.packs)]
            if places[digest]:
                # Half the way only for what is read once more, to be packed.
                self._metered[id(node)] = node.size
                self._meter.add(node.size - half)
        chosen = choose(places, sizes)
        self._old_packs = sorted({pack for place in chosen.values() for pack in place.packs})
        for digest, place in chosen.items():
            self._contents[digest] = Content(digest, sizes[digest], row=place.row)
        self._whole = not self._contents

    def _digest(self, node: Node, path: bytes) -> bytes:
        if node.size <= _SMALL_LENGTH:
            data = self._source.read(node, path)
            if data is not None:
                return stream.digest(data)
        with self._source.open(node, path) as reader:
            return self._digest_open(reader, node.size)

    def _digest_open(self, reader: Reader, size: int) -> bytes:
        segments = data_segments(reader, size)
        hashing = stream.Hash(size, segments)
        for _ in hashing.over(self._meter.over(stream.data_blocks(reader, size, segments))):
            pass
        return hashing.digest()

    def _pack(self, packer: Packer) -> None:
        """Write a tar of the tree; one that reuses anything shows only what is new."""
        for path, node in walk(self._source.root):
            if node.is_file:
                todo = node.size - self._metered.pop(id(node), 0) if node.leader is None else 0
                with self._meter.step(todo, node.size):
                    self._pack_file(packer, path or self._file_name, path, node)
            elif self._whole:
                packer.add(_bare_header(path, node))
        metainfos = packer.finish()
        self.bytes_packed = sum(metainfo.length for metainfo in metainfos)

    def _pack_file(self, packer: Packer, name: bytes, path: bytes, node: Node) -> None:
        known = self._known(node)
        if known is not None:
            node.content = known
            if known.path:
                packer.add(_link_header(name, node, known.path))
        elif not node.size:
            # Empty files are no duplicates of each other: each is shown with its own mode and time.
            node.content = self._empty
            if node.nlink > 1:
                node.content = Content(self._empty.digest, 0, path=name if self._whole else b"")
            if self._whole:
                packer.add(_file_header(name, node, 0))
        else:
            data = self._source.read(node, path) if node.size <= _SMALL_LENGTH else None
            if data is not None:
                self._pack_small(packer, name, node, data)
            else:
                self._pack_large(packer, name, path, node)

    def _known(self, node: Node) -> Content | None:
        """Return a content that is known without reading the file again."""
        if node.leader is not None:
            return node.leader.content
        digest = self._hashed.pop(id(node), None)
        return self._contents.get(digest) if digest else None

    def _pack_small(self, packer: Packer, name: bytes, node: Node, data: bytes) -> None:
        digest = stream.digest(data)
        content = self._contents.get(digest)
        if content is not None:
            node.content = content
            if content.path:
                packer.add(_link_header(name, node, content.path))
            return
        content = Content(digest, node.size, path=name)
        header = _file_header(name, node, node.size)
        if len(header) + node.size + tar.BLOCK_LENGTH <= FRAME_LENGTH:
            content.runs = (packer.add(header, data),)
        else:
            runs, _ = packer.add_large(header, node.size, iter((data,)), partial(self._part_header, node))
            content.runs = tuple(runs)
        self._contents[digest] = node.content = content

    def _pack_large(self, packer: Packer, name: bytes, path: bytes, node: Node) -> None:
        """Pack a file while it is read; only if another is of the same size, it is hashed before."""
        with self._source.open(node, path) as reader:
            if node.size in self._large_sizes:
                content = self._contents.get(self._digest_open(reader, node.size))
                if content is not None:
                    node.content = content
                    if content.path:
                        packer.add(_link_header(name, node, content.path))
                    return
            node.content = self._pack_changed(packer, path, node, reader) or self._pack_open(
                packer, name, node, reader
            )
        self._large_sizes.add(node.size)
        self._contents[node.content.digest] = node.content

    def _pack_changed(self, packer: Packer, path: bytes, node: Node, reader: Reader) -> Content | None:
        """Pack what a file does not share with the base; None if it shares nothing with it."""
        if self._base is None or not self._base.has(path) or data_segments(reader, node.size) is not None:
            return None
        looking = stream.Hash(node.size, None)
        shared = self._base.same_blocks(path, looking.over(stream.data_blocks(reader, node.size, None)))
        packs = {extent.pack for extent in shared.values()}
        both = packs.union(self._old_packs)
        if not shared or len(both) > OLD_PACK_COUNT_MAX:
            return None
        if self._standing is None or not self._standing.has([*packs]):
            return None
        self._old_packs = sorted(both)
        runs: list[Run | Extent] = []
        news: list[bytes] = []
        hashing = stream.Hash(node.size, None)
        blocks = hashing.over(self._meter.over(stream.data_blocks(reader, node.size, None)))
        for number, block in enumerate(blocks):
            if number not in shared:
                news.append(block)
            if news and (number in shared or len(news) == PART_BLOCKS):
                runs += self._pack_part(packer, node, news)
                news = []
            if number in shared:
                runs.append(shared[number])
        runs += self._pack_part(packer, node, news)
        if hashing.digest() != looking.digest():
            raise PublishError(f"{os.fsdecode(path or self._file_name)} changes while it is read")
        return Content(hashing.digest(), node.size, None, tuple(runs))

    def _pack_part(self, packer: Packer, node: Node, blocks: list[bytes]) -> list[Run]:
        length = sum(map(len, blocks))
        if not length:
            return []
        header = partial(self._part_header, node)
        return packer.add_large(header(length), length, iter(blocks), header)[0]

    def _pack_open(self, packer: Packer, name: bytes, node: Node, reader: Reader) -> Content:
        segments = data_segments(reader, node.size)
        length = stream.data_length(node.size, segments)
        header = (
            _file_header(name, node, length) if segments is None else _sparse_header(name, node, segments)
        )
        hashing = stream.Hash(node.size, segments)
        blocks = hashing.over(self._meter.over(stream.data_blocks(reader, node.size, segments)))
        if len(header) + length + tar.BLOCK_LENGTH <= FRAME_LENGTH:
            runs, whole = [packer.add(header, b"".join(blocks))], True
        else:
            runs, whole = packer.add_large(header, length, blocks, partial(self._part_header, node))
        return Content(hashing.digest(), node.size, segments, tuple(runs), path=name if whole else b"")

    def _part_header(self, node: Node, length: int) -> bytes:
        self._part_count += 1
        name = PARTS + b"/%08d" % self._part_count
        return tar.header(name, tar.FILE, mode=0o644, mtime_ns=node.mtime_ns, size=length)

    def _write(self, index: ContentIndex, packer: Packer) -> tuple[Metainfo, int]:
        """Write the manifest: first the earlier packs that are used, in their order, then the new ones."""
        old = self._old_packs
        position = {identity: number for number, identity in enumerate(old)}
        packs = [index.pack(identity) for identity in old]
        packs += [PackRow(pack.info_hash, pack.length, pack.piece_length) for pack in packer.packs]
        if len(packs) > PACK_COUNT_MAX:
            raise PublishError(f"more than {PACK_COUNT_MAX} packs: publish it in several packages")

        def locate(frame: int) -> tuple[int, int, int]:
            return (
                len(old) + packer.frame_pack[frame],
                packer.frame_offset[frame],
                packer.frame_stored[frame],
            )

        def moved(extent: Extent) -> Extent:
            if extent.pack == HOLE:
                return extent
            return msgspec.structs.replace(extent, pack=position[extent.pack])

        def extents(node: Node) -> Iterable[Extent]:
            content = _content(node)
            if not content.row:
                return stream.extents(content, locate, moved)
            return map(moved, index.extents(content.row))

        public, root = self._repository.public, self._source.root
        return write_manifest(public, root, packs, extents, lambda node: _content(node).digest)


def _content(node: Node) -> Content:
    assert node.content is not None, "every file was given its content while packing"
    assert len(node.content.digest) == HASH_LENGTH
    return node.content


def _bare_header(path: bytes, node: Node) -> bytes:
    """Make the header of a directory or symbolic link."""
    kind = tar.DIRECTORY if node.is_directory else tar.SYMLINK
    name = (path or b".") + b"/" if node.is_directory else path
    return tar.header(
        name, kind, mode=node.mode, mtime_ns=node.mtime_ns, target=node.target, xattrs=node.xattrs
    )


def _file_header(name: bytes, node: Node, length: int) -> bytes:
    return tar.header(name, tar.FILE, mode=node.mode, mtime_ns=node.mtime_ns, size=length, xattrs=node.xattrs)


def _link_header(name: bytes, node: Node, target: bytes) -> bytes:
    return tar.header(name, tar.LINK, mode=node.mode, mtime_ns=node.mtime_ns, target=target)


def _sparse_header(name: bytes, node: Node, segments: list[tuple[int, int]]) -> bytes:
    return tar.sparse_header(
        name, segments, mode=node.mode, mtime_ns=node.mtime_ns, size=node.size, xattrs=node.xattrs
    )
