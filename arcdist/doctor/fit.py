"""The longest batch, forward and backward: whether it fits, and how closely."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import psutil  # type: ignore[import-untyped]
import torch

from arcdist.config import Config
from arcdist.distributed import is_main, local_world_size
from arcdist.doctor.finding import Finding, warning
from arcdist.doctor.resources import GIB
from arcdist.engine.platform import Platform
from arcdist.errors import NotFiniteError
from arcdist.tracking import no_log
from arcdist.training.health import LOSS_NOT_FINITE
from arcdist.training.loop import MOST_SKIPPED_STEPS
from arcdist.training.memory_limit import explained_out_of_memory
from arcdist.training.session import Session, build_session
from arcdist.training.trial import longest_batch, peak_bytes, run_steps

_CLOSE = 0.9
"""Share of the memory beyond which there is little left for fragments, and for other programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What the longest batch took on one process."""

    peak: int
    """Most bytes held: of the GPU's allocator, or by the whole process on a CPU."""
    capacity: int
    """Bytes of the GPU, or of the machine's memory for each of its processes."""
    queries: int
    """Of the batch, over all processes."""
    tokens: int
    """Of its longest query."""

    def to_text(self) -> str:
        """As JSON, for `judge_fit`."""
        return json.dumps(asdict(self))


def try_longest_batch(config: Config, platform: Platform) -> Fit:
    """Build the run and train on its longest batch.

    Raises:
        OutOfMemoryError: it does not fit; the message names the knobs.
        NotFiniteError: its losses or gradients are not finite.
        ArcdistError: as for a run.
    """
    with nullcontext() if is_main() else no_log(), explained_out_of_memory(config):
        session = build_session(config, platform)
        longest = longest_batch(session)
        _step_once(session, longest)
        # Now that the optimizers have their moments. A prompt kept from the first step serves `every` steps.
        run_steps(session, [longest] * (config.qwen.every + 1))
    lengths = session.training.queries["length"]
    return Fit(
        peak=peak_bytes(session.device),
        capacity=_capacity(session.device),
        queries=len(longest),
        tokens=max(lengths[row] for row in longest),
    )


def _step_once(session: Session, longest: Sequence[int]) -> None:
    # The scale that float16's gradients begin with may be too large a few times.
    for _ in range(MOST_SKIPPED_STEPS):
        if not run_steps(session, [longest]).skipped:
            return
    raise NotFiniteError(
        f"Losses or gradients of the longest batch were not finite in {MOST_SKIPPED_STEPS} steps in a row. "
        f"{LOSS_NOT_FINITE.mend}"
    )


def _capacity(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total: int = psutil.virtual_memory().total
    return total // local_world_size()


def judge_fit(texts: Sequence[str | None]) -> Finding:
    """One finding of what each process measured, by rank: the one with least left speaks for all."""
    fits = {rank: Fit(**json.loads(text)) for rank, text in enumerate(texts) if text is not None}
    worst = max(fits, key=lambda rank: fits[rank].peak / fits[rank].capacity)
    fit = fits[worst]
    batch = f"{fit.queries} queries of up to {fit.tokens:,} tokens"
    found = f"{batch}: peak {fit.peak / GIB:.2f} of {fit.capacity / GIB:.1f} GiB"
    if len(fits) > 1:
        found += f" on rank {worst}, which has least left"
    if fit.peak > _CLOSE * fit.capacity:
        return warning(
            found,
            "That is close: lower --batch_size, raise --train.accumulation, or --qwen.gradient_checkpointing true.",
        )
    return Finding(found=found)
