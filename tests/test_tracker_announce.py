"""Tests of what the tracker reads and writes: real queries, and bytes of any kind."""

from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torrentfs.http.announce import (
    FIELD_COUNT_MAX,
    QUERY_LENGTH_MAX,
    SCRAPE_COUNT_MAX,
    Announce,
    Census,
    Endpoint,
    Event,
    RefusedError,
    TorrentKey,
    parse_announce,
    parse_scrape,
    torrent_key,
    write_peers,
    write_refusal,
    write_scrape,
)
from torrentfs.repository import bencode
from torrentfs.repository.metainfo import InfoHash

KEY = TorrentKey(bytes(range(100, 120)))
HASH = quote_from_bytes(KEY).encode()

LIBTORRENT = (
    b"info_hash=%db%e9%8a%a8-%e7u%ac!%00%fa%ba%1a%07%15%00%84-%d5%06&peer_id=-LT2110-TbH4pE)d~Mbk&port=35733"
    b"&uploaded=0&downloaded=0&left=786432&corrupt=0&key=93EC20C1&event=paused&numwant=200&compact=1"
    b"&no_peer_id=1&supportcrypto=1&redundant=0"
)
"""What libtorrent 2.1.1 sent for a torrent of which it wanted nothing yet."""


def query(**fields: bytes | str) -> bytes:
    """Return an announce for KEY with *fields* added or replaced."""
    known: dict[str, bytes | str] = {"info_hash": HASH, "peer_id": b"-XX0000-123456789012", "port": b"6881"}
    pairs = {**known, **fields}.items()
    return b"&".join(
        b"%b=%b" % (name.encode(), value if isinstance(value, bytes) else value.encode())
        for name, value in pairs
    )


def test_announce_of_libtorrent_is_read() -> None:
    assert parse_announce(LIBTORRENT) == Announce(
        torrent=TorrentKey(bytes.fromhex("dbe98aa82de775ac2100faba1a071500842dd506")),
        port=35733,
        peer_id=b"-LT2110-TbH4pE)d~Mbk",
        event=Event.NONE,
        is_complete=False,
        wanted=200,
    )


def test_torrent_is_known_by_the_first_bytes_of_its_info_hash() -> None:
    assert torrent_key(InfoHash(KEY + bytes(12))) == KEY


@pytest.mark.parametrize(
    ("event", "read"),
    [("completed", Event.COMPLETED), ("stopped", Event.STOPPED), ("", Event.NONE), ("started", Event.NONE)],
)
def test_events_are_read(event: str, read: Event) -> None:
    assert parse_announce(query(event=event)).event is read


@pytest.mark.parametrize(("left", "is_complete"), [("0", True), ("1", False), ("-1", False), ("", False)])
def test_who_has_nothing_left_is_complete(left: str, is_complete: bool) -> None:
    assert parse_announce(query(left=left)).is_complete is is_complete


@pytest.mark.parametrize(
    ("numwant", "wanted"),
    [("0", 0), ("7", 7), ("-1", None), ("", None), ("x", None), ("9" * 5000, 10**9), ("٣", None)],
)
def test_number_of_peers_that_makes_no_sense_is_as_good_as_none(numwant: str, wanted: int | None) -> None:
    assert parse_announce(query(numwant=numwant)).wanted == wanted


def test_address_that_a_client_names_is_not_looked_at() -> None:
    named = query(ip="192.0.2.1", ipv4="192.0.2.1:7", ipv6="[2001:db8::1]:7")

    assert parse_announce(named) == parse_announce(query())


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"&&&===",
        query(port=""),
        query(port="0"),
        query(port="65536"),
        query(port="-1"),
        query(port="+1"),
        query(port="1e3"),
        query(port="9" * 5000),
        query(port="٣"),
        query(info_hash=""),
        query(info_hash=HASH + b"x"),
        query(info_hash=quote_from_bytes(KEY[:-1]).encode()),
        query() + b"&port=6882",
        query() + b"&info_hash=" + HASH,
        query() + b"&%70ort=6882",
        query() + b"&x" * FIELD_COUNT_MAX,
        query() + b"&x=" + b"x" * QUERY_LENGTH_MAX,
    ],
)
def test_announce_that_cannot_be_used_is_refused(asked: bytes) -> None:
    with pytest.raises(RefusedError):
        parse_announce(asked)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(asked: bytes) -> None:
    for parse in (parse_announce, parse_scrape):
        try:
            parse(asked)
        except RefusedError as error:
            bencode.decode(write_refusal(str(error)))


@given(
    st.dictionaries(
        st.sampled_from(["info_hash", "port", "peer_id", "left", "event", "numwant", "ip"]),
        st.binary(max_size=30).map(lambda value: quote_from_bytes(value).encode()) | st.integers().map(str),
    )
)
def test_any_fields_are_read_within_bounds_or_refused(fields: dict[str, bytes | str]) -> None:
    try:
        announce = parse_announce(query(**fields))
    except RefusedError:
        return

    assert 0 < announce.port < 1 << 16
    assert (len(announce.torrent), len(announce.peer_id) <= 20) == (20, True)
    assert announce.wanted is None or 0 <= announce.wanted <= 10**9


@given(st.binary(min_size=20, max_size=20))
def test_all_bytes_of_an_info_hash_get_through(key: bytes) -> None:
    escaped = "".join(f"%{byte:02x}" for byte in key)

    assert parse_announce(query(info_hash=escaped)).torrent == key
    assert parse_announce(query(info_hash=quote_from_bytes(key))).torrent == key


def test_scrape_names_each_of_its_torrents_once() -> None:
    other = quote_from_bytes(bytes(20)).encode()

    assert parse_scrape(b"info_hash=" + HASH + b"&info_hash=" + other + b"&info_hash=" + HASH) == [
        KEY,
        bytes(20),
    ]


@pytest.mark.parametrize("count", [0, SCRAPE_COUNT_MAX + 1])
def test_scrape_of_everything_or_too_much_is_refused(count: int) -> None:
    asked = "&".join("info_hash=" + quote_from_bytes(bytes([number] * 20)) for number in range(count))

    with pytest.raises(RefusedError):
        parse_scrape(asked.encode())


def test_peers_are_written_by_kind_of_address() -> None:
    four, six = Endpoint(b"\x0a\0\0\1\x1a\xe1"), Endpoint(bytes(15) + b"\1\x1a\xe1")

    answer = bencode.decode(write_peers(Census(1, 2, 3), iter([four, six]), 900))

    assert answer == {
        b"complete": 1,
        b"downloaded": 3,
        b"incomplete": 2,
        b"interval": 900,
        b"peers": four,
        b"peers6": six,
    }


def test_scrape_is_written() -> None:
    answer = bencode.decode(write_scrape({KEY: Census(1, 2, 3)}))

    assert answer == {b"files": {KEY: {b"complete": 1, b"downloaded": 3, b"incomplete": 2}}}


def test_scrape_of_nothing_known_is_an_empty_dictionary() -> None:
    assert bencode.decode(write_scrape({})) == {b"files": {}}
