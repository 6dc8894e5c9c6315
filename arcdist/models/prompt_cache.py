"""Prompts that serve several batches before Qwen reads their query again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arcdist.models.qwen_prompt import PromptOutput

# B queries, M of them without a prompt in the cache, P prompt


@dataclass(frozen=True, slots=True)
class CachedPrompts:
    """What the cache knows of B queries."""

    output: PromptOutput
    """Prompts and control vectors, without gradient; zeros where there are none."""
    missing: Int[Tensor, " M"]
    """Rows of the queries whose prompt must be computed, on the prompts' device."""

    def fill(self, computed: PromptOutput) -> PromptOutput:
        """Put the M computed prompts into their rows; their gradient flows, the cached rows have none."""
        return PromptOutput(
            *(cached.index_copy(0, self.missing, rows) for cached, rows in zip(self.output, computed, strict=True))
        )


class PromptCache:
    """Holds the prompts of queries, each good for `every` batches from the one it was computed in.

    Args:
        every: batches that a prompt serves, at least 1; 1 means that each batch computes its own.
        prompt_dim: width P of prompt and control vector.
        device: where the prompts are wanted.
    """

    def __init__(self, every: int, prompt_dim: int, device: torch.device) -> None:
        self._every = every
        self._absent = torch.zeros(2, prompt_dim, device=device)
        self._rows: dict[str, tuple[int, Float[Tensor, "2 P"]]] = {}

    def lookup(self, ids: Sequence[str], batch_number: int) -> CachedPrompts:
        """The prompts of these queries that are still good in this batch."""
        rows, missing = [], []
        for index, query_id in enumerate(ids):
            if self._holds(query_id, batch_number):
                rows.append(self._rows[query_id][1])
            else:
                missing.append(index)
                rows.append(self._absent)
        prompt, control = torch.stack(rows, dim=1)
        return CachedPrompts(PromptOutput(prompt, control), torch.tensor(missing, dtype=torch.int64).to(prompt.device))

    def store(self, ids: Sequence[str], output: PromptOutput, batch_number: int) -> None:
        """Keep the prompts that were computed in this batch; a query whose prompt is still good keeps that one."""
        rows = torch.stack([output.prompt.detach(), output.control.detach()], dim=1)
        self._rows |= {
            query_id: (batch_number, row)
            for query_id, row in zip(ids, rows, strict=True)
            if not self._holds(query_id, batch_number)
        }

    def state(self) -> tuple[dict[str, int], dict[str, Float[Tensor, "2 P"]]]:
        """The batch that each kept prompt is of, and the prompts, on the CPU; both by query."""
        batches = {query_id: batch for query_id, (batch, _) in self._rows.items()}
        return batches, {query_id: row.cpu().clone() for query_id, (_, row) in self._rows.items()}

    def load_state(self, batches: Mapping[str, int], rows: Mapping[str, Float[Tensor, "2 P"]]) -> None:
        """Keep what `state()` gave, and nothing else."""
        self._rows = {query_id: (batch, rows[query_id].to(self._absent)) for query_id, batch in batches.items()}

    def _holds(self, query_id: str, batch_number: int) -> bool:
        return query_id in self._rows and batch_number - self._rows[query_id][0] < self._every
