"""How many rows of logits to keep in memory at once, and where to cut rows into groups. Host arithmetic only.

Every segment closes inside one group, because its gradient scale is known once it has closed. Larger groups
save reads and writes of the fp32 dW: at 4096 rows they take a tenth of the time of the matmuls.

Left out: anything on a device; labels and ids are CPU tensors.
"""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ROWS = 4096
CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2 * 2**30}
TILE = 256
"""Rows of a tile of the large matmuls on a GPU: chunks are multiples of it."""


def default_chunk_rows(vocab: int, device: str = "cpu", itemsize: int = 4) -> int:
    """As many rows as keep one buffer of logits within 64 MiB (2 GiB on CUDA), from 1 to 4096."""
    budget = CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"])
    fits = max(1, min(MAX_ROWS, budget // max(1, vocab * itemsize)))
    return fits - fits % TILE if fits > TILE else fits


def balanced(count: int, most: int) -> int:
    """Rows per chunk so that `count` rows make equal chunks of at most `most` rows, in multiples of a
    tile."""
    if count <= most:
        return max(count, 1)
    even = -(-count // -(-count // most))
    return min(most, -(-even // TILE) * TILE)


class Group(NamedTuple):
    start: int  # rows start..stop
    stop: int
    low: int  # the segments of the rows have ids in low..high; high < low: no row is in a segment
    high: int
    single: bool = False  # every row belongs to one segment


def slack(rows: int) -> int:
    """Rows that must fit when chunks aim at `rows`: an eighth more. Otherwise a segment that ends a little
    late would leave a last chunk of a few rows, which costs a pass over all of dW."""
    return rows + rows // 8


def plan(
    ids: Tensor, rows: int, num_segments: int, needs_model: bool, capacity: int | None = None
) -> list[Group]:
    """Cut [R] rows (ids on the CPU) into groups of about `rows` and at most `capacity` (`rows` by default),
    every segment inside one group.

    A cut is clean where it divides no segment. Without `needs_model`, where F does not depend on the model,
    every cut is clean. Of the clean cuts within `capacity` a group takes the one nearest to `rows`. A segment
    that does not fit makes a longer group, which ends at the next clean cut. Segments need not be
    contiguous."""
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
    """The clean cut after `start` that is nearest to `aim`, up to `limit`; if there is none, the first one
    beyond."""
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
