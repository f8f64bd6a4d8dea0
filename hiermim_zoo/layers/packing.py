"""Windows of different sizes packed into groups of one size (GreenMIM, arXiv 2205.13515, section 3.2): integers in,
integers out.

A group of g slots costs g g pairs of tokens in attention and, for every slot, what ``slot_cost`` pairs cost. Windows
are never split. Every group takes the largest window that is left and fills up with the subset of the others that
leaves the fewest slots empty; windows of one size are alike, so a filling that is found is used as often as there are
windows for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

TRIES = 32  # group sizes that are packed before the best one so far is taken


class Packing(NamedTuple):
    """Where each window goes."""

    size: int  # g, slots of a group
    groups: int  # G
    group: np.ndarray  # int64 [W]: the group of each window
    first: np.ndarray  # int64 [W]: its first slot there


Filling = tuple[int, list[tuple[int, int]]]  # how often it is used; (size, number) of its windows


def cost(groups: int, size: int, slot_cost: int) -> int:
    """Pairs of tokens that attention looks at, and slots in terms of them."""
    return groups * (size * size + slot_cost * size)


def pack(counts: np.ndarray, slot_cost: int, size: int | None = None) -> Packing:
    """Pack windows at the least cost.

    Group sizes are tried in the order of what they would cost with every slot filled; the search ends where that
    exceeds the best found, so that the result is the optimum wherever the packing reaches its bound.

    Args:
        counts: int [W], tokens of each window, at least 1.
        slot_cost: of a slot, in pairs; 0 counts attention alone.
        size: packs at this group size instead of searching.

    Raises:
        ValueError: a window that is larger than ``size``.
    """
    total, largest = int(counts.sum()), int(counts.max())
    if size is not None and size < largest:
        raise ValueError(f"size={size} is too small for a window of {largest} tokens")
    histogram = np.bincount(counts).tolist()
    sizes = [size] if size is not None else list(_candidates(total, largest, slot_cost))
    best: tuple[int, int, list[Filling]] | None = None  # cost, size, fillings
    for g in sizes:
        if best is not None and cost(-(-total // g), g, slot_cost) >= best[0]:
            break
        limit = len(counts) if best is None else (best[0] - 1) // cost(1, g, slot_cost)
        fillings = _fill(histogram, g, limit)
        if fillings is not None:
            best = cost(sum(times for times, _ in fillings), g, slot_cost), g, fillings
    assert best is not None
    return _place(counts, best[1], best[2])


def apart(counts: np.ndarray) -> Packing:
    """Every window in a group of its own, as large as the largest.

    Args:
        counts: int [W], tokens of each window.
    """
    windows = np.arange(len(counts))
    return Packing(int(counts.max()), len(counts), windows, np.zeros_like(windows))


def _candidates(total: int, largest: int, slot_cost: int) -> Iterator[int]:
    """Group sizes in the order of what they would cost with every slot filled, the likeliest ones."""
    sizes = np.arange(largest, total + 1)
    groups = -(-total // sizes)
    bound = groups * (sizes * sizes + slot_cost * sizes)
    yield from sizes[np.argsort(bound, kind="stable")[:TRIES]].tolist()


def _fill(histogram: list[int], size: int, limit: int) -> list[Filling] | None:
    """Fillings for all windows, or None where they need more than ``limit`` groups.

    Args:
        histogram: number of windows of 0, 1, 2, ... tokens.
        size: slots of a group.
    """
    left = histogram[:]
    slack = limit * size - sum(n * count for n, count in enumerate(left))  # slots that may stay empty
    fillings: list[Filling] = []
    top = len(left) - 1
    while True:
        while top > 0 and not left[top]:
            top -= 1
        if top == 0:
            return fillings
        left[top] -= 1
        filling = [(top, 1), *_best_subset(left, size - top)]
        left[top] += 1
        if filling[1:] and filling[1][0] == top:
            filling = [(top, 1 + filling[1][1]), *filling[2:]]
        times = min(left[n] // number for n, number in filling)
        for n, number in filling:
            left[n] -= times * number
        slack -= times * (size - sum(n * number for n, number in filling))
        if slack < 0:
            return None
        fillings.append((times, filling))


def _best_subset(left: list[int], room: int) -> list[tuple[int, int]]:
    """The windows with the largest sum that fits into ``room`` slots, large ones first: (size, number), descending."""
    if room < len(left) and left[room]:
        return [(room, 1)] if room else []
    sizes = [n for n in range(1, min(room, len(left) - 1) + 1) if left[n]]
    mask, sums = (1 << (room + 1)) - 1, [1]  # bit s of sums[j]: s is the sum of some windows of the first j sizes
    for n in sizes:
        reachable = sums[-1]
        for _ in range(min(left[n], room // n)):
            grown = (reachable | reachable << n) & mask
            if grown == reachable:
                break
            reachable = grown
        sums.append(reachable)
    target, subset = sums[-1].bit_length() - 1, []
    for j in range(len(sizes) - 1, -1, -1):
        n, number = sizes[j], 0
        most = min(left[n], target // n)
        for number in range(most, -1, -1):
            if sums[j] >> (target - number * n) & 1:
                break
        if number:
            subset.append((n, number))
            target -= number * n
    return subset


def _place(counts: np.ndarray, size: int, fillings: list[Filling]) -> Packing:
    """Give every window its group and its first slot."""
    by_size = np.argsort(counts, kind="stable")
    start = np.searchsorted(
        counts[by_size], np.arange(size + 2)
    ).tolist()  # where the windows of n tokens begin in by_size
    group, first = np.empty_like(by_size), np.empty_like(by_size)
    groups = 0
    for times, filling in fillings:
        slot = 0
        for n, number in filling:
            windows = by_size[start[n] : start[n] + times * number].reshape(times, number)
            start[n] += times * number
            group[windows] = np.arange(groups, groups + times)[:, None]
            first[windows] = slot + n * np.arange(number)
            slot += n * number
        groups += times
    return Packing(size, groups, group, first)
