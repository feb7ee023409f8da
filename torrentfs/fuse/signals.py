"""This module tells whether a process that waits for us has been told to end (proc(5), /proc/PID/status)."""

import signal
from pathlib import Path
from typing import Final

_HARMLESS: Final = (
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""Signals whose default is not to end the process (signal(7))."""
_REQUESTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
"""Signals by which a user or a batch system asks a program to end that has a handler for them."""


def _mask(signals: tuple[signal.Signals, ...]) -> int:
    return sum(1 << number - 1 for number in signals)


_HARMLESS_MASK: Final = _mask(_HARMLESS)
_REQUESTS_MASK: Final = _mask(_REQUESTS)
_KILL_MASK: Final = _mask((signal.SIGKILL,))


def is_dying(thread: int) -> bool:
    """Tell whether *thread* has a signal pending that ends it, or is gone; it will never see an answer.

    One that cannot be seen (0, of another PID namespace) counts as gone: who interrupts it knows why.
    """
    return _pending(thread, caught=False)


def is_asked_to_end(thread: int) -> bool:
    """Tell whether `is_dying`, or a signal waits for its handler that asks the program to end: Ctrl-C."""
    return _pending(thread, caught=True)


def _pending(thread: int, *, caught: bool) -> bool:
    try:
        status = Path(f"/proc/{thread}/status").read_bytes()
    except OSError:
        return True
    masks = {
        name: int(value, 16)
        for name, _, value in (line.partition(b":\t") for line in status.splitlines())
        if name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt")
    }
    pending = (masks[b"SigPnd"] | masks[b"ShdPnd"]) & ~masks[b"SigBlk"] & ~masks[b"SigIgn"]
    ending = pending & ~masks[b"SigCgt"] & ~_HARMLESS_MASK
    asked = pending & masks[b"SigCgt"] & _REQUESTS_MASK if caught else 0
    return bool(ending or asked or pending & _KILL_MASK)
