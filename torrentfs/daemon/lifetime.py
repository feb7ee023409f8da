"""This module is how a daemon's one nursery ends: by a signal, or by the first of its parts that fails."""

import logging
import signal

import trio

from torrentfs.errors import TorrentfsError

log = logging.getLogger(__name__)


async def end_on_signal(scope: trio.CancelScope) -> None:
    """Cancel *scope* at SIGTERM and SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            scope.cancel()


def first_error(group: BaseException) -> TorrentfsError:
    """Return the first error in a nursery's nested groups: the others follow from it."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    assert isinstance(group, TorrentfsError)
    return group
