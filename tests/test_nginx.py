"""This module tests a node against a real web server: nginx as the mirror of a published directory."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from test_node import FRAMES, PACK, frame, read_all, running

from torrentfs.errors import DeadlineError
from torrentfs.node import Sources
from torrentfs.repository.metainfo import NotCached

pytestmark = [pytest.mark.needs("nginx"), pytest.mark.root]

CONFIGURATION = """
daemon off;
user root;
worker_processes 1;
pid {base}/pid;
error_log {base}/errors;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {base}/body;
    proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi;
    scgi_temp_path {base}/scgi;
    server {{ listen 127.0.0.1:{port}; root {base}/public; }}
}}
"""


@pytest.fixture(autouse=True)
async def breaker() -> AsyncIterator[None]:
    """End a test that hangs."""
    with trio.fail_after(30):
        yield


@pytest.fixture
def port(tmp_path: Path) -> int:
    """A port that was free, for an nginx with the pack in its root."""
    for path, data in PACK.files().items():
        file = tmp_path / "nginx" / "public" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free: int = taken.getsockname()[1]
    base = tmp_path / "nginx"
    (base / "conf").write_text(CONFIGURATION.format(base=base, port=free))
    return free


@asynccontextmanager
async def nginx(base: Path, port: int) -> AsyncIterator[None]:
    """Run nginx until the end of the block."""
    command = ["nginx", "-p", str(base), "-c", str(base / "conf"), "-e", str(base / "errors")]
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio.run_process, command)
        while not await listening(port):
            assert server.poll() is None, (base / "errors").read_text()
            await trio.sleep(0.01)
        yield
        server.terminate()


async def listening(port: int) -> bool:
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def test_all_comes_from_nginx_by_byte_ranges(tmp_path: Path, port: int) -> None:
    async with nginx(tmp_path / "nginx", port), running(tmp_path / "cache") as node:
        await read_all(node.view(Sources((f"http://127.0.0.1:{port}",), ())))

        stats = await node.stats()

    assert (stats.from_mirrors, stats.cached) == (len(PACK.data), len(PACK.data))
    assert (stats.from_peers, stats.failed_pieces) == (0, 0)


async def test_nginx_may_go_and_come_back(tmp_path: Path, port: int) -> None:
    async with running(tmp_path / "cache") as node:
        view = node.view(Sources((f"http://127.0.0.1:{port}",), ()))
        async with nginx(tmp_path / "nginx", port):
            await frame(view, 0)

        last = len(FRAMES) - 1
        missing = NotCached(PACK.ref, last * len(FRAMES[0]), len(FRAMES[last]))
        with pytest.raises(DeadlineError, match=f"127.0.0.1:{port}"):
            await view.ensure(missing, trio.current_time() + 0.5)
        async with nginx(tmp_path / "nginx", port):
            await read_all(view)
