"""This module is a process that serves a repository's own files as a mount, for tests: no node, no swarm.

    python serve_local.py FRONT PUBLIC MOUNTPOINT CATALOG SETTINGS [HELD…]

FRONT is `pyfuse3`, which mounts and at the end unmounts, or DESCRIPTOR,JOURNAL: the channel of a mount that
whoever started this has made, and that a successor may go on serving. CATALOG was written by
`catalog.encode`, SETTINGS are a mount's as JSON, HELD kinds of torrents to hold back. It writes "ready" when
the mount answers, and obeys lines on its standard input, each with a line of JSON: `stats`, `release`,
`hold KIND`, `swap CATALOG`. It ends with its input.
"""

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path

import msgspec
import trio
from local_content import LocalContent, MemoryLedger

from torrentfs.config import MountSettings
from torrentfs.fuse import native, pyfuse3_adapter
from torrentfs.fuse.filesystem import Filesystem
from torrentfs.fuse.journal import Journal
from torrentfs.fuse.turns import Turns
from torrentfs.repository import catalog
from torrentfs.repository.metainfo import Kind
from torrentfs.tree import Tree

Session = native.Session | pyfuse3_adapter.Session


async def main(
    turns: Turns, front: str, public: str, mountpoint: str, snapshot: str, settings: str, *held: str
) -> None:
    content = LocalContent(Path(public), [Kind(kind) for kind in held])
    mount = msgspec.json.decode(settings, type=MountSettings)
    tree = Tree(content, MemoryLedger(), mount.owner)
    tree.swap(catalog.decode(Path(snapshot).read_bytes()))
    filesystem = Filesystem(tree, content, mount)
    place = Path(mountpoint)
    if front == "pyfuse3":
        serve_it = partial(pyfuse3_adapter.serve, filesystem, place, mount)
    else:
        descriptor, journal = map(int, front.split(","))
        channel = native.Channel(descriptor, Journal(journal))
        serve_it = partial(native.serve, filesystem, place, mount, channel, turns)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus = trio.TASK_STATUS_IGNORED) -> None:
            await serve_it(task_status=task_status)
            nursery.cancel_scope.cancel()

        session = await nursery.start(serve)
        print("ready", flush=True)
        await obey(session, filesystem, content)
        nursery.cancel_scope.cancel()


async def obey(session: Session, filesystem: Filesystem, content: LocalContent) -> None:
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
                        "front": session.front,
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
    turns = Turns()
    trio.run(main, turns, *sys.argv[1:], instruments=[turns])
