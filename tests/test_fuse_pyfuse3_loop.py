"""This module tests the cheaper loop under pyfuse3, and pins the seam in pyfuse3 that it stands on."""

import inspect
import os
from collections.abc import Iterator

import pyfuse3
import pyfuse3.asyncio
import pytest
import trio
import trio.testing

from torrentfs.fuse.pyfuse3_loop import REQUESTS_PER_TURN, Loop, _Turnstile


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for end in ends:
        if end >= 0:
            os.close(end)


def test_pyfuse3_lets_its_trio_be_replaced() -> None:
    assert vars(pyfuse3)["trio"] is trio
    assert "pyfuse3.trio = fake_trio" in inspect.getsource(pyfuse3.asyncio.enable)


async def test_the_real_trio_is_back_after_remove() -> None:
    loop = Loop(0)

    loop.install()
    assert vars(pyfuse3)["trio"] is not trio
    loop.remove()

    assert vars(pyfuse3)["trio"] is trio


async def test_other_tasks_get_turns_under_endless_requests(pipe: list[int]) -> None:
    loop = Loop(0)
    os.write(pipe[1], b"x")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10 * REQUESTS_PER_TURN):
            await loop.wait_readable(pipe[0])
        nursery.cancel_scope.cancel()

    assert turns >= 9


@pytest.mark.parametrize("spin_us", [0, 50])
async def test_it_sleeps_until_a_request_comes(pipe: list[int], spin_us: int) -> None:
    loop = Loop(spin_us)
    order: list[str] = []

    async def wait() -> None:
        await loop.wait_readable(pipe[0])
        order.append("request")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        order.append("asleep")
        os.write(pipe[1], b"x")

    assert order == ["asleep", "request"]
    assert not loop.disconnected.is_set()


async def test_the_end_of_the_connection_is_told(pipe: list[int]) -> None:
    loop = Loop(0)
    os.close(pipe[1])
    pipe[1] = -1

    await loop.wait_readable(pipe[0])

    assert loop.disconnected.is_set()


async def test_one_at_a_time_passes_the_turnstile() -> None:
    turnstile = _Turnstile()
    inside = passed = 0

    async def go() -> None:
        nonlocal inside, passed
        async with turnstile:
            inside += 1
            assert inside == 1
            await trio.lowlevel.checkpoint()
            inside -= 1
            passed += 1

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(go)

    assert passed == 50


async def test_who_is_cancelled_at_the_turnstile_is_not_waited_for() -> None:
    turnstile = _Turnstile()
    passed = []

    async def go(number: int, scope: trio.CancelScope) -> None:
        with scope:
            async with turnstile:
                await trio.lowlevel.checkpoint()
                passed.append(number)

    scopes = [trio.CancelScope() for _ in range(3)]
    async with trio.open_nursery() as nursery, turnstile:
        for number, scope in enumerate(scopes):
            nursery.start_soon(go, number, scope)
        await trio.testing.wait_all_tasks_blocked()
        scopes[0].cancel()

    assert sorted(passed) == [1, 2]
