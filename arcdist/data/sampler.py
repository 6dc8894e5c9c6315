"""Queries on their way to the models: the batches of an epoch, this process's share of each, on its device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from math import fsum

import numpy as np
import torch

from arcdist.data.batch import DistributedBatch, Partition, QueryBatch, Share
from arcdist.data.collate import Collator
from arcdist.data.queries import Queries
from arcdist.rng import stream


class Partitioner:
    """Partitions batches so that the process with most to do finishes early.

    A query of L tokens is work w(L) = L + quadratic · L²: the linear layers, and attention. A share is padded to its
    longest query, B · w(max L), and a process's work is the sum over its passes. Every process has as many queries as
    the others, or one more, and so have its shares; only the lengths can be balanced.

    Queries are assigned in rounds, the longest first: in each round the process with the least work so far takes the
    longest (longest processing time first, Graham 1969, with the number of queries fixed). Three partitions are
    compared: blocks as large as a share, which pads least; single queries, which gives the processes similar lengths;
    and round-robin. The one whose most loaded process has least to do is taken, and among equals the most balanced: a
    step lasts as long as its slowest process, and padding more would balance as well.

    The result depends on the arguments only, so all processes compute the same partition.

    Args:
        lengths: tokens of each row of the data set.
        processes: that share a batch.
        passes: that each makes over its part of it.
        quadratic: attention's operations a token and position over the linear layers' operations a token; 0 or more.
    """

    def __init__(self, lengths: Sequence[int] | np.ndarray, *, processes: int, passes: int, quadratic: float) -> None:
        tokens = np.asarray(lengths, dtype=np.float64)
        self._work: list[float] = (tokens + quadratic * tokens**2).tolist()
        self._processes = processes
        self._passes = passes

    def partition(self, rows: Sequence[int]) -> Partition:
        """Partition a batch of at least one row."""
        work = [self._work[row] for row in rows]
        longest_first = sorted(range(len(rows)), key=work.__getitem__, reverse=True)
        shortest = longest_first[-1]
        counts = [len(rows[process :: self._processes]) for process in range(self._processes)]
        round_robin = [
            [position for position in longest_first if position % self._processes == process]
            for process in range(self._processes)
        ]

        def cost(candidate: list[list[list[int]]]) -> tuple[float, float]:
            loads = [fsum(_padded_work(part or [shortest], work) for part in parts) for parts in candidate]
            return max(loads), max(loads) * len(loads) / fsum(loads)

        def share(part: list[int]) -> Share:
            positions = tuple(sorted(part or [shortest]))
            return Share(rows=tuple(rows[place] for place in positions), positions=positions, is_padding=not part)

        candidates = [
            [_cut(assigned, self._passes) for assigned in assignment]
            for assignment in (
                _assign(longest_first, work, counts, rounds=min(self._passes, counts[0])),
                _assign(longest_first, work, counts, rounds=counts[0]),
                round_robin,
            )
        ]
        best = min(candidates, key=cost)
        shares = tuple(tuple(share(part) for part in parts) for parts in best)
        return Partition(shares=shares, rows=tuple(rows), imbalance=cost(best)[1])


def _assign(longest_first: list[int], work: list[float], counts: list[int], rounds: int) -> list[list[int]]:
    """Positions of each process, longest first, taken in rounds of blocks."""
    assigned: list[list[int]] = [[] for _ in counts]
    loads = [0.0] * len(counts)
    sizes = [_sizes(count, rounds) for count in counts]
    start = 0
    for turn in range(rounds):
        # Among equals the process with fewer queries comes first: the longest cost least where they are few.
        for process in sorted(range(len(counts)), key=lambda process: (loads[process], counts[process])):
            block = longest_first[start : start + sizes[process][turn]]
            start += len(block)
            assigned[process] += block
            loads[process] += _padded_work(block, work) if block else 0
    return assigned


def _cut(positions: list[int], parts: int) -> list[list[int]]:
    # All processes make their passes from long to short, so that backends that meet after each pass wait little.
    ends = accumulate(_sizes(len(positions), parts), initial=0)
    return [positions[start:end] for start, end in pairwise(ends)]


def _sizes(count: int, parts: int) -> list[int]:
    # The smaller parts first, as the longest queries go there; but a part without queries last.
    size, more = divmod(count, parts)
    return [size] * (parts - more) + [size + 1] * more if size else [1] * more + [0] * (parts - more)


def _padded_work(longest_first: list[int], work: list[float]) -> float:
    return len(longest_first) * work[longest_first[0]]


_MIXED_BATCHES = 4
_BATCHES_AHEAD = 2


class BucketedBatches:
    """Batches of queries that cost about the same, each query exactly once an epoch.

    An epoch shuffles all queries, cuts them into windows and sorts each window by length. The queries of one task have
    similar lengths; so that they do not fill a batch, each run of `_MIXED_BATCHES` batches is sorted by task and
    distributed over its batches in turn. Then the batches are shuffled. The result depends on the arguments and the
    epoch only, so every process that cuts its share out of each batch sees the same epoch.

    Args:
        lengths: gives what all queries are sorted by in an epoch: the length of their text, or first their side.
        tasks: of each query.
        batch_size: queries of a batch; up to `_MIXED_BATCHES` are smaller if it does not divide their number.
        window: batches that are sorted together.
        seed: of the shuffles.
    """

    def __init__(
        self,
        lengths: Callable[[int], Sequence[int] | np.ndarray],
        tasks: Sequence[str],
        *,
        batch_size: int,
        window: int,
        seed: int,
    ) -> None:
        self._lengths = lengths
        self._tasks = np.unique(tasks, return_inverse=True)[1]
        self._batch_size = batch_size
        self._window = window
        self._seed = seed

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return -(-len(self._tasks) // self._batch_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """Give the rows of each batch of an epoch, in the order of training."""
        rng = stream(self._seed, "batches", epoch, "")
        lengths = np.asarray(self._lengths(epoch))
        batches = []
        for window in _chunks(rng.permutation(len(lengths)), self._window * self._batch_size):
            by_length = window[np.argsort(lengths[window], kind="stable")]
            for run in _chunks(by_length, _MIXED_BATCHES * self._batch_size):
                by_task = run[np.argsort(self._tasks[run], kind="stable")]
                count = -(-len(run) // self._batch_size)
                batches += [by_task[first::count].tolist() for first in range(count)]
        return [batches[place] for place in rng.permutation(len(batches))]


def _chunks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def make_loader(
    queries: Queries,
    collator: Collator,
    batches: Iterable[Sequence[int]],
    epoch: int = 0,
    *,
    pin_memory: bool = False,
) -> Iterator[QueryBatch]:
    """Collate batches of rows in a background thread, two ahead of the one that is used.

    With `pin_memory` they are in page-locked memory, from which a CUDA device copies while the CPU continues.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")
    ahead: deque[Future[QueryBatch]] = deque()

    def collate(rows: Sequence[int]) -> QueryBatch:
        batch = collator(queries.read(rows, epoch), epoch)
        return batch.pin_memory() if pin_memory else batch

    try:
        for rows in batches:
            ahead.append(pool.submit(collate, rows))
            if len(ahead) > _BATCHES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class QuerySet:
    """Queries with the batches they come in, how these are partitioned among processes, and how queries are seen."""

    queries: Queries
    batches: BucketedBatches
    """Which queries form a batch of all processes."""
    collator: Collator
    partitioner: Callable[[np.ndarray], Partitioner]
    """Gives the partitioner for the lengths of all queries in an epoch."""
    process: int
    """Number of this process."""

    def loader(
        self, epoch: int, device: torch.device, max_batches: int | None = None, *, start: int = 0
    ) -> Iterator[DistributedBatch]:
        """The batches of an epoch from number `start` on, up to number `max_batches`."""
        return self.load(self.batches.batches(epoch)[start:max_batches], epoch, device)

    def load(self, batches: Sequence[Sequence[int]], epoch: int, device: torch.device) -> Iterator[DistributedBatch]:
        """Partition and collate batches of rows."""
        partition = self.partitioner(self.queries.lengths(epoch)).partition
        partitions = [partition(rows) for rows in batches]
        shares = [share.rows for partition in partitions for share in partition.shares[self.process]]
        pin_memory = device.type == "cuda"
        collated = make_loader(self.queries, self.collator, shares, epoch, pin_memory=pin_memory)
        for partitioned in partitions:
            own = partitioned.shares[self.process]
            yield DistributedBatch(
                partition=partitioned,
                ids=tuple(self.queries.ids[row] for row in partitioned.rows),
                process=self.process,
                shares=own,
                queries=tuple(queries.to(device) for queries in islice(collated, len(own))),
            )
