"""The server's end of the keeper: against a keeper that the test plays, and with real keepers and servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from keepers import DEADLINE_S, content, memory

from torrentfs.daemon.keeping import End, Keeping, Leave, Resume, Suspend, keeper_command
from torrentfs.errors import ControlError


class PlayedKeeper:
    """The other end of a `Keeping` in this process."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.settimeout(DEADLINE_S)
        self.keeping = Keeping(theirs.detach(), ["/nowhere/server"])

    def say(self, text: str, descriptor: int = -1) -> None:
        if descriptor < 0:
            self.channel.send(text.encode())
        else:
            socket.send_fds(self.channel, [text.encode()], [descriptor])

    def hear(self) -> str:
        return self.channel.recv(65_536).decode()

    def hear_descriptor(self) -> tuple[str, str]:
        """Return a message, and the contents of the file that came with it."""
        data, descriptors, _, _ = socket.recv_fds(self.channel, 65_536, 1)
        text = content(descriptors[0])
        os.close(descriptors[0])
        return data.decode(), text


@pytest.fixture
def played() -> Iterator[PlayedKeeper]:
    played = PlayedKeeper()
    yield played
    played.channel.close()


@pytest.fixture
async def started(played: PlayedKeeper) -> PlayedKeeper:
    """A keeper whose server was told to start."""
    played.say("start --watchdog 40")
    await played.keeping.prepared()
    assert played.hear() == "prepared"
    return played


class TestStart:
    async def test_what_is_held_arrives_and_no_child_inherits_it(self, played: PlayedKeeper) -> None:
        played.say("held a.config", memory("first"))
        played.say("held node", memory("second"))
        played.say("restarts 3 killed by SIGKILL")
        played.say("successor")
        played.say("start --watchdog 10")

        start = await played.keeping.prepared()

        assert {name: content(descriptor) for name, descriptor in start.held.items()} == {
            "a.config": "first",
            "node": "second",
        }
        assert not any(os.get_inheritable(descriptor) for descriptor in start.held.values())
        assert (start.restarts, start.reason, start.is_successor) == (3, "killed by SIGKILL", True)
        assert played.hear() == "prepared"

    async def test_a_first_start_has_nothing(self, played: PlayedKeeper) -> None:
        played.say("start")

        start = await played.keeping.prepared()

        assert (start.held, start.restarts, start.reason, start.is_successor) == ({}, 0, "", False)

    async def test_a_reason_in_json_is_told_in_words(self, played: PlayedKeeper) -> None:
        played.say('restarts 1 {"ready": false, "error": "no network", "used_wrongly": false}')
        played.say("start")

        assert (await played.keeping.prepared()).reason == "no network"

    async def test_a_keeper_that_dies_before_is_an_error(self, played: PlayedKeeper) -> None:
        played.channel.close()

        with pytest.raises(ControlError, match="died"):
            await played.keeping.prepared()

    def test_no_keeper_at_the_descriptor_is_an_error(self) -> None:
        with pytest.raises(ControlError, match="no keeper at descriptor 9999"):
            Keeping(9999, ["server"])


class TestWords:
    async def test_what_a_server_says(self, started: PlayedKeeper) -> None:
        keeping, descriptor = started.keeping, memory("held")

        keeping.hold("a", descriptor)
        keeping.drop("a")
        keeping.ready("all is well")
        keeping.alive()
        keeping.reload({"b": descriptor})
        keeping.suspended()
        keeping.done()
        keeping.failed("no", used_wrongly=True)
        os.close(descriptor)

        assert started.hear_descriptor() == ("hold a", "held")
        assert [started.hear() for _ in range(3)] == [
            "drop a",
            'ready {"ready": true, "notice": "all is well"}',
            "alive",
        ]
        assert started.hear_descriptor() == ("offer b", "held")
        assert [started.hear() for _ in range(3)] == ["reload", "suspended", "done"]
        word, _, rest = started.hear().partition(" ")
        assert word == "failed"
        assert json.loads(rest) == {"ready": False, "error": "no", "used_wrongly": True}

    async def test_a_long_text_fits_into_a_message(self, started: PlayedKeeper) -> None:
        started.keeping.failed("\x00ü" * 100_000)

        assert json.loads(started.hear().removeprefix("failed "))["error"].startswith("\x00ü")

    async def test_what_the_keeper_wants(self, started: PlayedKeeper, nursery: trio.Nursery) -> None:
        nursery.start_soon(started.keeping.run)

        for text in ("suspend", 'resume {"error": "bad configuration"}', "nonsense", "leave", "end"):
            started.say(text)
        words = [await started.keeping.word() for _ in range(4)]

        assert words == [Suspend(), Resume("bad configuration"), Leave("the successor serves"), End()]

    async def test_what_was_said_with_the_start_is_not_lost(
        self, played: PlayedKeeper, nursery: trio.Nursery
    ) -> None:
        played.say("start")
        played.say("end")
        await played.keeping.prepared()

        nursery.start_soon(played.keeping.run)

        assert await played.keeping.word() == End()

    async def test_a_keeper_that_does_not_read_holds_nobody_up(
        self, started: PlayedKeeper, nursery: trio.Nursery
    ) -> None:
        descriptor = memory("held")
        nursery.start_soon(started.keeping.run)

        for number in range(1000):
            started.keeping.hold(f"n{number}", descriptor)
        heard = [await trio.to_thread.run_sync(started.hear_descriptor) for _ in range(1000)]
        for number in range(1000):
            started.keeping.drop(f"n{number}")

        assert [text for text, _ in heard if text != "alive"] == [f"hold n{number}" for number in range(1000)]
        os.close(descriptor)

    async def test_no_descriptor_is_left_over(self, started: PlayedKeeper) -> None:
        def count() -> int:
            return len(list(Path("/proc/self/fd").iterdir()))

        descriptor = memory("held")
        before = count()

        for _ in range(10):
            started.keeping.hold("a", descriptor)
        held = count()
        started.keeping.drop("a")

        assert (held - before, count() - before) == (1, 0)
        os.close(descriptor)


class TestHeartbeat:
    async def test_it_beats_four_times_in_the_time_of_the_watchdog(
        self, started: PlayedKeeper, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        nursery.start_soon(started.keeping.run)

        await trio.sleep(41)

        assert [started.hear() for _ in range(5)] == ["alive"] * 5
        started.channel.setblocking(False)
        with pytest.raises(BlockingIOError):
            started.hear()

    async def test_a_server_that_is_not_well_gives_no_sign_of_life(
        self, started: PlayedKeeper, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
    ) -> None:
        nursery.start_soon(started.keeping.run, lambda: False)

        await trio.sleep(1000)

        started.channel.setblocking(False)
        with pytest.raises(BlockingIOError):
            started.hear()


class TestKeeperDies:
    async def test_a_first_server_that_is_not_ready_ends(
        self, started: PlayedKeeper, nursery: trio.Nursery
    ) -> None:
        nursery.start_soon(started.keeping.run)

        started.channel.close()

        assert await started.keeping.word() == End()
        assert started.keeping.keeper_pid == 0

    async def test_a_successor_that_is_not_ready_leaves(
        self, played: PlayedKeeper, nursery: trio.Nursery
    ) -> None:
        played.say("successor")
        played.say("start")
        await played.keeping.prepared()
        nursery.start_soon(played.keeping.run)

        played.channel.close()

        assert isinstance(await played.keeping.word(), Leave)

    async def test_under_systemd_a_server_leaves_and_starts_no_keeper(
        self, started: PlayedKeeper, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
        started.keeping.ready()
        nursery.start_soon(started.keeping.run)

        started.channel.close()

        assert isinstance(await started.keeping.word(), Leave)
        assert started.keeping.keeper_pid == 0

    async def test_a_reload_without_a_keeper_is_refused(
        self, started: PlayedKeeper, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
        nursery.start_soon(started.keeping.run)
        started.channel.close()
        await started.keeping.word()

        started.keeping.reload({})

        assert isinstance(await started.keeping.word(), Resume)


SERVER = """
import json, logging, os, socket, sys
import trio
from torrentfs.daemon.keeping import *

def memory(text):
    descriptor = os.memfd_create("server")
    os.write(descriptor, text.encode())
    return descriptor

async def main():
    keeping = Keeping(int(sys.argv[-1]), [sys.executable, "-P", __file__, sys.argv[1]])
    start = await keeping.prepared()
    test = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        await test.connect(sys.argv[1])
    except OSError:
        keeping.done()
        os._exit(0)

    async def report(**what):
        await test.send(json.dumps(what).encode())

    async def pass_on():
        while True:
            await report(word=repr(await keeping.word()))

    held = {name: os.pread(descriptor, 100, 0).decode() for name, descriptor in start.held.items()}
    await report(pid=os.getpid(), held=held, restarts=start.restarts, reason=start.reason,
                 is_successor=start.is_successor)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeping.run)
        nursery.start_soon(pass_on)
        while True:
            order, *rest = (await test.recv(65536)).decode().split(" ", 2)
            match order:
                case "hold": keeping.hold(rest[0], memory(rest[1]))
                case "reload": keeping.reload({rest[0]: memory(rest[1])})
                case "keeper": order = keeping.keeper_pid
                case "exit": os._exit(int(rest[0]))
                case "": # the test is over
                    keeping.done()
                    os._exit(0)
                case _: getattr(keeping, order)(*rest)
            await report(order=order)

trio.run(main)
"""


class Server:
    """A real server of a real keeper, which does as it is ordered and reports what it hears."""

    def __init__(self, orders: socket.socket) -> None:
        self.orders = orders
        orders.settimeout(DEADLINE_S)
        self.start = self._report()
        self._words: list[str] = []

    def order(self, text: str) -> object:
        """Have it do what *text* says; return what it answers when it is done."""
        self.orders.send(text.encode())
        while "order" not in (report := self._report()):
            self._words.append(str(report["word"]))
        return report["order"]

    def word(self) -> str:
        """Return the next that it heard from its keeper."""
        return self._words.pop(0) if self._words else str(self._report()["word"])

    def end(self) -> None:
        self.orders.send(b"exit 1")

    def _report(self) -> dict[str, object]:
        report: dict[str, object] = json.loads(self.orders.recv(65_536))
        return report

    @property
    def pid(self) -> int:
        assert isinstance(self.start["pid"], int)
        return self.start["pid"]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def keeper(self, other_than: int = 0) -> int:
        """Return its keeper's process once it is not *other_than*."""
        while True:
            keeper = self.order("keeper")
            assert isinstance(keeper, int)
            if keeper not in {0, other_than}:
                return keeper


class Stage:
    """A keeper and its servers, and all keepers that servers start for themselves."""

    def __init__(self, directory: Path) -> None:
        self.address = directory / "door"
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.bind(str(self.address))
        self.door.listen(100)
        self.door.settimeout(DEADLINE_S)
        script = directory / "server.py"
        script.write_text(SERVER)
        self.servers: list[Server] = []
        self.stderr = (directory / "stderr").open("w+b")
        command = [sys.executable, "-P", str(script), str(self.address)]
        options = ["--foreground", "--delay", "0.001", "--steady", "0"]
        self.process = subprocess.Popen(
            [*keeper_command(), *options, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
        )

    def server(self) -> Server:
        orders, _ = self.door.accept()
        self.servers.append(Server(orders))
        return self.servers[-1]

    def kill_keeper(self, server: Server) -> int:
        """Kill the keeper of *server*, wait for it to have another, and return that one."""
        keeper = server.keeper()
        os.kill(keeper, signal.SIGKILL)
        return server.keeper(other_than=keeper)

    def close(self) -> None:
        # A server whose test has gone says `done`, and so its keeper ends too, whoever started it.
        self.door.close()
        self.address.unlink()
        for server in self.servers:
            server.orders.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE_S)
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.stderr.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether process *pid* has come so far that it handles that signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


class TestReal:
    def test_a_killed_server_gets_a_successor_with_what_was_held(self, stage: Stage) -> None:
        first = stage.server()
        first.order("hold a kept by it")
        first.order("ready")

        first.kill()
        start = stage.server().start

        assert start["held"] == {"a": "kept by it"}
        assert (start["restarts"], start["reason"]) == (1, "killed by SIGKILL")

    def test_a_server_whose_keeper_dies_has_another(self, stage: Stage) -> None:
        server = stage.server()
        server.order("hold a kept")
        server.order("hold b dropped")
        server.order("drop b")
        server.order("ready")

        second_keeper = stage.kill_keeper(server)
        server.order("hold c later")
        third_keeper = stage.kill_keeper(server)
        server.kill()
        successor = stage.server()

        assert successor.start["held"] == {"a": "kept", "c": "later"}
        assert successor.keeper() == third_keeper
        assert third_keeper != second_keeper

    def test_a_keeper_that_a_server_started_can_be_told_to_end(self, stage: Stage) -> None:
        server = stage.server()
        server.order("ready")
        keeper = stage.kill_keeper(server)
        while not catches(keeper, signal.SIGTERM):
            time.sleep(0.01)

        os.kill(keeper, signal.SIGTERM)

        assert server.word() == "End()"

    def test_a_reload_hands_over(self, stage: Stage) -> None:
        old = stage.server()
        old.order("hold a kept")
        old.order("hold b old")
        old.order("ready")

        old.order("reload b new")
        assert old.word() == "Suspend()"
        old.order("suspended")
        new = stage.server()
        new.order("ready")

        assert old.word() == "Leave(reason='the successor serves')"
        assert new.start["held"] == {"a": "kept", "b": "new"}
        assert new.start["is_successor"] is True

    def test_a_reload_that_fails_resumes_the_old_server(self, stage: Stage) -> None:
        old = stage.server()
        old.order("ready")

        old.order("reload a new")
        assert old.word() == "Suspend()"
        old.order("suspended")
        new = stage.server()
        new.order("failed misconfigured")
        new.end()

        assert old.word() == "Resume(reason='misconfigured')"
        old.kill()
        assert stage.server().start["held"] == {}

    def test_a_keeper_that_dies_during_a_reload_leaves_the_old_server_serving(self, stage: Stage) -> None:
        old = stage.server()
        old.order("ready")
        keeper = old.keeper()
        old.order("reload a new")
        assert old.word() == "Suspend()"
        old.order("suspended")
        new = stage.server()

        os.kill(keeper, signal.SIGKILL)

        assert old.word() == "Resume(reason='the keeper died')"
        old.order("serving")
        assert new.word().startswith("Leave")
        new.end()
        old.keeper(other_than=keeper)
        old.kill()
        assert stage.server().start["restarts"] == 1
