"""This module is a server's process: how it is started, how long it may take for what, how it ended."""

import _signal  # type: ignore[import-not-found]  # typeshed lacks it
import _socket
import fcntl
import os
import time

from torrentfs.daemon.keeper.channel import MESSAGE_MAX, Channel, Descriptor
from torrentfs.daemon.keeper.lines import LINE_MAX
from torrentfs.daemon.keeper.options import Options

NEVER = float("inf")
STDERR_MAX = 1 << 20
"""Of a server that is not ready yet; what it says beyond is lost."""
NAMES = [name for name in dir(_signal) if name[:3] == "SIG" and name[3] != "_"]
SIGNAL_NAMES = {getattr(_signal, name): name for name in reversed(NAMES)}  # SIGABRT, not SIGIOT, for 6
PHASES = {
    "preparing": ("start_deadline_s", "was not ready within"),
    "waiting": ("start_deadline_s", "was not ready within"),
    "starting": ("start_deadline_s", "was not ready within"),
    "serving": ("watchdog_s", "gave no sign of life for"),
    "suspending": ("grace_s", "did not stop within"),
    "leaving": ("grace_s", "did not exit within"),
    "alone": ("grace_s", "closed its connection to the keeper, and did not exit within"),
    "killed": ("kill_s", ""),
}
"""How long each may last, and what is said of a server that takes longer. The candidate's phases bound
`suspended`, and --end-deadline `ending`."""


class Server:
    """A server's process, in a *phase* until *deadline*.

    preparing → waiting → starting → serving → suspending → suspended → serving; from starting and serving:
    ending; from any: leaving, alone and killed.
    """

    def __init__(self, options: Options, pidfd: Descriptor, pid: int, channel: Channel) -> None:
        self.options = options
        self.pidfd = pidfd
        self.pid = pid
        self.channel = channel
        self.stderr: Descriptor | None = None  # if it is ours to read
        self.ready_at = self.look_at = NEVER
        self.reason = ""  # why we killed it, or its own
        self.code: int | None = None  # it exited with, or its signal, negative; None: not known
        self.is_done = self.has_babbled = False
        self.enter("preparing")

    def enter(self, phase: str) -> None:
        attribute, words = PHASES.get(phase, ("", ""))
        time_s = getattr(self.options, attribute, NEVER)
        self.phase, self.deadline = phase, time.monotonic() + time_s
        self.overdue = f"{words} {time_s:g} s"

    def kill(self, reason: str) -> None:
        """End it, for *reason*; its death is seen as any other."""
        if self.phase != "killed":
            self.reason = self.reason or reason
            self.enter("killed")
        try:  # noqa: SIM105 - contextlib costs memory
            _signal.pidfd_send_signal(self.pidfd.number, _signal.SIGKILL)
        except OSError:
            pass  # dead already

    def is_half_dead(self) -> bool:
        """Whether it died but for a thread, which sleeps uninterruptibly maybe: its pidfd does not tell."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib costs memory
                return file.read().rpartition(b") ")[2][:1] == b"Z"
        except OSError:
            return False

    def how_it_ended(self) -> str:
        """Return its end in words, with the last that it said on standard error before it was ready."""
        how = self.reason or "it ended, how is not known"
        if not self.reason and self.code is not None:
            name = SIGNAL_NAMES.get(-self.code, f"signal {-self.code}")
            how = f"it exited with code {self.code}" if self.code >= 0 else f"killed by {name}"
        text = os.pread(self.stderr.number, STDERR_MAX, 0).rstrip(b"\0") if self.stderr else b""
        lines = text[-MESSAGE_MAX:].decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last[:LINE_MAX]}" if last else how


def spawn(options: Options) -> Server:
    """Return the process of a server, with a channel to it.

    Raises: OSError.
    """
    ours, theirs = map(Channel, _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET))
    stdin = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [stdin]
    stderr = None if options.foreground else bounded_file()
    if stderr:
        actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        actions.append((os.POSIX_SPAWN_DUP2, stderr.number, 2))
    number = theirs.socket.fileno()
    os.set_inheritable(number, True)
    pid = os.posix_spawn(
        options.command[0],
        [*options.command, "--keeper", str(number)],
        os.environ,
        file_actions=actions,
        setpgroup=0,  # Ctrl-C is for the keeper, which tells the server
        setsigmask=[],
        setsigdef=[_signal.SIGPIPE],
    )
    try:
        server = Server(options, Descriptor(os.pidfd_open(pid)), pid, ours)
    except BaseException:
        os.kill(pid, _signal.SIGKILL)
        raise
    server.stderr = stderr
    return server


def bounded_file() -> Descriptor:
    """Return a file in memory that cannot grow: unlike a pipe it need not be read, and it is bounded."""
    file = Descriptor(os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(file.number, STDERR_MAX)
    fcntl.fcntl(file.number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file
