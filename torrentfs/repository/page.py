"""This module shows people what a repository has: `public/index.html`, which needs neither script nor server.

Everything on it is text of the publisher's, escaped; links are relative, so that a mirror shows its own.
"""

import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec

from torrentfs.errors import FormatError
from torrentfs.repository.catalog import Catalog, Version
from torrentfs.repository.manifest_file import open_manifest
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef
from torrentfs.repository.units import size

_STYLE: Final = """
:root { color-scheme: light dark; --soft: color-mix(in srgb, currentColor 60%, transparent);
  --line: color-mix(in srgb, currentColor 18%, transparent) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem }
h1 { margin: .5rem 0 0 } p.sub { margin: 0 0 1rem; color: var(--soft) }
code, pre { font: 14px/1.4 ui-monospace, monospace } pre { overflow-x: auto; padding: .7rem;
  border: 1px solid var(--line); border-radius: .4rem }
input { font: inherit; width: 100%; box-sizing: border-box; padding: .5rem .7rem; margin: 1rem 0 }
details { border-top: 1px solid var(--line) } summary { cursor: pointer; padding: .45rem 0;
  overflow-wrap: anywhere } summary small { color: var(--soft) }
table { border-collapse: collapse; width: 100%; margin-bottom: .6rem }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .85rem }
td, th { padding: .25rem .8rem .25rem 0; vertical-align: top; overflow-wrap: anywhere }
td.n { white-space: nowrap; text-align: right } .gone { color: var(--soft) }
@media (max-width: 40rem) { table, tbody, tr, td { display: block } th { display: none }
  tr { border-bottom: 1px dotted var(--line); padding: .4rem 0 } td { padding: 0 }
  td.n { display: inline-block; margin-right: 1rem; text-align: left } }
"""

_SCRIPT: Final = """
const box = document.getElementById("search"), all = [...document.querySelectorAll("details")];
box.hidden = false;
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const one of all) {
    let found = 0;
    for (const row of one.querySelectorAll("tr[data-path]")) {
      row.hidden = !words.every(word => row.dataset.path.toLowerCase().includes(word));
      found += !row.hidden;
    }
    one.hidden = !found;
    one.open = words.length > 0 && found > 0 && found <= 50;
  }
});
for (const place of document.querySelectorAll(".base"))
  place.textContent = location.href.replace(/[^/]*$/, "").replace(/\\/$/, "");
"""


def write(public: Path, private: Path, catalog: Catalog, now_s: float) -> None:
    """Write the page into *public*; which packs manifests name is remembered in *private*.

    Raises: OSError.
    """
    memory = private / "packs.json"
    known = _remembered(memory)
    current = {version.current.manifest.hex(): version.current.ref for version in catalog.versions.values()}
    found = {name: known.get(name) or _packs(public, ref) for name, ref in current.items()}
    if found != known:
        part = memory.with_suffix(".new")
        part.write_bytes(msgspec.json.encode(found, order="sorted"))
        part.replace(memory)
    packs = {
        InfoHash(bytes.fromhex(name)): [
            TorrentRef(InfoHash(bytes.fromhex(info_hash)), length, Kind.PACK) for info_hash, length in refs
        ]
        for name, refs in found.items()
    }
    # Whole or not at all, but no fsync: what a power cut takes the next commit writes again.
    part = public / ".index.html.new"
    part.write_bytes(render(catalog, packs, now_s))
    part.replace(public / "index.html")


def _remembered(memory: Path) -> dict[str, list[tuple[str, int]]]:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, list[tuple[str, int]]])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def _packs(public: Path, ref: TorrentRef) -> list[tuple[str, int]]:
    """Return the packs that a manifest names; of one that cannot be read, none: `repo check` tells."""
    try:
        with open_manifest(public, ref) as manifest:
            return [(pack.info_hash.hex(), pack.length) for pack in manifest.packs]
    except (OSError, FormatError):
        return []


def render(catalog: Catalog, packs: Mapping[InfoHash, Sequence[TorrentRef]], now_s: float) -> bytes:
    """Return the page of *catalog* as it is at *now_s*, Unix time; *packs* are those of manifests, as far as
    they are known.
    """
    shown = [version for version in catalog.versions.values() if not version.is_gone(now_s)]
    groups: dict[str, list[Version]] = {}
    for version in shown:
        groups.setdefault(posixpath.dirname(version.path), []).append(version)
    aliases: dict[str, list[str]] = {}
    for name, target in sorted(catalog.aliases.items()):
        aliases.setdefault(target, []).append(name)
    name = escape(catalog.name)
    parts = [
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{name}: software</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{name}</h1><p class=sub>{len(shown)} versions in {len(groups)} packages; "
        f"catalog version {catalog.version}, {_day(now_s)}</p>\n"
        "<p>A signed software tree, by <b>torrentfs</b>. On a node:</p>\n"
        f"<pre>torrentfs mount /opt/{name} --trust root.json \\\n"
        "    --repository <span class=base>URL-OF-THIS-PAGE</span></pre>\n"
        '<p>Get <a href="root.json">root.json</a> by a way that you trust. Packs are ordinary BitTorrent v2 '
        "torrents, and <code>tar --zstd -xf</code> unpacks them.</p>\n"
        '<input id=search type=search placeholder="Search: ROOT v6" aria-label=Search hidden>\n'
    ]
    parts += [_group(path, groups[path], aliases, packs) for path in sorted(groups)]
    parts.append(f"<script>{_SCRIPT}</script></html>\n")
    return "".join(parts).encode("utf-8", "backslashreplace")


def _group(
    path: str,
    versions: Sequence[Version],
    aliases: Mapping[str, Sequence[str]],
    packs: Mapping[InfoHash, Sequence[TorrentRef]],
) -> str:
    newest = max(versions, key=lambda version: version.current.ordinal)
    ordered = sorted(versions, key=lambda version: version.current.ordinal, reverse=True)
    word = "version" if len(versions) == 1 else "versions"
    return (
        f"<details><summary><b>{escape(path or '/')}</b> <small>{len(versions)} {word}, newest "
        f"{escape(posixpath.basename(newest.path))} of {_day(newest.current.published)}</small></summary>\n"
        "<table><tr><th>Version<th>Size<th>Published<th>Torrents</tr>\n"
        + "".join(_row(version, aliases, packs) for version in ordered)
        + "</table></details>\n"
    )


def _row(
    version: Version,
    aliases: Mapping[str, Sequence[str]],
    packs: Mapping[InfoHash, Sequence[TorrentRef]],
) -> str:
    current = version.current
    notes = [f"also {escape(name)}" for name in aliases.get(version.path, ())]
    if len(version.revisions) > 1:
        notes.append(f"revision {current.number}")
    if version.requires:
        notes.append("requires " + ", ".join(map(escape, version.requires)))
    if version.state == "retired":
        notes.append(f"retired, gone on {_day(version.retires)}")
    links = _links([current.ref, *packs.get(current.manifest, ())])
    told = f"<br><small>{'; '.join(notes)}</small>" if notes else ""
    gone = " class=gone" if version.state == "retired" else ""
    return (
        f'<tr data-path="{escape(version.path)}"{gone}><td>{escape(posixpath.basename(version.path))}{told}'
        f"<td class=n>{size(current.size)}<td class=n>{_day(current.published)}<td>{links}</tr>\n"
    )


def _links(refs: Iterable[TorrentRef]) -> str:
    return " · ".join(map(_link, refs))


def _link(ref: TorrentRef) -> str:
    file, torrent = ref.kind.url_path(ref.info_hash), ref.kind.torrent_path(ref.info_hash)
    return (
        f'<a href="{file}">{ref.kind.value}</a> {size(ref.length)} '
        f'<a href="{torrent}">torrent</a> <a href="{escape(magnet(ref))}">magnet</a>'
    )


def magnet(ref: TorrentRef) -> str:
    """Return a torrent's magnet link: its v2 info-hash as a multihash (BEP 9)."""
    return f"magnet:?xt=urn:btmh:1220{ref.info_hash.hex()}&xl={ref.length}"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(min(max(seconds, 0), 253_402_300_799)))
