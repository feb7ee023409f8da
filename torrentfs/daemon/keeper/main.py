"""This module starts the keeper: standard streams, signals, what is inherited."""

import _signal  # type: ignore[import-not-found]  # typeshed lacks it
import _socket
import os
import sys

from torrentfs.daemon.keeper.channel import Channel, Descriptor
from torrentfs.daemon.keeper.keeper import Keeper
from torrentfs.daemon.keeper.lines import write
from torrentfs.daemon.keeper.loop import Loop
from torrentfs.daemon.keeper.options import Options
from torrentfs.daemon.keeper.server import Server
from torrentfs.daemon.keeper.store import listened


def receive_signals(*, foreground: bool) -> int:
    """Have signals that should end us written to a pipe; return its other end."""
    wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    ending = [_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT]
    if not foreground:
        # Nobody's terminal: who sends this to all daemons means "read your settings again", not "die".
        _signal.signal(_signal.SIGHUP, _signal.SIG_IGN)
    elif _signal.getsignal(_signal.SIGHUP) != _signal.SIG_IGN:
        ending.append(_signal.SIGHUP)
    for number in ending:
        _signal.signal(number, lambda number, frame: None)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)  # a terminal may forbid the server to write
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, it would keep exit codes from us
    return wakeup


def main() -> int:
    """Be the keeper; return the exit code."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # what is opened later must not be taken for a standard stream
    os.close(null)
    try:
        options = Options(sys.argv[1:])
    except (ValueError, StopIteration):
        write(2, "torrentfs keeper: use: [OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…")
        return 2
    os.chdir("/")
    if not options.foreground:
        # Of the service that whoever started us belongs to: it is not ours to speak for.
        os.environ.pop("NOTIFY_SOCKET", None)
    keeper = Keeper(options)
    wakeup = receive_signals(foreground=options.foreground)
    keeper.store.take(listened(), is_stored=True)
    keeper.store.take(options.given, is_stored=False)
    if options.adopted:
        pidfd, socket = options.adopted
        os.set_inheritable(pidfd, False)
        os.set_inheritable(socket, False)
        channel = Channel(_socket.socket(fileno=socket))
        keeper.adopt(Server(options, Descriptor(pidfd), os.getppid(), channel))
    return Loop(keeper, wakeup).run()
