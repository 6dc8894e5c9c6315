"""Which queries form a batch, and their delivery while the models compute."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import datasets
import numpy as np

from arcdist.data.batch import QueryBatch
from arcdist.data.collate import Collator
from arcdist.data.queries import read_queries
from arcdist.random import stream

_DEALT_BATCHES = 4
_BATCHES_AHEAD = 2


class BucketedBatches:
    """Batches of queries of similar length, each query exactly once an epoch.

    An epoch shuffles all queries, cuts them into windows and sorts each window by length. The queries of one task are
    about as long as each other; so that they do not fill a batch, runs of `_DEALT_BATCHES` batches are dealt out task
    by task, like cards. Then the batches are shuffled. The result depends on the arguments and the epoch only, so every
    process that cuts its share out of each batch sees the same epoch.

    Args:
        lengths: of each query's text, in any unit.
        tasks: of each query.
        batch_size: queries of a batch; up to `_DEALT_BATCHES` are smaller where it does not divide their number.
        window: batches that are sorted together.
        seed: of the shuffles.
    """

    def __init__(
        self, lengths: Sequence[int], tasks: Sequence[str], *, batch_size: int, window: int, seed: int
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._tasks = np.unique(tasks, return_inverse=True)[1]
        self._batch_size = batch_size
        self._window = window
        self._seed = seed

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return -(-len(self._lengths) // self._batch_size)

    def batches(self, epoch: int) -> list[list[int]]:
        """Give the rows of each batch of an epoch, in the order of training."""
        rng = stream(self._seed, "batches", epoch, "")
        batches = []
        for window in _cut(rng.permutation(len(self._lengths)), self._window * self._batch_size):
            by_length = window[np.argsort(self._lengths[window], kind="stable")]
            for run in _cut(by_length, _DEALT_BATCHES * self._batch_size):
                by_task = run[np.argsort(self._tasks[run], kind="stable")]
                hands = -(-len(run) // self._batch_size)
                batches += [by_task[hand::hands].tolist() for hand in range(hands)]
        return [batches[place] for place in rng.permutation(len(batches))]


def make_loader(
    queries: datasets.Dataset, collator: Collator, batches: Iterable[Sequence[int]], epoch: int = 0
) -> Iterator[QueryBatch]:
    """Collate batches of rows in a background thread, two ahead of the one that is used."""
    queries = queries.with_format("arrow")
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate")
    ahead: deque[Future[QueryBatch]] = deque()

    def collate(rows: Sequence[int]) -> QueryBatch:
        return collator(read_queries(queries, rows), epoch)

    try:
        for rows in batches:
            ahead.append(pool.submit(collate, rows))
            if len(ahead) > _BATCHES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _cut(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
