import json

import msgspec
import pytest
from catalogs import catalog, revision
from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.errors import FormatError, VersionError
from torrentfs.repository import shards
from torrentfs.repository.catalog import Catalog, Version, ordinal
from torrentfs.repository.shards import DEFAULT


def joined(files: dict[str, bytes]) -> Catalog:
    """Read *files* as a node does."""
    rest = dict(files)
    head = shards.read_head(rest.pop(DEFAULT.head))
    assert set(rest) <= set(shards.shard_targets(DEFAULT, head))
    return shards.join(head, rest)


def unsigned(made: Catalog) -> Catalog:
    """Return *made* without what a timestamp adds to it."""
    return msgspec.structs.replace(made, version=0, expires=0, counters={0: 0, **made.counters})


def test_empty_catalog_is_one_file() -> None:
    assert shards.write(Catalog(name="alice")) == {
        "catalog/default/namespace": b'{"counter":0,"name":"alice","seeders":[],"shard_bits":0,"version":1}\n'
    }


def test_shard_is_the_documented_json() -> None:
    files = shards.write(msgspec.structs.replace(catalog("ROOT/v6"), aliases={"ROOT/latest": "ROOT/v6"}))

    shard = json.loads(files["catalog/default/shard-0"])

    assert shard == {
        "version": 1,
        "aliases": {"ROOT/latest": "ROOT/v6"},
        "paths": {
            "ROOT/v6": {
                "state": "live",
                "requires": [],
                "retires": 0,
                "in_place": "replace",
                "revisions": [
                    {
                        "number": 1,
                        "ordinal": 1,
                        "manifest": "0" * 63 + "1",
                        "length": 100,
                        "mode": 0o40755,
                        "mtime_ns": -1,
                        "size": 5,
                        "entries": 2,
                        "nlink": 3,
                        "published": 1_800_000_000,
                        "hole_length": 0,
                    }
                ],
            }
        },
    }


def test_record_of_an_older_release_has_no_holes() -> None:
    made = catalog("a")
    files = shards.write(made)
    older = files["catalog/default/shard-0"].replace(b'"hole_length":0,', b"")

    assert older != files["catalog/default/shard-0"]
    assert unsigned(joined({**files, "catalog/default/shard-0": older})) == unsigned(joined(files))


@pytest.mark.parametrize(("count", "bits"), [(1, 0), (64, 0), (65, 1), (129, 2), (257, 3), (600, 4)])
def test_shards_double_when_they_hold_64_paths_on_average(count: int, bits: int) -> None:
    versions = {f"p/{index}": Version(f"p/{index}", (revision(1, index + 1),)) for index in range(count)}
    made = Catalog(name="alice", versions=versions, counters={0: count})

    files = shards.write(made)

    assert shards.read_head(files[DEFAULT.head]).shard_bits == bits
    assert joined(files) == made


PATHS = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/."), min_size=1, max_size=5),
    unique=True,
    max_size=90,
)
INTEGERS = st.integers(0, (1 << 63) - 1)


@settings(deadline=None, max_examples=40)
@given(PATHS, st.data())
def test_catalogs_come_back_as_they_went(paths: list[str], data: st.DataObject) -> None:
    versions = {}
    for counter, path in enumerate(paths, 1):
        item = revision(1, counter, size=data.draw(INTEGERS), mtime_ns=data.draw(INTEGERS) - (1 << 62))
        requires = tuple(data.draw(st.lists(st.sampled_from(paths), max_size=2)))
        versions[path] = Version(path, (item,), data.draw(st.sampled_from(["live", "retired"])), requires)
    made = Catalog(name="a", seeders=("[::1]:1",), versions=versions, counters={0: len(paths)})

    assert joined(shards.write(made)) == made
    assert shards.write(joined(shards.write(made))) == shards.write(made)


def test_keys_from_the_future_are_skipped_and_versions_from_it_refused() -> None:
    made = catalog("ROOT/v6")
    files = shards.write(made)
    for name, data in files.items():
        files[name] = json.dumps(json.loads(data) | {"bundles": {"deep": [1, {"x": None}]}}).encode()
    assert joined(files) == unsigned(made)

    for name, data in files.items():
        newer = {
            **files,
            name: json.dumps(json.loads(data) | {"version": 2, "paths": 7, "name": []}).encode(),
        }
        with pytest.raises(VersionError, match="update torrentfs"):
            joined(newer)


def changed(**changes: object) -> bytes:
    """Return a shard whose only revision has *changes*."""
    shard = json.loads(shards.write(catalog("a"))["catalog/default/shard-0"])
    shard["paths"]["a"]["revisions"][0] |= changes
    return json.dumps(shard).encode()


@pytest.mark.parametrize(
    "shard",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version":1',
        b'{"version":1,"paths":[]}',
        b'{"version":1,"x":' + b"[" * 100_000,
        b'{"version":1,"paths":{"a":{"revisions":[]}}}',
        b'{"version":1,"paths":{"a\xff":{}}}',
        b'{"version":1,"aliases":{"\\ud800":"a"}}',
        b'{"version":1,"aliases":{"a":"/etc"}}',
        b'{"version":1,"aliases":{"../a":"b"}}',
        changed(manifest="00"),
        changed(manifest="../../../../etc/passwd"),
        changed(manifest="A" * 64),
        changed(number=0),
        changed(ordinal=0),
        changed(ordinal=2),
        changed(ordinal=1 << 60),
        changed(ordinal=ordinal(1, 1)),
        changed(length=0),
        changed(length=-1),
        changed(mode=1 << 40),
        changed(mode=0o120777),
        changed(mtime_ns=1 << 63),
        changed(size=-1),
        changed(entries=1 << 24),
        changed(nlink=0),
        changed(hole_length=-1),
        changed(hole_length=6),
        changed(published="now"),
    ],
)
def test_hostile_shards_are_format_errors(shard: bytes) -> None:
    files = shards.write(catalog("a"))

    with pytest.raises(FormatError) as caught:
        joined({**files, "catalog/default/shard-0": shard})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"},
        {"name": ""},
        {"counter": -1},
        {"counter": 1 << 26},
        {"shard_bits": 17},
        {"seeders": ["no port"]},
        {"seeders": ["a:1"] * 300},
        {"seeders": ["x" * 300_000 + ":1"]},
    ],
)
def test_hostile_namespaces_are_format_errors(changes: dict[str, object]) -> None:
    head = json.loads(shards.write(catalog("a"))[DEFAULT.head]) | changes

    with pytest.raises(FormatError):
        shards.read_head(json.dumps(head).encode())


def test_a_path_in_a_shard_that_is_not_its_own_is_refused() -> None:
    paths = [f"p/{index}" for index in range(70)]
    files = shards.write(catalog(*paths))
    swapped = {
        **files,
        "catalog/default/shard-0": files["catalog/default/shard-1"],
        "catalog/default/shard-1": files["catalog/default/shard-0"],
    }

    with pytest.raises(FormatError, match="belongs into"):
        joined(swapped)


def test_seeders_are_addresses() -> None:
    shards.check_seeders(["127.0.0.1:6881", "[::1]:6881", "origin.example.org:6881"])

    with pytest.raises(FormatError):
        shards.check_seeders(["origin.example.org"])
