"""This module makes catalogs, repositories and mirrors for tests of what is signed and of who verifies it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from torrentfs.repository.catalog import Catalog, Revision, ordinal
from torrentfs.repository.metainfo import InfoHash
from torrentfs.repository.workshop import Repository


def revision(number: int = 1, counter: int = 1, **changes: object) -> Revision:
    plain = Revision(
        number=number,
        ordinal=ordinal(0, counter),
        manifest=InfoHash(bytes(31) + b"\1"),
        length=100,
        mode=0o40755,
        mtime_ns=-1,
        size=5,
        entries=2,
        nlink=3,
        published=1_800_000_000,
    )
    return msgspec.structs.replace(plain, **changes)


def catalog(*paths: str) -> Catalog:
    made = Catalog(name="alice", version=7, expires=9, seeders=("127.0.0.1:6881",))
    for path in paths:
        made = made.with_revision(path, revision(made.next_number(path), made.next_ordinal()))
    return made


def publish(repository: Repository, *paths: str) -> Catalog:
    """Commit another revision of each path."""
    with repository.lock():
        made = repository.catalog()
        for path in paths:
            made = made.with_revision(path, revision(made.next_number(path), made.next_ordinal()))
        return repository.commit(made)


class Handler(SimpleHTTPRequestHandler):
    """Serves a directory, but answers some paths as the test says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answers: dict[str, Callable[["Handler"], None]]

    def __init__(
        self, answers: dict[str, Callable[["Handler"], None]], *args: object, **options: object
    ) -> None:
        self.answers = answers
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self.answers.get(self.path, lambda handler: super().do_GET())(self)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextlib.contextmanager
def mirror(public: Path, answers: dict[str, Callable[[Handler], None]] | None = None) -> Iterator[str]:
    """Serve *public* on loopback; yield its URL. An answer may block for as long as the test lasts."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, {} if answers is None else answers, directory=str(public))
    )
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
