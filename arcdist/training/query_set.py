"""Queries on their way to the models: the batches of an epoch, this process's share of each, on its device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import datasets
import torch

from arcdist.data import BucketedBatches, Collator, Deal, Dealer, QueryBatch, Share, make_loader


@dataclass(frozen=True, kw_only=True, slots=True)
class DealtBatch:
    """One batch of all processes, and what this one computes of it."""

    deal: Deal
    """Who computes what."""
    ids: tuple[str, ...]
    """Names of all its queries, in the order of the batch."""
    process: int
    """Number of this one."""
    shares: tuple[Share, ...]
    """This process's share for each of its passes."""
    queries: tuple[QueryBatch, ...]
    """The queries of each share, on the device."""

    def __len__(self) -> int:
        """Count the queries of all processes."""
        return len(self.ids)


class QuerySet:
    """Queries with the batches they come in, how these are dealt to processes, and how the queries are seen.

    Args:
        queries: the data set.
        batches: which queries form a batch of all processes.
        collator: makes tensors of them.
        dealer: shares a batch out.
        process: this one's number.
    """

    def __init__(
        self, queries: datasets.Dataset, batches: BucketedBatches, collator: Collator, dealer: Dealer, process: int
    ) -> None:
        self.queries = queries
        self.batches = batches
        self.collator = collator
        self._dealer = dealer
        self._process = process

    @cached_property
    def ids(self) -> list[str]:
        """Name of each query."""
        return list(self.queries["id"])

    def loader(
        self, epoch: int, device: torch.device, max_batches: int | None = None, *, start: int = 0
    ) -> Iterator[DealtBatch]:
        """The batches of an epoch from number `start` on, up to number `max_batches`."""
        return self.load(self.batches.batches(epoch)[start:max_batches], epoch, device)

    def load(self, batches: Sequence[Sequence[int]], epoch: int, device: torch.device) -> Iterator[DealtBatch]:
        """Deal out and collate batches of rows."""
        deals = [self._dealer.deal(rows) for rows in batches]
        shares = [share.rows for deal in deals for share in deal.shares[self._process]]
        collated = make_loader(self.queries, self.collator, shares, epoch)
        for deal in deals:
            own = deal.shares[self._process]
            yield DealtBatch(
                deal=deal,
                ids=tuple(self.ids[row] for row in deal.rows),
                process=self._process,
                shares=own,
                queries=tuple(queries.to(device) for queries in islice(collated, len(own))),
            )
