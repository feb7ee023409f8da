"""This module is `torrentfs stats`: what a node's mounts and origins hold, fetch and serve."""

import sys
import time
from pathlib import Path
from typing import Any

import click

from torrentfs.cli.words import duration, print_json, size, table
from torrentfs.errors import ControlError

WATCH_INTERVAL_S = 2.0
CLEAR = "\033[H\033[J"


@click.command(
    epilog="""\b
Examples:
  torrentfs stats                         (all mounts and origins of this user)
  torrentfs stats /opt/alice --watch
  torrentfs stats /opt/alice --json | jq .bytes
  torrentfs stats /srv/alice              (a repository that `torrentfs seed` serves, or its cache)"""
)
@click.argument("place", metavar="[MOUNTPOINT|REPO|CACHE]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--json", "as_json", is_flag=True, help="One object for the one that is named; without it a list of them."
)
@click.option("--watch", is_flag=True, help="Show it anew every 2 s until interrupted.")
def command(place: Path | None, as_json: bool, watch: bool) -> None:
    """Show what the mount at MOUNTPOINT, the origin of REPO or the seeder of CACHE holds, fetches, serves.

    By default every mount, origin and seeder of this user on this machine.

    Bytes are payload as it travels (compressed, without protocol overhead); "read" is what jobs got.
    """
    while True:
        records, errors = _ask(place)
        if as_json:
            print_json(records[0] if place else records, lines=watch)
        else:
            text = "\n\n".join(_text(record) for record in records) or (
                "" if errors else "nothing is mounted or seeded"
            )
            click.echo(f"{CLEAR}{text}" if watch and sys.stdout.isatty() else text)
        if not watch:
            if errors:
                raise errors[0]
            return
        try:
            time.sleep(WATCH_INTERVAL_S)
        except KeyboardInterrupt:
            return


def _ask(place: Path | None) -> tuple[list[dict[str, Any]], list[ControlError]]:
    """Return the records of the daemons that were meant, and why others of them are missing.

    Raises: ControlError.
    """
    from torrentfs.daemon.control_client import ask, ask_all
    from torrentfs.daemon.mountpoint import resolve

    if place is not None:
        return [ask(resolve(place), "stats")], []
    records, errors = ask_all("stats")
    return sorted(records, key=lambda record: str(record.get("mountpoint", record.get("directory")))), errors


def _text(record: dict[str, Any]) -> str:
    """Return *record* as people read it."""
    if "upstream" in record:
        return _box(record)
    return _origin(record) if "directory" in record else _mount(record)


def _origin(record: dict[str, Any]) -> str:
    count, catalog = record["bytes"], record["catalog"]
    return "\n".join(
        (
            f"{record['directory']}: origin of {record['repository']}, process {record['pid']}",
            f"  catalog  version {catalog['version']}, good for {duration(catalog['expires'] - time.time())}",
            f"  bytes    {size(count['uploaded'])} uploaded to peers, {size(count['served'])} sent by HTTP, "
            f"{size(count['seeded'])} seeded in {record['torrents']} torrents",
            f"  peers    {record['peers']} connected, listening on {record['listen']}"
            + (f", http://{record['http']}" if record["http"] else ""),
            *_tracker(record),
            f"  errors   {record['errors']}",
        )
    )


def _box(record: dict[str, Any]) -> str:
    count, catalog = record["bytes"], record["catalog"]
    return "\n".join(
        (
            f"{record['directory']}: seeder of {record['repository']} from {record['upstream']}, "
            f"process {record['pid']}",
            f"  catalog  version {catalog['version']}, confirmed {duration(catalog['age_s'])} ago",
            f"  bytes    {size(count['from_peers'])} from peers, {size(count['from_mirrors'])} from mirrors, "
            f"{size(count['uploaded'])} uploaded to peers, {size(count['served'])} sent by HTTP, "
            f"{size(count['cached'])} in the cache, in {record['torrents']} torrents",
            *_cache(record),
            _peers(record) + (f", http://{record['http']}" if record["http"] else ""),
            *_sources(record),
            *_tracker(record),
            f"  errors   {record['errors']}",
        )
    )


def _peers(record: dict[str, Any]) -> str:
    if not record["listen"]:
        return "  peers    none: no BitTorrent (node.site.install_method)"
    return f"  peers    {record['peers']} connected, listening on {record['listen']}"


def _tracker(record: dict[str, Any]) -> list[str]:
    """Return whom an origin's tracker knows."""
    # A daemon of an earlier version does not say.
    tracker = record.get("tracker")
    if not tracker:
        return []
    refused = ", ".join(f"{count} {why}" for why, count in tracker["refused"].items() if count)
    return [
        f"  tracker  {tracker['peers']} peers of {tracker['addresses']} addresses in {tracker['torrents']} "
        f"torrents, {tracker['announces']} announces" + (f"; refused: {refused}" if refused else "")
    ]


def _mount(record: dict[str, Any]) -> str:
    count, catalog, reads = record["bytes"], record["catalog"], record["reads"]
    lines = [
        f"{record['mountpoint']}: {record['repository']} from {record['url']}, process {record['pid']}",
        *_held(record),
        f"  catalog  version {catalog['version']}, confirmed {duration(catalog['age_s'])} ago",
        f"  bytes    {size(count['from_peers'])} from peers, {size(count['from_mirrors'])} from mirrors, "
        f"{size(count['uploaded'])} uploaded, {size(count['cached'])} in the cache, "
        f"{size(count['read'])} read by jobs",
        *_cache(record),
        f"  reads    {reads['waiting']} waiting; waits so far: median {reads['wait_p50_ms']:.1f} ms, "
        f"99 % within {reads['wait_p99_ms']:.1f} ms",
        _peers(record),
        *_sources(record),
        *_server(record),
        f"  errors   {record['errors']}",
    ]
    if record["packages"]:
        rows = [_row(package) for package in record["packages"]]
        heads = ("PATH", "REVISION", "SIZE", "CACHED", "", "PEERS", "INFO-HASH")
        lines += [f"  {line}" for line in table(heads, rows, right=(1, 2, 3, 4, 5)).split("\n")]
    return "\n".join(lines)


def _cache(record: dict[str, Any]) -> list[str]:
    """Return what had to leave the cache, what was damaged there, and what troubles it."""
    # A daemon of an earlier version does not say.
    count, lines = record["bytes"], []
    if count.get("evicted") or count.get("bypassed"):
        lines.append(
            f"  cache    {size(count['on_disk'])} on disk; {size(count['evicted'])} evicted, "
            f"{size(count['refetched'])} of it fetched again; {size(count['bypassed'])} read through memory"
        )
    if record.get("damaged_pieces"):
        lines.append(f"  damaged  {record['damaged_pieces']} pieces on disk, dropped")
    if record.get("trouble"):
        lines.append(f"  trouble  reading through memory: {record['trouble']}")
    return lines


def _sources(record: dict[str, Any]) -> list[str]:
    """Return where bytes came from, as far as there is a site, and whom nobody asks for now."""
    # A daemon of an earlier version does not say.
    found = record.get("sources")
    if not found:
        return []
    hedges, waits = found["hedges"], found["waits"]
    lines = [
        f"  sources  neighbours {size(found['neighbours'])}, site's seeders {size(found['site_seeders'])}, "
        f"site's mirrors {size(found['site_mirrors'])}, upstream {size(found['upstream'])}, "
        f"mirrors {size(found['mirrors'])}; {size(found['redundant'])} in vain",
        f"  waits    {hedges['started']} pieces were late, mirrors brought {hedges['won']} of them; "
        f"{waits['started']} left to neighbours, who brought {waits['won']}",
    ]
    lines += [
        f"  aside    {one['source']} for {one['seconds']:.0f} s: {one['reason']}" for one in found["aside"]
    ]
    return lines


def _held(record: dict[str, Any]) -> list[str]:
    """Return why a daemon is there whose mount is not."""
    # A daemon of an earlier version does not say.
    if record.get("mounted", True):
        return []
    held_by = record["held_by"]
    return [f"  mount    unmounted here, {'held by ' + ', '.join(held_by) if held_by else 'ending'}"]


def _server(record: dict[str, Any]) -> list[str]:
    """Return who serves a mount, and how often another had to go on."""
    # A daemon of an earlier version does not say.
    server = record.get("server")
    if not server:
        return []
    times = (
        f"; started again {server['restarts']} times, last: {server['last_end']}"
        if server["restarts"]
        else ""
    )
    keeper = f", keeper {server['keeper']}" if server["keeper"] else ""
    return [f"  fuse     {record['fuse']}{keeper}{times}"]


def _row(package: dict[str, Any]) -> tuple[str, ...]:
    share = package["cached"] / package["size"] if package["size"] else 0.0
    return (
        package["path"],
        str(package["revision"]),
        size(package["size"]),
        size(package["cached"]),
        f"{share:.0%}",
        str(package["peers"]),
        package["infohash"][:16],
    )
