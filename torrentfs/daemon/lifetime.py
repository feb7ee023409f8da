"""This module is how a daemon's one nursery ends, by a signal or a failure, and how it looks about without
waiting for ever.
"""

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import trio

from torrentfs.errors import MountError, TorrentfsError

log = logging.getLogger(__name__)

LOOK_DEADLINE_S = 10.0
"""How long looking at a mountpoint may take: what is mounted there may hang."""


async def end_on_signal(scope: trio.CancelScope) -> None:
    """Cancel *scope* at SIGTERM, SIGINT, SIGQUIT and, unless it is ignored, SIGHUP.

    A daemon in the background ignores SIGHUP, and so does one under nohup(1): there, no terminal has gone.
    """
    ending = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    with trio.open_signal_receiver(*ending) as signals:
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            scope.cancel()


def first_error(group: BaseException) -> TorrentfsError:
    """Return the first error in a nursery's nested groups: the others follow from it."""
    error = first_of(group)
    assert isinstance(error, TorrentfsError)
    return error


def first_of(group: BaseException) -> BaseException:
    """Return the first exception in nested groups, or *group* if it is none."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def look(work: Callable[[Path], None], mountpoint: Path) -> None:
    """Do *work*, which asks the kernel about *mountpoint*, in a thread that may be left behind.

    Raises: MountError: it takes too long; what *work* raises.
    """
    with trio.move_on_after(LOOK_DEADLINE_S):
        return await trio.to_thread.run_sync(work, mountpoint, abandon_on_cancel=True)
    raise MountError(f"{mountpoint} does not answer: what is mounted there?")
