"""This module runs a small grid on one machine: an origin and nodes as processes, by the command line alone.

Whatever it starts ends with the `with` block: on an error, on Ctrl-C and on SIGTERM as well (see
`ended_by_signals`).
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

COMMAND_TIMEOUT_S = 120.0
PUBLISH_TIMEOUT_S = 1800.0
START_TIMEOUT_S = 30.0
END_TIMEOUT_S = 15.0
UMOUNT_TIMEOUT_S = 45.0  # `torrentfs umount` itself gives up after 30, and says why
LOG_TAIL = 2000


class GridError(Exception):
    """A command or process of the grid failed; the text says which, and what it wrote."""


def own_command() -> list[str]:
    """Return the torrentfs command beside the running Python."""
    return [str(Path(sys.executable).with_name("torrentfs"))]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that `with` blocks clean up as they do on Ctrl-C."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals off while cleaning up: a second Ctrl-C must not leave a mount behind."""
    if threading.current_thread() is not threading.main_thread():
        # Handlers run in the main thread only, and disturb that one.
        yield
        return
    came: list[int] = []
    # Not a signal mask: that is one thread's; any other takes the signal then, for the handler to run here.
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


@contextmanager
def scratch(parent: Path | None, prefix: str) -> Iterator[Path]:
    """Make a directory in *parent* (by default where temporary files go), and remove it whole."""
    made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        yield made
    finally:
        with undisturbed():
            shutil.rmtree(made)


def run(command: Sequence[str], *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run *command* and return what it prints.

    Raises: GridError: with its last words.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise GridError(str(error)) from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-LOG_TAIL:]
        raise GridError(f"{' '.join(command)}: exit code {done.returncode}: {words}")
    return done.stdout


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on this machine's disk, the publisher's side."""

    directory: Path
    command: Sequence[str] = field(default_factory=own_command)

    @property
    def trust(self) -> Path:
        return self.directory / "public" / "root.json"

    def create(self, name: str) -> None:
        run([*self.command, "repo", "init", str(self.directory), "--name", name])

    def publish(self, source: Path, path: str) -> float:
        """Publish *source* as *path*; return how many seconds the command took."""
        start = time.perf_counter()
        run([*self.command, "publish", str(self.directory), str(source), path], timeout_s=PUBLISH_TIMEOUT_S)
        return time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Origin:
    """A running `torrentfs seed`: the addresses where it answers, and its process."""

    url: str
    peer: str
    pid: int


@contextmanager
def origin(
    repository: Repository, log: Path, *, host: str = "127.0.0.1", prefix: Sequence[str] = ()
) -> Iterator[Origin]:
    """Run the origin of *repository* on *host*, by *prefix* (`ip netns exec …`), until both ports answer."""
    # In a network namespace of its own any port is free.
    http, listen = (8080, 6881) if prefix else (free_port(host), free_port(host))
    options = ["--http", f"{host}:{http}", "--listen", f"{host}:{listen}"]
    command = [*prefix, *repository.command, "seed", str(repository.directory), *options]
    with process(command, log) as seeder:
        for port in (http, listen):
            await_port(seeder, host, port, log)
        yield Origin(f"http://{host}:{http}", f"{host}:{listen}", seeder.pid)


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* in a session of its own, so that a terminal's Ctrl-C ends it no sooner than we do."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield running
    finally:
        with undisturbed():
            running.terminate()
            try:
                running.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def await_line(running: subprocess.Popen[bytes], log: Path, line: str) -> None:
    """Wait until *running* has written *line* to its *log*.

    Raises: GridError: it ended, or START_TIMEOUT_S are over.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while line not in (words := log.read_text(errors="replace")).splitlines():
        if running.poll() is not None or time.monotonic() > deadline:
            raise GridError(f"no {line!r} in the log: {words[-LOG_TAIL:]}")
        time.sleep(0.02)


def await_true(condition: Callable[[], bool], complaint: str) -> None:
    """Return when *condition* is true.

    Raises: GridError: it is not after START_TIMEOUT_S.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise GridError(complaint)
        time.sleep(0.05)


def await_port(running: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    """Wait until something answers on *port*.

    Raises: GridError: *running* ended, or START_TIMEOUT_S are over.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        if running.poll() is not None or time.monotonic() > deadline:
            words = log.read_text(errors="replace")[-LOG_TAIL:]
            raise GridError(f"nothing answers on {host}:{port}; the last of its log: {words}")
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Return the processes that *pid* started; none where the kernel does not tell (proc_pid_children(5))."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def end_processes(pids: Sequence[int]) -> None:
    """SIGKILL all of *pids*, in this order; return once they have ended, or END_TIMEOUT_S later."""
    with ExitStack() as stack:
        pidfds = []
        for pid in pids:
            with suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
                stack.callback(os.close, pidfds[-1])
        for pidfd in pidfds:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + END_TIMEOUT_S
        for pidfd in pidfds:
            select.select([pidfd], [], [], max(deadline - time.monotonic(), 0))


@dataclass(slots=True)
class Node:
    """One node: its mountpoint and cache below *directory*, mounted or not."""

    directory: Path
    repository_url: str
    trust: Path
    listen: str
    options: Sequence[str] = ()
    command: Sequence[str] = field(default_factory=own_command)
    pid: int = 0
    keeper: int = 0  # the process that outlives the server, if this mount has one

    @property
    def mountpoint(self) -> Path:
        return self.directory / "mnt"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def mount(self) -> float:
        """Mount; return how many seconds it took until the tree answered."""
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(exist_ok=True)
        what = ["--repository", self.repository_url, "--trust", str(self.trust)]
        where = ["--cache", str(self.cache), "--listen", self.listen]
        start = time.perf_counter()
        run([*self.command, "mount", str(self.mountpoint), *what, *where, *self.options])
        seconds = time.perf_counter() - start
        self.learn_processes()
        return seconds

    def learn_processes(self) -> None:
        """Ask the mount which processes serve it now."""
        answer = self.stats()
        self.pid, self.keeper = answer["pid"], answer.get("server", {}).get("keeper", 0)

    @property
    def processes(self) -> list[int]:
        """Return the processes that serve the mount, the keeper first; none if it is not mounted."""
        return [pid for pid in (self.keeper, self.pid) if pid]

    def stats(self) -> dict[str, Any]:
        """Return what `torrentfs stats --json` says of this mount."""
        answer = json.loads(run([*self.command, "stats", str(self.mountpoint), "--json"]))
        found: dict[str, Any] = answer[0] if isinstance(answer, list) else answer
        return found

    def umount(self) -> None:
        """End the mount and its daemon; by force, if it must be."""
        # What is mounted is not looked at if need not be: with its server dead it may not answer.
        if not self.pid and not os.path.ismount(self.mountpoint):
            return
        command = [*self.command, "umount", str(self.mountpoint)]
        try:
            run(command, timeout_s=UMOUNT_TIMEOUT_S)
        except GridError:
            try:
                run([*command, "--force"], timeout_s=UMOUNT_TIMEOUT_S)
            except GridError:
                self.end_by_force()
            raise
        finally:
            self.pid = self.keeper = 0

    def end_by_force(self) -> None:
        """Detach the mount, and kill what serves it, by its id; return once that is gone."""
        with suppress(OSError, subprocess.TimeoutExpired):
            detach = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run(
                [*detach, str(self.mountpoint)], capture_output=True, timeout=END_TIMEOUT_S, check=False
            )
        # A keeper starts its server again, and a server its keeper: neither may see the other's death.
        if self.keeper:
            with suppress(ProcessLookupError):
                os.kill(self.keeper, signal.SIGSTOP)
        end_processes([*children(self.keeper), *reversed(self.processes)])

    def forget(self) -> None:
        """Empty the cache of an unmounted node."""
        shutil.rmtree(self.cache, ignore_errors=True)


@contextmanager
def ending(node: Node) -> Iterator[Node]:
    """End *node* with the block, whatever happened in it."""
    try:
        yield node
    finally:
        with undisturbed():
            try:
                node.umount()
            except GridError as error:
                print(f"ending a mount by force: {error}", file=sys.stderr)
