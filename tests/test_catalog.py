import msgspec
import pytest
from catalogs import catalog, revision
from hypothesis import given
from hypothesis import strategies as st

from torrentfs.errors import FormatError, UsageError, VersionError
from torrentfs.repository.catalog import (
    Ordinal,
    check,
    check_path,
    decode,
    encode,
    ordinal,
)
from torrentfs.repository.metainfo import InfoHash, Kind, TorrentRef


def test_ordinal_joins_namespace_and_counter_in_38_bits() -> None:
    assert ordinal(0, 1) == 1
    assert ordinal(5, 7) == 5 << 26 | 7
    assert ordinal(4095, (1 << 26) - 1) == (1 << 38) - 1
    for namespace, counter in [(4096, 1), (0, 0), (0, 1 << 26), (-1, 1)]:
        with pytest.raises(UsageError):
            ordinal(namespace, counter)


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "ROOT/v6-32-06",
        "el9-x86_64/Packages/ROOT/v6-32-06",
        "data/Alignment.par",
        "é/ß x",
        "a" * 255,
        "...",
        "a/.revisions",
        "a@",
        "me@home",
        "a@1.0/@b",
        "a@\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_paths_of_the_house_are_accepted(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./a",
        "a\nb",
        "q@1",
        "q@1/y",
        "q/@0",
        "y/me@007",
        "a\0b",
        "a\x7fb",
        "\ud800",
        ".revisions",
        ".revisions/a@1",
        "a" * 256,
        "é" * 128,
        "/".join("abcdefghijklmnopq"),
        "/".join(["a" * 250] * 5),
    ],
)
def test_paths_that_escape_hide_or_overflow_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        check_path(path)


@given(st.text(max_size=300))
def test_any_text_is_a_path_or_a_usage_error(path: str) -> None:
    try:
        check_path(path)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert len(path.encode()) <= 1024


def test_revisions_number_themselves_and_counters_go_on() -> None:
    made = catalog("ROOT/v6", "AliRoot/v5", "ROOT/v6")

    made = made.with_revision("ROOT/v6", revision(made.next_number("ROOT/v6"), made.next_ordinal()))

    assert check(catalog("a", "b")) == catalog("a", "b")
    assert [item.ordinal for item in made.versions["ROOT/v6"].revisions] == [1, 3, 4]
    assert made.versions["ROOT/v6"].current.number == 3
    assert made.next_ordinal() == 5
    assert made.next_number("new") == 1


@pytest.mark.parametrize("second", ["ROOT", "ROOT/v6/lib", "ROOT/v6/lib/python"])
def test_no_path_lies_inside_another(second: str) -> None:
    with pytest.raises(UsageError, match="inside another"):
        catalog("ROOT/v6").with_revision(second, revision(counter=2))


def test_paths_that_only_share_a_beginning_live_side_by_side() -> None:
    assert set(catalog("ROOT/v6", "ROOT/v6-1", "ROOT/v6.x", "ROOT/v60", "ROOT/v6 ").versions)


def test_an_alias_takes_its_place_too() -> None:
    made = msgspec.structs.replace(catalog("ROOT/v6"), aliases={"ROOT/latest": "ROOT/v6"})

    assert check(made) == made
    with pytest.raises(UsageError):
        made.with_revision("ROOT/latest/x", revision(counter=2))


def test_what_a_signer_got_wrong_is_a_format_error() -> None:
    good = catalog("a", "b")
    replace = msgspec.structs.replace
    version = good.versions["a"]
    wrong = [
        replace(good, counters={0: 1}),
        replace(good, counters={}),
        replace(good, aliases={"a/b": "b"}),
        replace(good, aliases={"c": "../../etc"}),
        replace(good, versions={"../x": version}),
        replace(good, versions={"a": replace(version, requires=("/x",))}),
        replace(good, versions={"a": version, "b": version}),
        replace(good, versions={"a": replace(version, revisions=(revision(2, 1), revision(1, 2)))}),
        replace(good, versions={"a": replace(version, revisions=(revision(1, 2), revision(2, 1)))}),
        replace(good, versions={"a": replace(version, revisions=(revision(mode=0o20600),))}),
        replace(good, versions={"a": replace(version, revisions=(revision(ordinal=Ordinal(1 << 26)),))}),
    ]

    for item in wrong:
        with pytest.raises(FormatError):
            check(item)


def test_snapshot_comes_back_as_it_went() -> None:
    made = msgspec.structs.replace(catalog("ROOT/v6", "é"), aliases={"latest": "ROOT/v6"})

    read = decode(encode(made))

    assert read == made
    assert read.versions["é"].current.ref == TorrentRef(InfoHash(bytes(31) + b"\1"), 100, Kind.MANIFEST)


@given(st.data())
def test_damaged_snapshots_are_format_errors(data: st.DataObject) -> None:
    snapshot = encode(catalog("ROOT/v6", "b"))
    position = data.draw(st.integers(0, len(snapshot) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                snapshot[:position],
                snapshot[:position] + bytes([snapshot[position] ^ 4]) + snapshot[position + 1 :],
            ]
        )
    )

    with pytest.raises(FormatError):
        decode(damaged)


def test_snapshot_of_another_format_says_so() -> None:
    with pytest.raises(VersionError):
        decode(b"tfs-cat\x02" + bytes(40))
