"""Tests of the looking up of names; the resolver is a fake, the time virtual."""

import socket

import pytest
import trio
import trio.testing

from torrentfs.node.names import AGE_MAX_S, Names, is_numeric, numeric


class FakeResolver(trio.abc.HostnameResolver):
    """Knows seed.example after *failures* questions, and nothing else."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.asked = 0

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # type: ignore[no-untyped-def]
        self.asked += 1
        if host != b"seed.example" or self.asked <= self.failures:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port)),
        ]

    async def getnameinfo(self, sockaddr, flags):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
async def resolver() -> FakeResolver:
    fake = FakeResolver(0)
    trio.socket.set_custom_hostname_resolver(fake)
    return fake


async def test_name_is_looked_up_once_and_remembered(resolver, nursery, autojump_clock) -> None:
    told = []
    names = Names(lambda peer, address: told.append((peer, address)))
    nursery.start_soon(names.run)

    assert names.get(("seed.example", 6881)) is None
    assert names.get(("seed.example", 6881)) is None
    await trio.testing.wait_all_tasks_blocked()

    assert told == [(("seed.example", 6881), ("192.0.2.1", 6881))]
    assert names.get(("seed.example", 6881)) == ("192.0.2.1", 6881)
    assert resolver.asked == 1


@pytest.mark.warns("no answer")
async def test_name_without_an_answer_is_looked_up_again(resolver, nursery, autojump_clock) -> None:
    resolver.failures = 3
    answered = trio.Event()
    names = Names(lambda peer, address: answered.set())
    nursery.start_soon(names.run)

    names.get(("seed.example", 6881))
    with trio.fail_after(60):
        await answered.wait()

    assert resolver.asked == 4


async def test_old_answer_is_given_and_renewed(resolver, nursery, autojump_clock) -> None:
    names = Names(lambda peer, address: None)
    nursery.start_soon(names.run)
    names.get(("seed.example", 6881))
    await trio.sleep(AGE_MAX_S + 1)

    assert names.get(("seed.example", 6881)) == ("192.0.2.1", 6881)
    await trio.testing.wait_all_tasks_blocked()

    assert resolver.asked == 2


async def test_numbers_need_no_look_up(resolver) -> None:
    names = Names(lambda peer, address: None)

    assert names.get(("192.0.2.7", 1)) == ("192.0.2.7", 1)
    assert names.get(("2001:db8::7", 1)) == ("2001:db8::7", 1)
    assert await numeric("[::1]:5") == ("::1", 5)
    assert not is_numeric("seed.example")
    assert resolver.asked == 0
