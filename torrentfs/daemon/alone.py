"""This module is a daemon of one mount without a keeper: a mount of libfuse ends with its process."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from torrentfs.daemon import claims
from torrentfs.daemon.lifetime import end_on_signal, first_of, look
from torrentfs.daemon.logfile import start_log
from torrentfs.daemon.mountpoint import clear_dead_mount
from torrentfs.daemon.request import Request, decode
from torrentfs.daemon.serving import Place, make_directory, running_node, serve
from torrentfs.daemon.settings import check_mountpoint
from torrentfs.errors import TorrentfsError, UsageError
from torrentfs.fuse import pyfuse3_adapter

log = logging.getLogger(__name__)

Ready = Callable[[str], None]
"""Is told that the tree answers, with what the admin should know nevertheless; usually nothing."""


def run(request: Request, ready: Ready, *, foreground: bool) -> None:
    """Serve the mount of *request* until it is unmounted or gets SIGTERM; call *ready* once it is.

    Raises: MountError, CacheError, TrustError, FetchError, UsageError: it cannot be served; nothing is left
    behind.
    """
    mountpoint = request.mountpoint
    with claims.claim(mountpoint) as listener:
        make_directory(request.cache)
        start_log(request.cache, request.configuration.mount.log_bytes_max, foreground=foreground)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end_on_signal, nursery.cancel_scope)
                await look(clear_dead_mount, mountpoint)
                await look(check_mountpoint, mountpoint)
                async with running_node(request.configuration.node, request.cache) as (node, repositories):
                    place = Place(request, node, repositories, listener, _server, {"server": _tell})
                    front = partial(
                        pyfuse3_adapter.serve, mountpoint=mountpoint, settings=request.configuration.mount
                    )
                    async with trio.open_nursery() as serving:
                        ready(await serving.start(serve, place, front, _is_shown))
                nursery.cancel_scope.cancel()

        try:
            trio.run(main)
        except Exception as failure:
            error = first_of(failure)
            log.error("%s: %s", mountpoint, error)
            raise error from None
        log.info("%s: ended", mountpoint)


def _server() -> dict[str, object]:
    return {"pid": os.getpid(), "keeper": 0, "restarts": 0, "last_end": ""}


async def _tell(_: object) -> dict[str, object]:
    return _server()


def _is_shown(_: object) -> None:
    """Take note of nothing: nobody goes on where this daemon ends."""


def _say(**word: object) -> None:
    """Tell whoever started us, once, and let its pipe go."""
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(word).encode() + b"\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def main() -> int:
    """Be the daemon: the request on standard input; return the exit code."""
    # Nobody's terminal: who sends this to all daemons means "read your settings again", not "die".
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(decode(sys.stdin.buffer.read()), lambda notice: _say(ready=True, notice=notice), foreground=False)
    except TorrentfsError as error:
        _say(ready=False, error=str(error), used_wrongly=isinstance(error, UsageError))
        return 1
    except Exception as error:
        # Our bug: the log has the traceback, and whoever waits for us still gets a line.
        log.exception("the daemon failed")
        _say(ready=False, error=f"the daemon failed, its log says more: {error!r}", used_wrongly=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
