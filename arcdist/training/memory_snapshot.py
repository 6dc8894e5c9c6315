"""What held the GPU's memory when it ran out, in a file for PyTorch's viewer. Written, never read."""

from contextlib import suppress
from pathlib import Path

import torch

from arcdist.distributed import rank

VIEWER = "https://pytorch.org/memory_viz"

_EVENTS = 10_000
"""Allocations that are remembered beside what is held: about those of a step, some KB each on the host."""


def remember_allocations() -> bool:
    """Have PyTorch remember where the GPU's memory is allocated; whether it does. On a CPU there is nothing to do.

    It takes 2 µs an allocation by PyTorch's documentation, which recommends it for runs that matter.
    """
    if not torch.cuda.is_initialized():
        return False
    with suppress(RuntimeError):  # Of CUDA's own asynchronous allocator, which knows no history.
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=_EVENTS)
        return True
    return False


def forget_allocations() -> None:
    """Have PyTorch remember no more of them."""
    torch.cuda.memory._record_memory_history(enabled=None)


def write_snapshot(folder: Path) -> Path | None:
    """Write what is held, and by what lines of code, below a run folder; none if that failed.

    The file is a pickle, with a name of its own for each process.
    """
    path = folder / "profile" / (f"memory_snapshot_rank_{rank():05d}.pickle" if rank() else "memory_snapshot.pickle")
    with suppress(OSError, RuntimeError, MemoryError):  # The error to tell is the one that brought us here.
        path.parent.mkdir(exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
        return path
    return None
