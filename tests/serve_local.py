"""This module is a process that serves a repository's own files as a mount, for tests: no node, no swarm.

    python serve_local.py PUBLIC MOUNTPOINT CATALOG SETTINGS [HELD…]

CATALOG was written by `catalog.encode`, SETTINGS are a mount's as JSON, HELD kinds of torrents to hold back.
It writes "ready" when the mount answers, and obeys lines on its standard input, each with a line of JSON:
`stats`, `release`, `hold KIND`, `swap CATALOG`. At the end of its input it unmounts.
"""

import json
import logging
import os
import sys
from pathlib import Path

import msgspec
import trio
from local_content import LocalContent, MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.fuse import pyfuse3_adapter
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.repository import catalog
from torrentfs.repository.metainfo import Kind
from torrentfs.tree import Tree


async def main(public: str, mountpoint: str, snapshot: str, settings: str, *held: str) -> None:
    content = LocalContent(Path(public), [Kind(kind) for kind in held])
    mount = msgspec.json.decode(settings, type=MountSettings)
    tree = Tree(content, MemoryLedger(), mount.owner)
    tree.swap(catalog.decode(Path(snapshot).read_bytes()))
    filesystem = Filesystem(tree, content, mount)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
            await pyfuse3_adapter.serve(filesystem, Path(mountpoint), mount, task_status=task_status)
            nursery.cancel_scope.cancel()

        session = await nursery.start(serve)
        print("ready", flush=True)
        await obey(session, filesystem, content)
        nursery.cancel_scope.cancel()


async def obey(session: pyfuse3_adapter.Session, filesystem: Filesystem, content: LocalContent) -> None:
    """Do what the lines on standard input say until they end."""
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as commands:
        async for data in commands:
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                word, _, value = line.decode().partition(" ")
                answer: object = None
                if word == "stats":
                    answer = {
                        **msgspec.structs.asdict(filesystem.stats()),
                        "asked": len(content.asked),
                        "expected": len(content.expected),
                    }
                elif word == "release":
                    content.release()
                elif word == "hold":
                    content.held.add(Kind(value))
                elif word == "swap":
                    changes = filesystem.swap(catalog.decode(Path(value).read_bytes()))
                    await session.forget(changes)
                else:
                    raise SystemExit(f"what is {word}?")
                print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    trio.run(main, *sys.argv[1:])
