"""Which settings a search tries next, as a function of the scores that are known.

The search is played again from its beginning each time, so that one that was stopped
goes on as if nothing had happened, wherever that was.
"""

from collections.abc import Mapping
from itertools import product

from benchmarks.distillation.config import Search
from benchmarks.distillation.methods.base import Setting

# Names and values, which unlike a setting can be looked up.
Key = tuple[tuple[str, float], ...]


def key_of(setting: Setting) -> Key:
    """Return a setting as what can be looked up."""
    return tuple(sorted(setting.items()))


def next_settings(search: Search, known: Mapping[Key, float]) -> list[Setting]:
    """Return the settings whose scores are wanted now; none at the end."""
    return play(search, known)[1]


def finalists(search: Search, known: Mapping[Key, float]) -> list[Setting]:
    """Return the best settings of a search that is over, the best first."""
    tried, _ = play(search, known)
    return [dict(key) for key in ranked(tried)[: search.n_finalists]]


def play(
    search: Search, known: Mapping[Key, float]
) -> tuple[dict[Key, float], list[Setting]]:
    """Return what a search has tried, in its order, and what it lacks to go on."""
    tried: dict[Key, float] = {}
    values = product(*search.grid.values())
    wanted = [dict(zip(search.grid, row, strict=True)) for row in values]
    while wanted:
        missing = [setting for setting in wanted if key_of(setting) not in known]
        if missing:
            return tried, missing
        tried |= {key_of(setting): known[key_of(setting)] for setting in wanted}
        wanted = widen(search, tried) if search.thorough else []
    return tried, []


def widen(search: Search, tried: dict[Key, float]) -> list[Setting]:
    """Return untried neighbours of the best setting, or of others while trials last."""
    first, *others = ranked(tried)
    if fresh := untried_neighbours(search, dict(first), tried):
        return fresh
    left = search.n_trials - len(tried)
    for key in others if left > 0 else []:
        if fresh := untried_neighbours(search, dict(key), tried):
            return fresh[:left]
    return []


def ranked(tried: Mapping[Key, float]) -> list[Key]:
    """Return what was tried, the best first; of equals, what was tried first."""
    return sorted(tried, key=lambda key: -tried[key])


def untried_neighbours(
    search: Search, setting: Setting, tried: Mapping[Key, float]
) -> list[Setting]:
    """Return the setting with one value halved or doubled, within the bounds."""
    found = []
    for name, value in sorted(setting.items()):
        lowest, highest = search.bounds.get(name, (0.0, float("inf")))
        for other in (value / 2, value * 2):
            neighbour = {**setting, name: type(value)(other)}
            if lowest <= other <= highest and key_of(neighbour) not in tried:
                found.append(neighbour)
    return found


def is_on_edge(search: Search, setting: Setting) -> bool:
    """Return whether a setting is at a bound that the search may not pass."""
    return any(
        value / 2 < search.bounds[name][0] or value * 2 > search.bounds[name][1]
        for name, value in setting.items()
        if name in search.bounds
    )
