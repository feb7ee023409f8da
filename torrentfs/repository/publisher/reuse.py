"""This module decides which earlier packs a revision points into: all that help, but at most 32. Pure.

The choice depends on what was published before, in its order, and on the contents; on nothing else.
"""

from collections.abc import Mapping, Sequence

from torrentfs.repository.publisher.content_index import Place

OLD_PACK_COUNT_MAX = 32


def choose(
    places: Mapping[bytes, Sequence[Place]],
    sizes: Mapping[bytes, int],
    pack_count_max: int = OLD_PACK_COUNT_MAX,
) -> dict[bytes, Place]:
    """Return the place of each content (by hash) that is to be reused; what is left out is packed anew.

    While there are too many packs, the one that gives the fewest bytes is dropped, the latest first.
    """
    dropped: set[int] = set()
    while True:
        chosen = {digest: place for digest in places if (place := _first(places[digest], dropped))}
        weights: dict[int, int] = {}
        for digest, place in chosen.items():
            for pack in place.packs:
                weights[pack] = weights.get(pack, 0) + sizes[digest]
        excess = len(weights) - pack_count_max
        if excess <= 0:
            return chosen
        by_weight = sorted(weights, key=lambda pack: (weights[pack], -pack))
        dropped.update(by_weight[: max(excess // 2, 1)])


def _first(places: Sequence[Place], dropped: set[int]) -> Place | None:
    return next((place for place in places if dropped.isdisjoint(place.packs)), None)
