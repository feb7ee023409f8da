"""This module runs a web site on hypercorn, in trio. What the site answers is the application's."""

import logging
import socket
from urllib.parse import urlsplit

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from starlette.types import ASGIApp

from torrentfs.config import format_address, parse_address
from torrentfs.errors import ListenError

log = logging.getLogger(__name__)

Address = tuple[str, int]

HEADERS_LENGTH_MAX = 16 * 1024
HEADERS_DEADLINE_S = 30
"""How long a client may take to send a request, and keep a connection idle."""
BACKLOG = 512
END_DEADLINE_S = 1.0
"""How long answers under way may go on once the server is told to end."""


def bind(listen: str) -> socket.socket:
    """Return a socket for `serve` at *listen* ("HOST:PORT"): clients are refused until that.

    Raises: ListenError, UsageError.
    """
    host, port = parse_address(listen)
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ListenError(f"cannot listen on {listen}: {error.strerror}") from None
    return bound


async def serve(
    application: ASGIApp,
    bound: socket.socket,
    *,
    task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *application* at *bound*, which it closes, until cancelled; started with the real address.

    Raises: ListenError.
    """
    listen = format_address(*bound.getsockname()[:2])
    try:
        async with trio.open_nursery() as nursery:
            binds: list[str] = await nursery.start(_run, application, f"fd://{bound.detach()}")
            url = urlsplit(binds[0])
            task_status.started((url.hostname or "", url.port or 0))
    except* OSError as group:
        raise ListenError(f"cannot listen on {listen}: {_reason(group)}") from None


async def _run(
    application: ASGIApp, listen: str, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
) -> None:
    await hypercorn_serve(application, _config(listen), task_status=task_status, mode="asgi")  # type: ignore[arg-type]


def _config(listen: str) -> Config:
    config = Config()
    config.bind = [listen]
    config.backlog = BACKLOG
    config.errorlog = log
    config.accesslog = None
    config.loglevel = "WARNING"
    config.include_server_header = False
    config.h11_max_incomplete_size = HEADERS_LENGTH_MAX
    config.keep_alive_timeout = HEADERS_DEADLINE_S
    config.read_timeout = HEADERS_DEADLINE_S
    config.graceful_timeout = END_DEADLINE_S
    return config


def _reason(group: BaseExceptionGroup[OSError]) -> str:
    """Return the text of the first error in nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return getattr(error, "strerror", None) or str(error)
