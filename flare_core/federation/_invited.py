"""Which sites are invited to a round: the same wherever and however often it is asked.

Chance is a hash of the seed, the round and the site's name, and no generator's: so the
draw of one site does not depend on who the others are, and a server that was started
again draws the same cohort.
"""

import math
from collections.abc import Collection, Mapping

from blake3 import blake3

from flare_core._selection import Selection

_HASH_BYTES = 8


def invited(
    selection: Selection,
    round_number: int,
    *,
    joined: Collection[str],
    present: Collection[str],
    sizes: Mapping[str, int],
) -> set[str]:
    """Return the sites to invite.

    A draw by size gives each site the chance that its examples have, without putting it
    back (Efraimidis and Spirakis, 2006, https://doi.org/10.1016/j.ipl.2005.11.003).

    Args:
        selection: The plan's word.
        round_number: The round.
        joined: All who may take part, connected or not.
        present: Those of them who are connected.
        sizes: Examples in the last update of each site that has handed one in; another
            one counts as their mean.
    """
    k, seed = selection.k, selection.seed

    def chance(site: str) -> float:
        return -math.log(_uniform(f"{seed}/{round_number}/{site}"))

    if k is None:
        return set(present)
    if selection.choose == "round_robin":
        return _turn(sorted(joined), round_number, k)
    if selection.choose == "available":
        return _first(k, {site: chance(site) for site in present})
    if selection.choose == "random":
        return _first(k, {site: chance(site) for site in joined})
    mean = sum(sizes.values()) / len(sizes) if sizes else 1.0
    return _first(k, {one: chance(one) / sizes.get(one, mean) for one in joined})


def _turn(sites: list[str], round_number: int, k: int) -> set[str]:
    """Return whose turn it is."""
    start = round_number * k
    return {sites[(start + i) % len(sites)] for i in range(k)} if sites else set()


def _first(k: int, waits: Mapping[str, float]) -> set[str]:
    """Return who comes first where each site waits for a while."""
    return set(sorted(waits, key=lambda site: (waits[site], site))[:k])


def _uniform(words: str) -> float:
    """Return a number between 0, exclusive, and 1 for any words."""
    digest = blake3(words.encode()).digest(_HASH_BYTES)
    return (int.from_bytes(digest) + 0.5) / (1 << 8 * _HASH_BYTES)
