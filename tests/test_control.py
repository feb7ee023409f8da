"""The control socket: the claim on a mountpoint, questions and answers, and hostile or slow askers."""

import fcntl
import json
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from torrentfs.daemon import claims, control, control_client
from torrentfs.daemon.runtime import runtime_directory, socket_path, sockets
from torrentfs.errors import ControlError, FetchError, MountError

PLACE = Path("/opt/alice")


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own."""
    directory = tmp_path / "run"
    monkeypatch.setenv("TORRENTFS_RUNTIME_DIR", str(directory))
    return directory


async def answer(_: object) -> dict[str, Any]:
    return {"pid": os.getpid()}


async def refuse(_: object) -> Any:
    raise FetchError("the repository is away")


async def break_down(_: object) -> Any:
    raise KeyError("oh")


async def be_odd(_: object) -> Any:
    return {"mountpoint": os.fsdecode(b"/caf\xe9")}


WORDS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "stats": answer,
    "refuse": refuse,
    "break": break_down,
    "odd": be_odd,
}


async def asked(work: Callable[[], Any]) -> Any:
    """Return what *work*, in a thread, gets from a daemon that serves WORDS."""
    with claims.claim(PLACE) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, WORDS)
            try:
                return await trio.to_thread.run_sync(work)
            finally:
                nursery.cancel_scope.cancel()


async def test_a_question_is_answered() -> None:
    assert await asked(partial(control_client.ask, PLACE, "stats")) == {"pid": os.getpid()}


async def test_all_daemons_of_a_user_are_asked() -> None:
    socket_path(Path("/dead")).touch()

    assert await asked(partial(control_client.ask_all, "stats")) == ([{"pid": os.getpid()}], [])


async def test_a_daemon_that_hangs_does_not_hide_the_others() -> None:
    with claims.claim(Path("/hangs")):
        answers, errors = await asked(partial(control_client.ask_all, "stats", deadline_s=1.0))

    assert answers == [{"pid": os.getpid()}]
    assert len(errors) == 1


async def test_the_pid_is_known_without_an_answer() -> None:
    with claims.claim(PLACE):
        assert control_client.daemon_pid(PLACE) == os.getpid()

    assert control_client.daemon_pid(PLACE) is None


@pytest.mark.parametrize(
    ("word", "reason"),
    [("refuse", "the repository is away"), ("dance", "answers only to: break, odd, refuse, stats")],
)
async def test_a_refusal_is_one_line_for_the_asker(word: str, reason: str) -> None:
    def work() -> str:
        with pytest.raises(ControlError) as caught:
            control_client.ask(PLACE, word)
        return str(caught.value)

    assert reason in await asked(work)


@pytest.mark.warns("a question could not be answered")
async def test_our_own_bug_is_an_answer_and_the_daemon_lives_on() -> None:
    def work() -> Any:
        with pytest.raises(ControlError, match="KeyError"):
            control_client.ask(PLACE, "break")
        return control_client.ask(PLACE, "stats")

    assert await asked(work) == {"pid": os.getpid()}


@pytest.mark.warns("a question could not be answered")
async def test_an_answer_that_is_no_text_is_an_error_and_the_daemon_lives_on() -> None:
    def work() -> Any:
        for _ in range(2):
            with pytest.raises(ControlError, match="Unicode"):
                control_client.ask(PLACE, "odd")
        return control_client.ask(PLACE, "stats")

    assert await asked(work) == {"pid": os.getpid()}


async def test_a_daemon_that_takes_no_more_questions_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(control_client, "CONNECT_DEADLINE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as full, socket.socket(socket.AF_UNIX) as waiting:
        full.bind(str(socket_path(Path("/full"))))
        full.listen(0)
        waiting.connect(str(socket_path(Path("/full"))))

        answers, errors = await asked(partial(control_client.ask_all, "stats"))

    assert answers == [{"pid": os.getpid()}]
    assert len(errors) == 1


@pytest.mark.parametrize(
    "question", [b"\n", b"[]\n", b'{"ask": 3}\n', b"x" * (control.QUESTION_LENGTH_MAX + 1), b'"stats"\n']
)
async def test_rubbish_gets_an_error(question: bytes) -> None:
    def work() -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(socket_path(PLACE)))
            connection.sendall(question)
            return json.loads(connection.makefile("rb").readline())

    assert set(await asked(work)) == {"error"}


async def test_a_silent_asker_is_hung_up_on(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours:
        await control._serve_one(trio.SocketStream(theirs), WORDS, trio.Semaphore(0))

        assert await ours.recv(1) == b""


def test_nobody_home_is_said_so() -> None:
    with pytest.raises(ControlError, match="no daemon of yours serves /opt/alice"):
        control_client.ask(PLACE, "stats")


def test_a_daemon_that_hangs_is_given_up() -> None:
    with claims.claim(PLACE), pytest.raises(ControlError, match=r"did not answer within 0\.05 s"):
        control_client.ask(PLACE, "stats", deadline_s=0.05)


def test_a_mountpoint_has_one_daemon() -> None:
    with (
        claims.claim(PLACE),
        pytest.raises(MountError, match=f"by process {os.getpid()}"),
        claims.claim(PLACE),
    ):
        pass


def test_a_claim_does_not_wait_for_ever(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CLAIM_DEADLINE_S", 0.1)
    directory = os.open(runtime_directory(), os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    try:
        with pytest.raises(ControlError, match="locked by another process"), claims.claim(PLACE):
            pass
    finally:
        os.close(directory)


def test_a_killed_daemons_socket_is_taken_over() -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_path(PLACE)))

    with claims.claim(PLACE):
        assert control_client.daemon_pid(PLACE) == os.getpid()


def test_no_socket_is_left() -> None:
    with claims.claim(PLACE):
        pass

    assert sockets() == []


def test_a_runtime_directory_of_others_is_refused(runtime: Path) -> None:
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)

    with pytest.raises(ControlError, match="only its owner"):
        runtime_directory()
