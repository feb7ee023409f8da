"""This module tests which earlier packs a revision points into."""

from hypothesis import given, settings
from hypothesis import strategies as st

from torrentfs.repository.publisher.content_index import Place
from torrentfs.repository.publisher.reuse import choose


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_the_earliest_place_is_taken() -> None:
    chosen = choose({digest(1): [Place(5, (2,)), Place(9, (1,))]}, {digest(1): 10})

    assert chosen == {digest(1): Place(5, (2,))}


def test_the_packs_that_give_least_are_dropped_and_their_contents_looked_for_elsewhere() -> None:
    places = {digest(number): [Place(number, (number,))] for number in range(1, 5)}
    places[digest(1)].append(Place(10, (4,)))
    sizes = {digest(1): 1, digest(2): 2, digest(3): 3, digest(4): 4}

    chosen = choose(places, sizes, pack_count_max=2)

    assert chosen == {digest(1): Place(10, (4,)), digest(3): Place(3, (3,)), digest(4): Place(4, (4,))}


@settings(max_examples=100, deadline=None)
@given(
    places=st.lists(st.lists(st.sets(st.integers(0, 30), max_size=3), max_size=3), max_size=30),
    pack_count_max=st.integers(0, 8),
)
def test_never_more_packs_than_allowed(places: list[list[set[int]]], pack_count_max: int) -> None:
    known = {
        digest(number): [Place(number * 10 + i, tuple(sorted(packs))) for i, packs in enumerate(options)]
        for number, options in enumerate(places)
    }

    chosen = choose(known, dict.fromkeys(known, 7), pack_count_max)

    assert len({pack for place in chosen.values() for pack in place.packs}) <= pack_count_max
    assert all(place in known[key] for key, place in chosen.items())


def test_of_packs_that_give_the_same_the_latest_are_dropped() -> None:
    places = {digest(number): [Place(number, (number,))] for number in range(1, 6)}

    chosen = choose(places, dict.fromkeys(places, 7), pack_count_max=2)

    assert {place.packs for place in chosen.values()} == {(1,), (2,)}
