"""Which process computes which queries of a batch, and in which of its passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import fsum

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one process takes of a batch in one pass."""

    rows: tuple[int, ...]
    """Rows of the data set."""
    positions: tuple[int, ...]
    """Place of each in the batch, ascending."""
    is_padding: bool
    """True where the process has nothing left to compute: the one row repeats a query of the batch, without weight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """A batch, dealt out."""

    shares: tuple[tuple[Share, ...], ...]
    """Those of each process, one a pass, the longest queries first."""
    rows: tuple[int, ...]
    """The whole batch, in its order."""
    imbalance: float
    """The most loaded process's work over the mean process's, at least 1; what is padded counts as work."""


class Dealer:
    """Deals batches out so that the process with most to do is done early.

    A query of L tokens is work w(L) = L + quadratic · L²: the linear layers, and attention. A share is padded to its
    longest query, B · w(max L), and a process's work is the sum over its passes. Every process has as many queries as
    the others, or one more, and so have its shares; only the lengths are there to be levelled.

    Queries are dealt in rounds, the longest first: in each round the process with the least work so far takes the
    longest (longest processing time first, Graham 1969, with the number of queries fixed). Three deals are compared:
    blocks as large as a share, which pads least; single queries, which gives the processes like lengths; and the
    batch's own order in turn. The one whose most loaded process has least to do is taken, and among equals the most
    level one: a step lasts as long as its slowest process, and padding more would level as well.

    The result depends on the arguments only, so all processes come to the same deal.

    Args:
        lengths: tokens of each row of the data set.
        processes: that share a batch.
        passes: that each makes over its part of it.
        quadratic: attention's operations a token and position over the linear layers' operations a token; 0 or more.
    """

    def __init__(self, lengths: Sequence[int], *, processes: int, passes: int, quadratic: float) -> None:
        tokens = np.asarray(lengths, dtype=np.float64)
        self._work: list[float] = (tokens + quadratic * tokens**2).tolist()
        self._processes = processes
        self._passes = passes

    def deal(self, rows: Sequence[int]) -> Deal:
        """Deal out a batch of at least one row."""
        work = [self._work[row] for row in rows]
        longest_first = sorted(range(len(rows)), key=work.__getitem__, reverse=True)
        shortest = longest_first[-1]
        counts = [len(rows[process :: self._processes]) for process in range(self._processes)]
        in_turn: list[list[int]] = [[] for _ in counts]
        for position in longest_first:
            in_turn[position % self._processes].append(position)

        def burden(deal: list[list[list[int]]]) -> tuple[float, float]:
            loads = [fsum(_padded(part or [shortest], work) for part in parts) for parts in deal]
            return max(loads), max(loads) * len(loads) / fsum(loads)

        def share(part: list[int]) -> Share:
            positions = tuple(sorted(part or [shortest]))
            return Share(rows=tuple(rows[place] for place in positions), positions=positions, is_padding=not part)

        dealings = (
            _in_rounds(longest_first, work, counts, rounds=min(self._passes, counts[0])),
            _in_rounds(longest_first, work, counts, rounds=counts[0]),
            in_turn,
        )
        best = min(([_cut(hand, self._passes) for hand in hands] for hands in dealings), key=burden)
        shares = tuple(tuple(share(part) for part in parts) for parts in best)
        return Deal(shares=shares, rows=tuple(rows), imbalance=burden(best)[1])


def _in_rounds(longest_first: list[int], work: list[float], counts: list[int], rounds: int) -> list[list[int]]:
    hands: list[list[int]] = [[] for _ in counts]
    loads = [0.0] * len(counts)
    sizes = [_sizes(count, rounds) for count in counts]
    start = 0
    for turn in range(rounds):
        # Among equals the process with fewer queries comes first: the longest cost least where they are few.
        for process in sorted(range(len(counts)), key=lambda process: (loads[process], counts[process])):
            block = longest_first[start : start + sizes[process][turn]]
            start += len(block)
            hands[process] += block
            loads[process] += _padded(block, work) if block else 0
    return hands


def _cut(hand: list[int], parts: int) -> list[list[int]]:
    # All processes make their passes from long to short, so that backends that meet after each pass wait little.
    ends = accumulate(_sizes(len(hand), parts), initial=0)
    return [hand[start:end] for start, end in pairwise(ends)]


def _sizes(count: int, parts: int) -> list[int]:
    # The smaller parts first, as the longest queries go there; but a part without queries last.
    size, more = divmod(count, parts)
    return [size] * (parts - more) + [size + 1] * more if size else [1] * more + [0] * (parts - more)


def _padded(longest_first: list[int], work: list[float]) -> float:
    return len(longest_first) * work[longest_first[0]]
