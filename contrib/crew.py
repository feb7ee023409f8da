"""This module runs origin, seeders and workers on the hosts of a laboratory, by the command line."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from contrib.grid import (
    COMMAND_TIMEOUT_S,
    GridError,
    Node,
    Repository,
    await_true,
    ending,
    own_command,
    process,
)
from contrib.lab import Host

PEER_PORT, HTTP_PORT = 6881, 8080


def url(host: Host) -> str:
    """Return where a seeder on *host* serves `public/`."""
    return f"http://{host.four}:{HTTP_PORT}"


def peer(host: Host) -> str:
    """Return where peers reach whoever runs on *host*."""
    return f"{host.four}:{PEER_PORT}"


@dataclass(frozen=True, slots=True)
class Crew:
    """Who works with *repository*; caches, mounts and logs are in *place*."""

    repository: Repository
    place: Path
    command: Sequence[str] = field(default_factory=own_command)

    @contextmanager
    def origin(self, host: Host, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the origin on *host*, with more *options*; yield its process once it answers."""
        directory = self.repository.directory
        where = ["--http", f"{host.four}:{HTTP_PORT}", "--listen", peer(host)]
        with self._seeder(host, [str(directory), *where, *options], directory) as running:
            yield running

    @contextmanager
    def box(
        self, host: Host, networks: Sequence[str], upstream: Host, more: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a pull-through seeder of *upstream* on *host*; *more* is TOML that ends its settings."""
        cache, file = self.cache(host), self.place / f"{host.namespace}.toml"
        file.write_text(
            f'repository = "{url(upstream)}"\n'
            f'trust = "{self.repository.trust}"\n'
            f'cache = "{cache}"\n'
            f'[node.swarm]\nlisten = "{peer(host)}"\n'
            f"[node.site]\nnetworks = {list(networks)!r}\n"
            f'[seed]\nhttp = "{host.four}:{HTTP_PORT}"\n{more}'
        )
        with self._seeder(host, ["--config", str(file)], cache) as running:
            yield running

    @contextmanager
    def worker(
        self, host: Host, settings: Sequence[str], repository: Host, options: Sequence[str] = ()
    ) -> Iterator[Node]:
        """Give a worker on *host*, not mounted yet; its repository is the one that *repository* serves."""
        node = Node(
            self.place / host.namespace,
            url(repository),
            self.repository.trust,
            listen=peer(host),
            options=[*options, *(word for setting in settings for word in ("--set", setting))],
            command=[*host.inside, *self.command],
        )
        with ending(node):
            yield node

    def cache(self, host: Host) -> Path:
        """Return where the seeder on *host* keeps what it has."""
        return self.place / f"{host.namespace}-cache"

    @contextmanager
    def _seeder(
        self, host: Host, options: Sequence[str], directory: Path
    ) -> Iterator[subprocess.Popen[bytes]]:
        command = [*host.inside, *self.command, "seed", *options]
        log = self.place / f"{host.namespace}.log"
        with process(command, log) as running:

            def answers() -> bool:
                if running.poll() is not None:
                    raise GridError(f"{' '.join(command)}: {log.read_text(errors='replace')[-500:]}")
                asked = [*self.command, "stats", str(directory), "--json"]
                done = subprocess.run(asked, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False)
                return done.returncode == 0

            await_true(answers, f"{directory} is not seeded: {log}")
            yield running
