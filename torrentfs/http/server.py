"""This module runs a web site on hypercorn, in trio. What the site answers is the application's."""

import logging
from urllib.parse import urlsplit

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as hypercorn_serve
from starlette.types import ASGIApp

from torrentfs.config import parse_address
from torrentfs.errors import ListenError

log = logging.getLogger(__name__)

Address = tuple[str, int]

HEADERS_LENGTH_MAX = 16 * 1024
HEADERS_DEADLINE_S = 30
"""How long a client may take to send a request, and keep a connection idle."""
BACKLOG = 512
END_DEADLINE_S = 1.0
"""How long answers under way may go on once the server is told to end."""


async def serve(
    application: ASGIApp, listen: str, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve *application* at *listen* ("HOST:PORT") until cancelled; started with the real address.

    Raises: ListenError, UsageError.
    """
    parse_address(listen)
    try:
        async with trio.open_nursery() as nursery:
            binds: list[str] = await nursery.start(_run, application, listen)
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
