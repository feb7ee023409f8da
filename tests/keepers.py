"""This module gives tests a real keeper, and servers of it that do as the test says.

A server here is a process that hands its end of the keeper's channel over to the test and waits for orders.
The test speaks the protocol itself; the process is there to be killed, stopped and ended.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torrentfs.daemon.programs import keeper_command

DEADLINE_S = 30.0
"""Generous: these tests wait for events, and a busy machine is no failure."""

PUPPET = """
import os, sys, _socket
keeper = int(sys.argv[sys.argv.index("--keeper") + 1])
test = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
test.connect(sys.argv[1])
rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, keeper.to_bytes(4, sys.byteorder))
test.sendmsg([str(os.getpid()).encode()], [rights])
os.close(keeper)
while True:
    order, _, rest = test.recv(65536).decode().partition(" ")
    if order == "print":
        try:
            os.write(2, rest.encode())
        except OSError:
            rest = ""
        test.send(b"printed" if rest else b"full")
    else:
        os._exit(int(rest or 99))
"""


@dataclass
class Puppet:
    """A server: *channel* is its end of the keeper's pair, *orders* the way to its process."""

    pid: int
    channel: socket.socket
    orders: socket.socket

    def say(self, text: str, descriptor: int = -1) -> None:
        if descriptor < 0:
            self.channel.send(text.encode())
        else:
            socket.send_fds(self.channel, [text.encode()], [descriptor])

    def hear(self) -> tuple[str, int]:
        """Return the keeper's next message and its descriptor or -1."""
        data, descriptors, _, _ = socket.recv_fds(self.channel, 65_536, 1)
        return data.decode(), descriptors[0] if descriptors else -1

    def expect(self, text: str) -> None:
        heard, _ = self.hear()
        assert heard == text

    def begin(self) -> tuple[dict[str, str], list[str]]:
        """Say `prepared`; return the contents of what is held, and the messages up to `start`."""
        self.say("prepared")
        held, others = {}, []
        while True:
            text, descriptor = self.hear()
            if descriptor >= 0:
                held[text.removeprefix("held ")] = content(descriptor)
                os.close(descriptor)
            elif text.startswith("start"):
                return held, others
            else:
                others.append(text)

    def get_ready(self, notice: str = "") -> tuple[dict[str, str], list[str]]:
        begun = self.begin()
        self.say(f'ready {{"ready": true, "notice": "{notice}"}}')
        return begun

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def exit(self, code: int) -> None:
        self.orders.send(f"exit {code}".encode())

    def print(self, text: str) -> bool:
        """Write *text* to the server's standard error; return whether there was room."""
        self.orders.send(f"print {text}".encode())
        return self.orders.recv(100) == b"printed"

    def await_end(self) -> None:
        """Return when the process has ended."""
        assert self.orders.recv(100) == b""

    def close(self) -> None:
        self.channel.close()
        self.orders.close()


class Reader:
    """Reads lines of a pipe, with a deadline."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""

    def line(self) -> str:
        """Return the next line, or what is left at the end."""
        deadline = time.monotonic() + DEADLINE_S
        while b"\n" not in self._rest:
            if not select.select([self._pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise AssertionError(f"nothing more was said than {self._rest!r}")
            data = os.read(self._pipe, 65_536)
            if not data:
                break
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


class Kept:
    """A keeper that runs, and the door that its servers come in by."""

    def __init__(self, process: "subprocess.Popen[bytes]", door: socket.socket) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self.stdout = Reader(process.stdout.fileno())
        self.stderr = Reader(process.stderr.fileno())
        self._door = door
        self.puppets: list[Puppet] = []

    def server(self) -> Puppet:
        """Return the next server that is started."""
        orders, _ = self._door.accept()
        orders.settimeout(DEADLINE_S)
        pid, descriptors, _, _ = socket.recv_fds(orders, 100, 1)
        channel = socket.socket(fileno=descriptors[0])
        channel.settimeout(DEADLINE_S)
        self.puppets.append(Puppet(int(pid), channel, orders))
        return self.puppets[-1]

    def ready_server(self) -> Puppet:
        puppet = self.server()
        puppet.get_ready()
        return puppet

    def await_line(self, text: str) -> str:
        """Return the next line of its standard error that has *text*."""
        lines = []
        while line := self.stderr.line():
            if text in line:
                return line
            lines.append(line)
        raise AssertionError(f"not said: {text}, but {lines}")

    def descriptor_count(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self) -> int:
        """Return its exit code once it has ended."""
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        # The keeper first, or it starts more.
        self.process.kill()
        self.process.wait(DEADLINE_S)
        for puppet in self.puppets:
            with suppress(OSError):
                puppet.kill(signal.SIGCONT)
            puppet.close()
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        self.process.stderr.close()


SYSTEMD = """
import os, sys
count = int(sys.argv[1])
descriptors = [os.dup2(int(number), 100 + place) for place, number in enumerate(sys.argv[2 : 2 + count])]
for place, descriptor in enumerate(descriptors):
    os.dup2(descriptor, 3 + place)
    os.close(descriptor)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


@contextmanager
def kept(
    directory: Path,
    *options: str,
    held: Mapping[str, int] | None = None,
    listened: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    command: list[str] | None = None,
) -> Iterator[Kept]:
    """Give a keeper whose servers are puppets, or run *command*; end all of them afterwards.

    *held*: what it is given by name, closed here afterwards. *listened*: what it gets as systemd passes
    what is in its store.
    """
    script, address = directory / "puppet.py", directory / "door"
    script.write_text(PUPPET)
    held, listened = held or {}, listened or {}
    given = [f"{name}={descriptor}" for name, descriptor in held.items()]
    server = command or [sys.executable, "-I", "-S", str(script), str(address)]
    words = [*keeper_command(), *options, *given, "--", *server]
    if listened:
        numbers = [str(descriptor) for descriptor in listened.values()]
        words = [sys.executable, "-I", "-S", "-c", SYSTEMD, str(len(numbers)), *numbers, *words]
        environment = {**(environment or {}), "LISTEN_FDNAMES": ":".join(listened)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(str(address))
        door.listen(100)
        door.settimeout(DEADLINE_S)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[*held.values(), *listened.values()],
            env={**os.environ, **(environment or {})},
        )
        keeper = Kept(process, door)
        try:
            yield keeper
        finally:
            keeper.close()
            address.unlink()
            for descriptor in held.values():
                os.close(descriptor)


def memory(text: str) -> int:
    """Return the descriptor of a file in memory that holds *text*."""
    descriptor = os.memfd_create("test")
    os.write(descriptor, text.encode())
    return descriptor


def content(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode()


def private_kb(pid: int) -> int:
    """Return how much memory process *pid* has for itself alone."""
    rows = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(row[1]) for row in rows if row[0] in {"Private_Clean:", "Private_Dirty:"})
