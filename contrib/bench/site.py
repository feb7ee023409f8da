"""This module measures a site: many workers of a cold site start the same program at once.

Run as `python -m contrib.bench.site`. Hosts are network namespaces (see contrib.lab) around a wide-area link;
workers are real mounts. What passes that link is counted by the router, with all headers.
"""

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from contrib.bench import material
from contrib.bench.__main__ import TREE_PATH, default_directory
from contrib.bench.kernel import drop_caches
from contrib.bench.tasks import HEAVY_START, JOB_TIMEOUT_S
from contrib.crew import Crew, peer, url
from contrib.grid import GridError, Node, Repository, ended_by_signals, scratch
from contrib.lab import Distance, Laboratory, Site
from contrib.python_tree import PythonTree

SETTLE_S = 2.0
"""Between the mounts and the jobs: nodes of a site are up long before a job comes."""


@dataclass(frozen=True, slots=True)
class Way:
    """How workers get what they need; *settings* of each, for a site with or without a box."""

    name: str
    about: str
    settings: Callable[[Site], Sequence[str]]
    has_box: bool = False
    half_silent: bool = False


def _http_only(_: Site) -> list[str]:
    return ['node.site.install_method="http"']


def _neighbours(site: Site) -> list[str]:
    return [f'node.site.networks=["{site.network}"]']


def _box(site: Site) -> list[str]:
    box = site.hosts[0]
    return [
        *_neighbours(site),
        f'node.site.seeders=["{peer(box)}"]',
        f'node.site.mirrors=["{url(box)}"]',
    ]


WAYS = (
    Way("http", "each worker by HTTP alone", _http_only),
    Way("peers", "equal workers, no box", _neighbours),
    Way("box", "with a pull-through seeder", _box, has_box=True),
    Way("silent", "as many neighbours have all, and fall silent", _neighbours, half_silent=True),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: *wide_area* bytes from outside; seconds until jobs were done, cold and once more, hot."""

    workers: int
    way: str
    wide_area: int
    first_s: float
    last_s: float
    hot_s: float
    redundant: int
    used: int
    sources: dict[str, int]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for all runs."""

    tree: PythonTree
    repository: Repository
    distance: Distance
    place: Path


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--workers", default="1,2,4,8,16", help="Numbers of workers.")
@click.option("--only", multiple=True, metavar="WAY", help=f"Of {', '.join(way.name for way in WAYS)}.")
@click.option("--runs", default=1, help="How often everything is measured; medians are shown.")
@click.option("--round-trip-ms", default=14.0, help="Round-trip time between site and origin.")
@click.option("--bandwidth", default=12.5, metavar="MB/S", help="Of the wide-area link, each way.")
@click.option("--directory", type=click.Path(path_type=Path), help="Keeps the built material.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write everything to this file too.")
def main(
    workers: str,
    only: tuple[str, ...],
    runs: int,
    round_trip_ms: float,
    bandwidth: float,
    directory: Path | None,
    target: Path | None,
) -> None:
    """Measure how a cold site starts numpy and scipy on all its workers at once.

    Bytes over the wide area and times are shown beside those of one worker by HTTP alone, and beside the
    limit: what the bytes of one worker take on the link. Jobs of all workers share this machine's
    processors: "hot" says what they take with all bytes here. Needs root.
    """
    if os.geteuid() != 0:
        raise click.ClickException("needs root: it makes network namespaces")
    keep = directory or default_directory()
    counts = [int(word) for word in workers.split(",")]
    ways = [way for way in WAYS if not only or way.name in only]
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    outcomes: list[Outcome] = []
    with ended_by_signals(), scratch(keep, "site-") as place:
        tree = material.tree(keep)
        repository = Repository(place / "repository")
        repository.create("bench")
        console.print(f"published in {repository.publish(tree.prefix, TREE_PATH):.0f} s")
        distance = Distance(round_trip_ms / 1e3, bandwidth * 1e6)
        bench = Bench(tree, repository, distance, place)
        try:
            for _ in range(runs):
                for count in counts:
                    for way in ways:
                        outcomes.append(measure(bench, count, way))
                        console.print(line(outcomes[-1]))
        except (GridError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
    console.print(table(outcomes, distance))
    if target:
        target.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


def measure(bench: Bench, count: int, way: Way) -> Outcome:
    """Start the program at once on *count* workers of a cold site."""
    helpers = count if way.half_silent else 0
    with ExitStack() as stack:
        place = stack.enter_context(scratch(bench.place, f"{way.name}{count}-"))
        size = count + helpers + int(way.has_box)
        laboratory = Laboratory(stack, [size], bench.distance, place)
        crew, top, [site] = Crew(bench.repository, place), laboratory.origin, laboratory.sites
        stack.enter_context(crew.origin(top))
        hosts = site.hosts
        if way.has_box:
            stack.enter_context(crew.box(hosts[0], [site.network], top))
            hosts = hosts[1:]
        nodes = [stack.enter_context(crew.worker(host, way.settings(site), top)) for host in hosts]
        if way.half_silent:
            fall_silent(bench, laboratory, site, nodes[count:])
        before = laboratory.wide_area_bytes()
        for node in nodes[:count]:
            node.mount()
        time.sleep(SETTLE_S)
        drop_caches()
        cold = race(jobs(bench, nodes[:count]))
        wide_area = laboratory.wide_area_bytes() - before
        hot = race(jobs(bench, nodes[:count]))
        records = [node.stats() for node in nodes[:count]]
    return Outcome(count, way.name, wide_area, min(cold), max(cold), max(hot), *_bytes(records))


def fall_silent(bench: Bench, laboratory: Laboratory, site: Site, neighbours: Sequence[Node]) -> None:
    """Have *neighbours* get all, by the same program, and then say nothing any more to those that come."""
    for node in neighbours:
        node.mount()
    race(jobs(bench, neighbours))
    for host in site.hosts[-len(neighbours) :]:
        laboratory.silence(site, host)


def _bytes(records: Sequence[dict[str, Any]]) -> tuple[int, int, dict[str, int]]:
    """Return what came in vain, what came, and what came from each kind of source, over all workers."""
    kinds = ("neighbours", "site_seeders", "upstream", "site_mirrors", "mirrors")
    sources = {kind: sum(record["sources"][kind] for record in records) for kind in kinds}
    redundant = sum(record["sources"]["redundant"] for record in records)
    return redundant, sum(record["bytes"]["cached"] for record in records), sources


def jobs(bench: Bench, nodes: Sequence[Node]) -> list[tuple[list[str], dict[str, str]]]:
    """Return the program's command and environment on each of *nodes*."""
    trees = [replace(bench.tree, prefix=node.mountpoint / TREE_PATH) for node in nodes]
    return [(tree.command(HEAVY_START), tree.environment()) for tree in trees]


def race(commands: Sequence[tuple[list[str], dict[str, str]]]) -> list[float]:
    """Start *commands* at once; return after how many seconds each was done.

    Raises: RuntimeError: one failed, or runs on after JOB_TIMEOUT_S.
    """
    start = time.perf_counter()
    running: dict[int, subprocess.Popen[bytes]] = {}
    times = []
    try:
        for command, environment in commands:
            job = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
            )
            running[os.pidfd_open(job.pid)] = job
        while running:
            ended, _, _ = select.select([*running], [], [], JOB_TIMEOUT_S)
            if not ended:
                raise RuntimeError(f"{commands[0][0][0]} runs on after {JOB_TIMEOUT_S:.0f} s")
            for descriptor in ended:
                times.append(time.perf_counter() - start)
                os.close(descriptor)
                if code := running.pop(descriptor).wait():
                    raise RuntimeError(f"{commands[0][0][0]} failed with exit code {code}")
    finally:
        for descriptor, job in running.items():
            job.kill()
            job.wait()
            os.close(descriptor)
    return times


def line(outcome: Outcome) -> str:
    """Return *outcome* in a line, while others are being measured."""
    return (
        f"{outcome.workers:3} {outcome.way:7} {outcome.wide_area / 1e6:8.1f} MB, "
        f"first {outcome.first_s:6.2f} s, last {outcome.last_s:6.2f} s, hot {outcome.hot_s:5.2f} s, "
        f"in vain {_share(outcome):.1%}, "
        + ", ".join(f"{name} {count / 1e6:.1f}" for name, count in outcome.sources.items() if count)
    )


def _share(outcome: Outcome) -> float:
    return outcome.redundant / outcome.used if outcome.used else 0.0


def table(outcomes: Sequence[Outcome], distance: Distance) -> Table:
    """Return medians, beside those of one worker by HTTP alone where that was measured."""
    grouped: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault((outcome.workers, outcome.way), []).append(outcome)
    lone = grouped.get((1, "http"))
    shown = Table(title=_title(lone, distance))
    for heading in ("workers", "way", "wide area MB", "×", "first s", "last s", "×", "hot s", "in vain"):
        shown.add_column(heading, justify="left" if heading == "way" else "right")
    about = {way.name: way.about for way in WAYS}
    for (count, name), group in sorted(grouped.items()):
        moved, last = _median(group, "wide_area"), _median(group, "last_s")
        shown.add_row(
            str(count),
            f"{name}: {about[name]}",
            f"{moved / 1e6:.1f}",
            f"{moved / _median(lone, 'wide_area'):.2f}" if lone else "",
            f"{_median(group, 'first_s'):.2f}",
            f"{last:.2f}",
            f"{last / _median(lone, 'last_s'):.2f}" if lone else "",
            f"{_median(group, 'hot_s'):.2f}",
            f"{statistics.median(map(_share, group)):.1%}",
        )
    return shown


def _title(lone: Sequence[Outcome] | None, distance: Distance) -> str:
    link = f"{distance.rate_bytes / 1e6:g} MB/s and {distance.round_trip_s * 1e3:g} ms to the origin"
    if not lone:
        return link
    return (
        f"{link}; the limit for one worker's bytes: {_median(lone, 'wide_area') / distance.rate_bytes:.2f} s"
    )


def _median(group: Sequence[Outcome], name: str) -> float:
    return float(statistics.median(getattr(outcome, name) for outcome in group))


if __name__ == "__main__":
    main(prog_name="contrib.bench.site")
