"""This module tests the turn that threads and trio's steps take: one at a time, and nobody left out."""

import os
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import trio

from torrentfs.fuse.turns import Turns

STEPS = 300


@pytest.fixture(autouse=True)
def restless() -> Iterator[None]:
    """Have Python switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Shared:
    """What only one may touch at a time; it takes note if two do."""

    def __init__(self) -> None:
        self.users = 0
        self.most = 0
        self.uses = 0

    def use(self) -> None:
        self.users += 1
        self.most = max(self.most, self.users)
        os.sched_yield()
        self.uses += 1
        self.users -= 1


def test_threads_and_steps_never_touch_the_same_at_once() -> None:
    turns, shared, ended = Turns(), Shared(), threading.Event()
    counts = [0, 0]

    def work(index: int) -> None:
        while not ended.is_set():
            with turns:
                shared.use()
                counts[index] += 1

    async def step() -> None:
        for _ in range(STEPS):
            shared.use()
            await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(step)
            nursery.start_soon(step)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    trio.run(main, instruments=[turns])
    ended.set()
    for thread in threads:
        thread.join()

    assert shared.most == 1
    assert shared.uses == 2 * STEPS + sum(counts)


class Recorded(Turns):
    """Turns that write down when trio gets one."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        super().before_task_step(task)
        self._order.append("trio")


def test_who_waits_for_the_turn_gets_it_before_a_busy_thread_does_again() -> None:
    order: list[str] = []
    turns, ended = Recorded(order), threading.Event()

    def work() -> None:
        """Take turn after turn; end each only once trio waits for the next one."""
        while not ended.is_set():
            with turns:
                order.append("thread")
                while not turns._next.locked() and not ended.is_set():
                    os.sched_yield()

    thread = threading.Thread(target=work)

    async def main() -> None:
        thread.start()
        for _ in range(STEPS):
            await trio.lowlevel.checkpoint()
        ended.set()

    trio.run(main, instruments=[turns])
    thread.join()

    assert order.count("trio") >= STEPS
    assert ("thread", "thread") not in pairwise(order)


def test_trio_does_not_hold_the_turn_while_it_waits() -> None:
    turns = Turns()

    def take() -> str:
        with turns:
            return "taken"

    async def main() -> str:
        return await trio.to_thread.run_sync(take)

    assert trio.run(main, instruments=[turns]) == "taken"


def test_a_thread_that_fails_gives_its_turn_back() -> None:
    turns = Turns()

    with pytest.raises(ZeroDivisionError), turns:
        raise ZeroDivisionError

    with turns:
        pass


def test_a_step_that_fails_gives_its_turn_back() -> None:
    turns = Turns()

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(fail, instruments=[turns])

    with turns:
        pass


def test_a_cancelled_step_gives_its_turn_back() -> None:
    turns = Turns()

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await trio.sleep_forever()

    trio.run(main, instruments=[turns])

    with turns:
        pass
