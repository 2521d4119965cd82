"""How many rows of logits to hold at once, and where to cut rows into groups. Host arithmetic only.

Every segment closes inside one group, because its gradient scale is known once it has closed. More
rows a group save reads and writes of the fp32 dW: at 4096 rows they are a tenth of the matmuls.

Left out: anything on a device; labels and ids come as CPU tensors.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ROWS = 4096
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2 * 2**30}
TILE = 256
"""Rows of a tile of the large matmuls on a GPU: chunks are whole tiles."""


def default_chunk_rows(vocab: int, device: str = "cpu", itemsize: int = 4) -> int:
    """As many rows as keep one buffer of logits within 64 MiB (2 GiB on CUDA), from 1 to 4096."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    fits = max(1, min(MAX_ROWS, budget // max(1, vocab * itemsize)))
    return fits - fits % TILE if fits > TILE else fits


def balanced(count: int, most: int) -> int:
    """Rows a chunk so that `count` rows make equal chunks of at most `most`, in whole tiles."""
    if count <= most:
        return max(count, 1)
    even = -(-count // -(-count // most))
    return min(most, -(-even // TILE) * TILE)


class Group(NamedTuple):
    start: int  # rows start..stop
    stop: int
    low: int  # segment ids low..high cover the rows; high < low when none does
    high: int
    single: bool = False  # every row belongs to one segment


def slack(rows: int) -> int:
    """Rows that fit when chunks aim at `rows`: an eighth more, so that a segment that ends a little
    late does not leave a last chunk of a few rows, which costs a whole pass over dW."""
    return rows + rows // 8


def plan(
    ids: Tensor, rows: int, num_segments: int, needs_model: bool, capacity: int | None = None
) -> list[Group]:
    """Cut [R] rows (ids on the CPU) into groups of about `rows` and at most `capacity` (`rows` by
    default), every segment inside one group.

    Of the clean cuts in reach, a group takes the one nearest to its even share. A segment that does
    not fit makes a longer group, ending at the next clean cut. When the weights do not wait for the
    model, every cut is clean. Segments need not be contiguous."""
    total, capacity = ids.numel(), capacity or rows
    if total == 0:
        return []
    if total <= capacity:
        return [_group(ids, 0, total)._replace(low=1, high=num_segments)]
    cuts = range(1, total + 1)
    if needs_model:
        order = torch.arange(total)
        last = torch.zeros(num_segments + 1, dtype=torch.int64).scatter_reduce_(0, ids, order, "amax")
        reach = torch.where(ids == 0, order, last[ids]).cummax(0).values
        cuts = (torch.nonzero(reach == order).flatten() + 1).tolist()
    groups, start = [], 0
    while start < total:
        stop = _cut(cuts, start, start + rows, start + capacity)
        groups.append(_group(ids, start, stop))
        start = stop
    return groups


def _cut(cuts, start: int, aim: int, limit: int) -> int:
    """The clean cut after `start` nearest to `aim`, up to `limit`; else the first one beyond."""
    if cuts[-1] <= limit:
        return cuts[-1]
    above = bisect_left(cuts, aim)
    near = [cuts[i] for i in (above - 1, above) if i >= 0 and start < cuts[i] <= limit]
    if near:
        return min(near, key=lambda cut: abs(cut - aim))
    return cuts[bisect_right(cuts, limit)]


def _group(ids: Tensor, start: int, stop: int) -> Group:
    inside = ids[start:stop]
    low, high = (int(x) for x in inside.aminmax())
    single = low == high > 0
    if low == 0:
        inside = inside[inside > 0]
        low, high = (int(x) for x in inside.aminmax()) if inside.numel() else (1, 0)
    return Group(start, stop, low, high, single)
