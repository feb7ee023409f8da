"""This module is the keeper: a small process that holds descriptors and starts a server again when it dies.

It knows names and descriptors, not what they are for: mounts, trees and settings are the server's. It is run
as a script of its own, outlives every server, and so imports next to nothing:

    python -I -S keeper.py [OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…

runs COMMAND with `--keeper DESCRIPTOR` appended: the server's end of a SOCK_SEQPACKET pair. A message on it
is UTF-8, `WORD` or `WORD REST`, with at most one descriptor beside it; `keeping` is the server's side.

    server → keeper
    prepared            it is imported and waits for what is held, and for `start`
    hold NAME   +fd     keep this from now on, in place of one of that name
    drop NAME
    ready REST          all that was held is served; REST is for whoever started the keeper
    failed REST         it cannot start, and exits next
    alive               sent every quarter of --watchdog
    offer NAME  +fd     for the next reload: held in place of one of that name if, and only if, that succeeds
    reload              start a successor
    suspended           in answer to `suspend`: it uses nothing any more that the successor needs
    done                nothing is left to serve; it exits next, and the keeper with it

    keeper → server
    held NAME   +fd     for each one; before `start`
    restarts COUNT REST how often it was started again, and why the last one ended; before `start`, if it was
    successor           a predecessor waits, suspended, and resumes if this one fails; before `start`
    start REST          go; REST is the options that another keeper for the same server needs
    suspend             stop and let go of all, but stay
    resume REST         there is no successor, for this reason: serve on
    leave               the successor serves: exit at once
    end                 end for good, and say `done`; may come at once after `start`

When the very first server does not get ready it is not started again: whoever started the keeper is told on
standard output, one line of JSON, and the keeper exits as that server did. `--foreground`: nothing is said
there, and the server shares standard error.
"""

# Private memory of such a process, measured (Python 3.11): bare 2.6 MB; with os, _socket, select, time,
# _signal and fcntl 2.9 MB; socket in place of _socket adds 1.2 MB, signal in place of _signal 0.7 MB (enum).
import _signal  # type: ignore[import-not-found]  # typeshed lacks it
import _socket
import fcntl
import os
import select
import sys
import time

TIMES_S = {
    "--watchdog": 30.0,  # how long a server that is ready may say nothing
    "--start-deadline": 60.0,  # how long one may take until it is ready
    "--suspend-deadline": 5.0,  # how long one may take to stop, with its jobs waiting
    "--end-deadline": 30.0,  # how long `end` may take, restarts included
    "--leave-deadline": 5.0,  # how long one may take to exit that was told to, or said that it will
    "--steady": 0.25,  # one that was ready for so long is started again at once
    "--delay": 0.1,  # before the third start in a row, doubled for each further one
    "--delay-max": 30.0,
}
KILL_S = 10.0
"""How long a killed server is waited for: a process in uninterruptible sleep dies when its device answers."""
NEVER = float("inf")

HELD_MAX = 256
"""Descriptors held. With as many in messages under way they stay below the usual 1024 of a process."""
OUTBOX_MAX = HELD_MAX + 16
MESSAGE_MAX = 65_536
MESSAGES_AT_A_TIME = 64
LINE_MAX = 1_000
"""Characters, of up to four bytes."""
STDERR_MAX = 1 << 20
"""Of a server that is not ready yet; what it says beyond is lost."""
NAME_LENGTH_MAX = 200
NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

ENDING_SIGNALS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT)
SIGNAL_NAMES = {
    getattr(_signal, name): name for name in dir(_signal) if name.startswith("SIG") and name[3] != "_"
}


def write(descriptor: int, text: str) -> None:
    """Write *text* as a line, if that can be had without waiting.

    A pipe that is ready takes PIPE_BUF = 4096 bytes at once, and 64 KiB if it is empty.
    """
    look = select.poll()
    look.register(descriptor, select.POLLOUT)
    try:
        if any(events & select.POLLOUT for _, events in look.poll(0)):
            os.write(descriptor, text.encode(errors="replace") + b"\n")
    except OSError:
        pass  # nobody reads it


def log(text: str) -> None:
    """Write *text* to standard error as the server's log would."""
    now = time.time()
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    line = " ".join(text.split())[:LINE_MAX]
    write(2, f"{date},{int(now * 1000) % 1000:03d} WARNING torrentfs.keeper: {line}")


def is_name(text: str) -> bool:
    """Whether *text* may name a descriptor; systemd's store takes all such names too."""
    return 0 < len(text) <= NAME_LENGTH_MAX and NAME_CHARACTERS.issuperset(text)


def as_json(text: str) -> str:
    """Return *text* as a string of JSON (RFC 8259, 7)."""
    escaped = (c if c >= " " and c not in '"\\' else f"\\u{ord(c):04x}" for c in text)
    return f'"{"".join(escaped)}"'


class UsageError(Exception):
    """A command line that is not the keeper's."""


class Options:
    """What the command line says; times in seconds."""

    def __init__(self, arguments: list[str]) -> None:
        left = list(arguments)
        times_s = dict(TIMES_S)
        self.foreground = False
        self.adopted = -1
        self.socket = -1
        self.given: dict[str, int] = {}
        try:
            while (word := left.pop(0)) != "--":
                if word == "--foreground":
                    self.foreground = True
                elif word == "--adopt":  # a pidfd: the number of a process may be another's by now
                    self.adopted = int(left.pop(0))
                elif word == "--socket":
                    self.socket = int(left.pop(0))
                elif word in times_s:
                    times_s[word] = float(left.pop(0))
                else:
                    name, _, number = word.partition("=")
                    if not is_name(name):
                        raise UsageError(f"not an option nor NAME=DESCRIPTOR: {word}")
                    self.given[name] = int(number)
        except (IndexError, ValueError):
            raise UsageError("use: [OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…") from None
        if not left or (self.adopted < 0) != (self.socket < 0):
            raise UsageError("use: [OPTION…] [NAME=DESCRIPTOR…] -- COMMAND…")
        self.command = left
        self.watchdog_s = times_s["--watchdog"]
        self.start_deadline_s = times_s["--start-deadline"]
        self.suspend_deadline_s = times_s["--suspend-deadline"]
        self.end_deadline_s = times_s["--end-deadline"]
        self.leave_deadline_s = times_s["--leave-deadline"]
        self.steady_s = times_s["--steady"]
        self.delay_s = times_s["--delay"]
        self.delay_max_s = times_s["--delay-max"]
        words = [f"{option} {value:g}" for option, value in times_s.items()]
        self.again = " ".join(words + ["--foreground"] * self.foreground)


class Outbox:
    """Messages into a socket that may be full: they wait here, we do not."""

    def __init__(self, channel: _socket.socket) -> None:
        self.channel = channel
        self.waiting: list[tuple[bytes, int]] = []

    def put(self, text: str, descriptor: int = -1) -> None:
        """Send *text* with *descriptor*, which stays the caller's."""
        try:
            copy = os.dup(descriptor) if descriptor >= 0 else -1
        except OSError as error:
            log(f"{text} cannot be passed on: {error.strerror}")
            return
        self.waiting.append((text.encode(errors="replace"), copy))
        self.flush()
        if len(self.waiting) > OUTBOX_MAX:
            log(f"{text} cannot be passed on: nothing is read there")
            self._forget(-1)

    def flush(self) -> None:
        """Send what can be sent now."""
        while self.waiting:
            data, descriptor = self.waiting[0]
            rights = [descriptor.to_bytes(4, sys.byteorder)] if descriptor >= 0 else []
            beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, right) for right in rights]
            try:
                self.channel.sendmsg([data], beside, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self.discard()  # nobody is there; if that was a server, its death is seen elsewhere
                return
            self._forget(0)

    def discard(self) -> None:
        """Forget what waits."""
        while self.waiting:
            self._forget(0)

    def _forget(self, place: int) -> None:
        _, descriptor = self.waiting.pop(place)
        if descriptor >= 0:
            os.close(descriptor)


class Manager:
    """The service manager, if we have one: systemd, which keeps our descriptors for our own successor.

    sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3).
    """

    def __init__(self) -> None:
        self.outbox: Outbox | None = None
        address = os.environ.get("NOTIFY_SOCKET", "")
        if address.startswith(("/", "@")):
            channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
            try:
                channel.connect("\0" + address[1:] if address.startswith("@") else address)
            except OSError as error:
                log(f"{address} does not answer: {error.strerror}")
            else:
                self.outbox = Outbox(channel)

    def say(self, text: str, descriptor: int = -1) -> None:
        if self.outbox:
            self.outbox.put(text, descriptor)

    def store(self, name: str, descriptor: int) -> None:
        # FDPOLL=0: the store lets nothing go by itself, a mount that hung up neither.
        self.say(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptor)

    def remove(self, name: str) -> None:
        self.say(f"FDSTOREREMOVE=1\nFDNAME={name}")


def take_listened() -> dict[str, int]:
    """Return what the service manager kept of our predecessor's, by name."""
    mine = os.environ.get("LISTEN_PID") == str(os.getpid())
    count, names = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_FDNAMES", "")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    if not mine or not count.isdecimal():
        return {}
    return dict(zip(names.split(":"), range(3, 3 + int(count)), strict=False))


class Holdings:
    """The descriptors by name, here and in the service manager's store."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.held: dict[str, int] = {}

    def take(self, given: dict[str, int], *, is_stored: bool) -> None:
        """Hold what was inherited; *is_stored*: by the service manager too."""
        for name, descriptor in given.items():
            try:
                os.set_inheritable(descriptor, False)
            except OSError as error:
                log(f"descriptor {descriptor}, {name}: {error.strerror}")
                continue
            if is_stored:
                self.held[name] = descriptor
            elif self.held.get(name) != descriptor:
                self.put(name, descriptor)

    def put(self, name: str, descriptor: int) -> None:
        """Hold *descriptor*, ours from now on, in place of one of that name."""
        self.drop(name)
        self.held[name] = descriptor
        self.manager.store(name, descriptor)

    def drop(self, name: str) -> None:
        descriptor = self.held.pop(name, -1)
        if descriptor >= 0:
            self.manager.remove(name)
            os.close(descriptor)


class Server:
    """A server's process. What it is doing is its *phase*, for which it has time until *deadline*.

    preparing → waiting → starting → serving → suspending → suspended → serving or leaving; from starting and
    serving: ending; from any: alone (it closed its connection) and killed.
    """

    def __init__(self, pidfd: int, pid: int, channel: _socket.socket, stderr: int) -> None:
        self.pidfd = pidfd
        self.pid = pid  # 0: not our child
        self.channel = channel
        self.outbox = Outbox(channel)
        self.stderr = stderr  # -1: not ours to read
        self.phase = "preparing"
        self.deadline = NEVER
        self.ready_at = NEVER
        self.reason = ""  # why we killed it, or its own
        self.is_connected = True
        self.code: int | None = None  # it exited with, or its signal, negative; None: not known
        self.is_done = False
        self.has_failed = False  # and said why
        self.has_babbled = False

    def kill(self, reason: str) -> None:
        """End it, for *reason*; its death is seen as any other."""
        self.reason = self.reason or reason
        self.phase = "killed"
        self.deadline = time.monotonic() + KILL_S
        try:  # noqa: SIM105 - contextlib costs memory
            _signal.pidfd_send_signal(self.pidfd, _signal.SIGKILL)
        except OSError:
            pass  # dead already

    def receive(self) -> tuple[str, str, int] | None:
        """Return the next message's word, its rest and its descriptor or -1; None: there is none now."""
        if not self.is_connected:
            return None
        try:
            # Room for exactly one descriptor: the kernel closes all others.
            data, beside, flags, _ = self.channel.recvmsg(
                MESSAGE_MAX, _socket.CMSG_LEN(4), _socket.MSG_DONTWAIT | _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            data, beside, flags = b"", [], 0
        descriptor = -1
        for level, kind, right in beside:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                descriptor = int.from_bytes(right[:4], sys.byteorder)
        if not data and descriptor < 0:
            self.is_connected = False
            self.outbox.discard()
            return None
        if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
            return "", "a message that is too long, or its descriptor is lost", descriptor
        word, _, rest = data.decode(errors="replace").partition(" ")
        return word, rest, descriptor

    def close(self) -> None:
        """Let go of it."""
        self.outbox.discard()
        self.channel.close()
        os.close(self.pidfd)
        self.forget_stderr()

    def how_it_ended(self) -> str:
        """Return its end in words."""
        if self.reason:
            return self.reason
        if self.code is None:
            return "it ended, how is not known"
        if self.code >= 0:
            return f"it exited with code {self.code}"
        return f"killed by {SIGNAL_NAMES.get(-self.code, f'signal {-self.code}')}"

    def last_line(self) -> str:
        """Return the last that it said on standard error."""
        if self.stderr < 0:
            return ""
        text = os.pread(self.stderr, STDERR_MAX, 0).rstrip(b"\0")[-MESSAGE_MAX:].decode(errors="replace")
        lines = [line.strip() for line in text.split("\n")]
        return next((line for line in reversed(lines) if line), "")[:LINE_MAX]

    def forget_stderr(self) -> None:
        if self.stderr >= 0:
            os.close(self.stderr)
            self.stderr = -1


def spawn(command: list[str], *, foreground: bool) -> Server:
    """Return the process of *command*, with a channel to it.

    Raises: OSError.
    """
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    stderr = -1 if foreground else bounded_file()
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    if not foreground:
        actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        actions.append((os.POSIX_SPAWN_DUP2, stderr, 2))
    pid = 0
    try:
        theirs_number = theirs.fileno()
        os.set_inheritable(theirs_number, True)
        pid = os.posix_spawn(
            command[0],
            [*command, "--keeper", str(theirs_number)],
            os.environ,
            file_actions=actions,
            setpgroup=0,  # Ctrl-C is for the keeper, which tells the server
            setsigmask=[],
            setsigdef=[_signal.SIGPIPE],
        )
        return Server(os.pidfd_open(pid), pid, ours, stderr)
    except BaseException:
        ours.close()
        if stderr >= 0:
            os.close(stderr)
        if pid:
            os.kill(pid, _signal.SIGKILL)
        raise
    finally:
        theirs.close()


def bounded_file() -> int:
    """Return a file in memory that cannot grow: unlike a pipe it need not be read, and it is bounded."""
    descriptor = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, STDERR_MAX)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return descriptor


class Keeper:
    """Servers, one at a time but for a reload, and what is held for them."""

    def __init__(self, options: Options, wakeup: int) -> None:
        self.options = options
        self.wakeup = wakeup
        self.manager = Manager()
        self.holdings = Holdings(self.manager)
        self.current: Server | None = None
        self.candidate: Server | None = None  # in a reload
        self.left: list[Server] = []  # has a successor, and exits
        self.offers: dict[str, int] = {}  # for the candidate; -1: dropped
        self.was_ready = False  # any one
        self.restarts = 0
        self.last_reason = ""
        self.failures = 0  # in a row
        self.start_at = 0.0
        self.end_at = NEVER
        self.is_told = options.foreground  # whoever started us: there, all is seen
        self.exit_code: int | None = None

    def adopt(self) -> None:
        """Take up the server that started us, as its keeper died; it says `ready` again at once if it is."""
        os.set_inheritable(self.options.adopted, False)
        os.set_inheritable(self.options.socket, False)
        channel = _socket.socket(fileno=self.options.socket)
        self.current = Server(self.options.adopted, 0, channel, -1)
        self.current.phase = "starting"
        self.current.deadline = time.monotonic() + self.options.start_deadline_s
        self.was_ready = self.is_told = True

    def run(self) -> int:
        """Keep until there is nothing left to serve; return the exit code."""
        while self.exit_code is None:
            try:
                self.turn()
            except Exception as error:
                # Whatever it is, what we hold stays held.
                log(f"the keeper failed, and goes on: {error!r}")
                time.sleep(0.1)
        for server in self.servers():
            server.kill("")
        return self.exit_code

    def servers(self) -> list[Server]:
        return [server for server in (self.current, self.candidate, *self.left) if server]

    # Waiting

    def turn(self) -> None:
        """Wait for something to happen, and do what it asks for."""
        ended = self.wait()
        for server in self.servers():
            self.heed(server)
        self.reap()
        for server in ended:
            self.bury(server)
        self.heed_signals()
        now = time.monotonic()
        if now >= self.end_at:
            log(f"the server did not end within {self.options.end_deadline_s:g} s")
            self.exit_code = 1
            return
        for server in self.servers():
            if now >= server.deadline:
                self.expire(server)
        if not (self.current or self.candidate or self.exit_code is not None) and now >= self.start_at:
            self.start()

    def wait(self) -> list[Server]:
        """Wait, at most until the next deadline; return the servers that have died."""
        servers = self.servers()
        poll = select.poll()
        poll.register(self.wakeup, select.POLLIN)
        for server in servers:
            poll.register(server.pidfd, select.POLLIN)
            if server.is_connected:
                waits = select.POLLOUT if server.outbox.waiting else 0
                poll.register(server.channel.fileno(), select.POLLIN | waits)
        outbox = self.manager.outbox
        if outbox and outbox.waiting:
            poll.register(outbox.channel.fileno(), select.POLLOUT)
        before = time.monotonic()
        next_at = min([self.end_at, *(server.deadline for server in servers)])
        if not (self.current or self.candidate):
            next_at = min(next_at, self.start_at)
        timeout_s = min(max(next_at - before, 0.0), 60.0)
        # Rounded up, or the last millisecond is spent looking.
        happened = {descriptor for descriptor, _ in poll.poll(int(timeout_s * 1000) + 1)}
        self.forgive(servers, time.monotonic() - before - timeout_s)
        for server in servers:
            server.outbox.flush()
        if outbox:
            outbox.flush()
        return [server for server in servers if server.pidfd in happened]

    def reap(self) -> None:
        """Note the exit codes of dead servers; as a container's first process we are others' parent too."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for server in self.servers():
                    if server.pid == ended[0]:
                        server.code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            pass  # there is none

    def forgive(self, servers: list[Server], late_s: float) -> None:
        """Put deadlines off if we overslept: who stopped us (a freezer, Ctrl-Z) stopped the servers too."""
        if late_s > 1:
            for server in servers:
                server.deadline += late_s

    def heed_signals(self) -> None:
        try:
            if os.read(self.wakeup, 512):
                self.end()
        except BlockingIOError:
            pass

    def heed(self, server: Server) -> None:
        """Do what *server* asks for, some at a time: a flood must not keep us from the rest."""
        for _ in range(MESSAGES_AT_A_TIME):
            message = server.receive()
            if message is None:
                break
            word, rest, descriptor = message
            if server.phase == "serving":
                server.deadline = time.monotonic() + self.options.watchdog_s
            try:
                self.obey(server, word, rest, descriptor)
            finally:
                kept = {*self.holdings.held.values(), *self.offers.values()}
                if descriptor >= 0 and descriptor not in kept:
                    os.close(descriptor)
        if not server.is_connected and server.phase not in {"leaving", "killed", "alone"}:
            self.let_leave(server, "alone")

    def expire(self, server: Server) -> None:
        """End *server*, whose time is over."""
        options = self.options
        match server.phase:
            case "killed":
                log("a killed server does not die; it is left alone")
                self.bury(server)
            case "serving":
                server.kill(f"gave no sign of life for {options.watchdog_s:g} s")
            case "suspending":
                server.kill(f"did not stop within {options.suspend_deadline_s:g} s")
            case "leaving":
                server.kill(f"did not exit within {options.leave_deadline_s:g} s")
            case "alone":
                server.kill("closed its connection to the keeper")
            case _:
                server.kill(f"was not ready within {options.start_deadline_s:g} s")

    # What servers say

    def obey(self, server: Server, word: str, rest: str, descriptor: int) -> None:
        """Do what one message asks for."""
        match word:
            case "alive":
                pass
            case "hold" | "offer" if is_name(rest) and descriptor >= 0:
                self.hold(server, rest, descriptor, is_offer=word == "offer")
            case "drop" if is_name(rest):
                self.drop(server, rest)
            case "prepared" if server.phase == "preparing":
                server.phase = "waiting"
                self.advance()
            case "ready" if server.phase in {"starting", "ending"}:
                self.on_ready(server, rest)
            case "failed" if server.phase in {"preparing", "waiting", "starting"}:
                self.on_failed(server, rest)
            case "reload" if server.phase == "serving":
                self.on_reload(server)
            case "suspended" if server.phase == "suspending":
                server.phase, server.deadline = "suspended", NEVER
                self.advance()
            case "done" if server.phase not in {"preparing", "waiting"} and server not in self.left:
                server.is_done = True
                self.let_leave(server)
            case "suspended" if server is self.current:
                pass  # it crossed `resume`
            case _:
                self.complain(server, f"{word} {rest}")

    def complain(self, server: Server, text: str) -> None:
        """Log the first message that makes no sense, but no flood of them."""
        if not server.has_babbled:
            server.has_babbled = True
            log(f"the server said what cannot be heeded: {text[:200]!r}")

    def hold(self, server: Server, name: str, descriptor: int, *, is_offer: bool) -> None:
        """Hold *descriptor*, or offer it to the candidate."""
        if server in self.left:
            return
        if len({*self.holdings.held, *self.offers, name}) > HELD_MAX:
            self.complain(server, f"more than {HELD_MAX} descriptors: {name}")
        elif is_offer or server is self.candidate:
            # What a candidate holds counts when it is ready: until then the old one may have to go on.
            self.offer(name, descriptor)
        else:
            self.holdings.put(name, descriptor)

    def drop(self, server: Server, name: str) -> None:
        if server is self.current:
            self.holdings.drop(name)
        elif server is self.candidate and (name in self.holdings.held or name in self.offers):
            self.offer(name, -1)

    def offer(self, name: str, descriptor: int) -> None:
        """Note for the candidate that *name* is *descriptor*, or -1: no more."""
        former = self.offers.get(name, -1)
        self.offers[name] = descriptor
        if former >= 0:
            os.close(former)

    def settle_offers(self, *, succeeded: bool) -> None:
        """Make what was offered what is held, or forget it."""
        while self.offers:
            name, descriptor = self.offers.popitem()
            if descriptor < 0:
                if succeeded:
                    self.holdings.drop(name)
            elif succeeded:
                self.holdings.put(name, descriptor)
            else:
                os.close(descriptor)

    def advance(self) -> None:
        """Let who is prepared begin, once nobody else uses what it needs."""
        if self.candidate and self.candidate.phase == "waiting":
            if not self.current or self.current.phase == "suspended":
                self.begin(self.candidate)
            elif self.current.phase == "serving":
                self.current.outbox.put("suspend")
                self.current.phase = "suspending"
                self.current.deadline = time.monotonic() + self.options.suspend_deadline_s
        elif self.current and self.current.phase == "waiting":
            self.begin(self.current)

    def begin(self, server: Server) -> None:
        """Give *server* what is held, and let it start."""
        held = self.holdings.held | (self.offers if server is self.candidate else {})
        for name, descriptor in held.items():
            if descriptor >= 0:
                server.outbox.put(f"held {name}", descriptor)
        if self.restarts:
            server.outbox.put(f"restarts {self.restarts} {self.last_reason}")
        if server is self.candidate and self.current:
            server.outbox.put("successor")
        server.outbox.put(f"start {self.options.again}")
        server.phase = "starting"
        server.deadline = time.monotonic() + self.options.start_deadline_s
        if self.end_at < NEVER:
            self.tell_end(server)

    def on_ready(self, server: Server, rest: str) -> None:
        if server is self.candidate:
            self.candidate = None
            self.settle_offers(succeeded=True)
            if self.current:
                self.current.outbox.put("leave")
                self.let_leave(self.current)
                self.left.append(self.current)
            self.current = server
        server.ready_at = time.monotonic()
        server.forget_stderr()
        if server.phase == "starting":
            server.phase, server.deadline = "serving", server.ready_at + self.options.watchdog_s
        if not self.was_ready:
            self.was_ready = True
            self.manager.say("READY=1")
            self.tell_starter(rest)

    def on_failed(self, server: Server, rest: str) -> None:
        if not self.was_ready:
            self.tell_starter(rest)
        server.has_failed = True
        server.reason = rest or "it failed, and did not say why"
        server.forget_stderr()
        self.let_leave(server)

    def let_leave(self, server: Server, phase: str = "leaving") -> None:
        """Give *server* a while to exit by itself."""
        server.phase, server.deadline = phase, time.monotonic() + self.options.leave_deadline_s

    def on_reload(self, server: Server) -> None:
        if self.candidate or self.end_at < NEVER or server is not self.current:
            return
        try:
            self.candidate = self.spawn()
        except OSError as error:
            self.without_candidate(f"cannot be started: {error}")

    # How they begin and end

    def spawn(self) -> Server:
        server = spawn(self.options.command, foreground=self.options.foreground)
        server.deadline = time.monotonic() + self.options.start_deadline_s
        return server

    def start(self) -> None:
        """Start a server."""
        try:
            self.current = self.spawn()
        except OSError as error:
            if self.was_ready:
                self.restart(f"cannot be started: {error}", is_steady=False)
            else:
                self.never_ready(f"cannot be started: {error}", None, is_known=False)

    def bury(self, server: Server) -> None:
        """Go on after the death of *server*."""
        for _ in range(8):
            self.heed(server)  # what it said before it died counts
        is_candidate, is_current = server is self.candidate, server is self.current
        if is_candidate:
            self.candidate = None
        elif is_current:
            self.current = None
        else:
            self.left.remove(server)
        reason, line = server.how_it_ended(), server.last_line()
        server.close()
        if server.is_done:
            self.finish()
        elif is_candidate:
            self.without_candidate(f"{reason}: {line}" if line else reason)
        elif is_current and not self.was_ready and not self.candidate:
            self.never_ready(line or reason, server.code, is_known=server.has_failed)
        elif is_current:
            is_steady = time.monotonic() - server.ready_at >= self.options.steady_s
            self.without_current(f"{reason}: {line}" if line else reason, is_steady=is_steady)

    def without_candidate(self, reason: str) -> None:
        """Let the old server go on, as there is no new one."""
        log(f"the new server could not start: {reason}")
        self.settle_offers(succeeded=False)
        if not self.current:
            self.restart(reason, is_steady=False)
        elif self.current.phase in {"serving", "suspending", "suspended"}:
            self.current.outbox.put(f"resume {reason}"[: MESSAGE_MAX // 4])
            self.current.phase = "serving"
            self.current.deadline = time.monotonic() + self.options.watchdog_s
            if self.end_at < NEVER:
                self.tell_end(self.current)

    def without_current(self, reason: str, *, is_steady: bool) -> None:
        """Go on after the death of a server that was, or another that was, ready."""
        if self.candidate:
            log(f"the server ended: {reason}")
            self.advance()
        else:
            self.settle_offers(succeeded=False)
            self.restart(reason, is_steady=is_steady)

    def never_ready(self, reason: str, code: int | None, *, is_known: bool) -> None:
        """End after the death of the very first server; *is_known*: it said why itself."""
        error = f"the daemon ended before it was ready: {reason}"
        if not is_known:
            log(error)
        self.tell_starter(f'{{"ready": false, "error": {as_json(error)}, "used_wrongly": false}}')
        self.exit_code = code if code and code > 0 else 1

    def restart(self, reason: str, *, is_steady: bool) -> None:
        """Have a server started, in a while if many did not get far."""
        self.failures = 0 if is_steady else min(self.failures + 1, 64)
        delay_s = 0.0
        if self.failures > 1:
            delay_s = min(self.options.delay_s * 2 ** (self.failures - 2), self.options.delay_max_s)
        self.restarts += 1
        self.last_reason = reason[: MESSAGE_MAX // 4]
        self.start_at = time.monotonic() + delay_s
        log(f"the server ended: {reason}; starting it again in {delay_s:g} s, for the {self.restarts}. time")

    def finish(self) -> None:
        """End: there is nothing left to serve."""
        for name in list(self.holdings.held):
            self.holdings.drop(name)
        self.tell_starter(
            '{"ready": false, "error": "the daemon ended before it was ready", "used_wrongly": false}'
        )
        self.exit_code = 0

    def end(self) -> None:
        """Have all ended, in bounded time."""
        if self.end_at < NEVER:
            return
        self.end_at = time.monotonic() + self.options.end_deadline_s
        self.manager.say("STOPPING=1")
        self.start_at = 0.0
        if self.candidate:
            self.candidate.kill("the keeper was told to end")  # the old server is told at its death
        elif self.current:
            self.tell_end(self.current)

    def tell_end(self, server: Server) -> None:
        if server.phase in {"starting", "serving"}:
            server.outbox.put("end")
            server.phase, server.deadline = "ending", NEVER  # end_at bounds it

    def tell_starter(self, line: str) -> None:
        """Tell whoever started us, once, and let their pipe go."""
        if self.is_told:
            return
        self.is_told = True
        write(1, line)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)


def receive_signals(*, foreground: bool) -> int:
    """Have signals that should end us written to a pipe; return its other end."""
    wakeup, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    _signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    ending = list(ENDING_SIGNALS)
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
    except UsageError as error:
        write(2, f"torrentfs keeper: {error}")
        return 2
    os.chdir("/")
    if not options.foreground:
        # Of the service that whoever started us belongs to: it is not ours to speak for.
        os.environ.pop("NOTIFY_SOCKET", None)
    keeper = Keeper(options, receive_signals(foreground=options.foreground))
    keeper.holdings.take(take_listened(), is_stored=True)
    keeper.holdings.take(options.given, is_stored=False)
    if options.adopted >= 0:
        keeper.adopt()
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main())
