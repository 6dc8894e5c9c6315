"""Out-of-memory errors, with the settings that help and, on request, a record of what held the GPU's memory."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import torch

from arcdist.config import Config
from arcdist.distributed import rank, world_size
from arcdist.errors import OutOfMemoryError, is_out_of_memory, reason


@contextmanager
def explained_out_of_memory(config: Config, folder: Path | None = None) -> Iterator[None]:
    """Turn the device's and the host's out-of-memory errors into one that names what to change.

    With the folder of a run and `train.memory_history`, the GPU's allocations are recorded, and what held its memory
    is left in the folder for PyTorch's viewer.

    Raises:
        OutOfMemoryError: in their place.
    """
    recorded = folder is not None and config.train.memory_history and _record_allocations()
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error)):
            raise
        settings = "; ".join(f"{n}. {each}" for n, each in enumerate(islice(_settings(config), 3), 1))
        held = _write_snapshot(folder) if folder is not None and recorded else ""
        raise OutOfMemoryError(
            f"Out of memory ({reason(error)}). In this order: {settings}. --dry_run shows the peak of the longest "
            f"batch.{held}"
        ) from error
    finally:
        if recorded:
            torch.cuda.memory._record_memory_history(enabled=None)


def _record_allocations() -> bool:
    """Have PyTorch record where the GPU's memory is allocated; whether it does, as it cannot without a GPU."""
    if not torch.cuda.is_initialized():
        return False
    with suppress(RuntimeError):  # Of CUDA's own asynchronous allocator, which has no history.
        # The entries are allocations beside what is held, about those of a step; some KB each on the host.
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=10_000)
        return True
    return False


def _write_snapshot(folder: Path) -> str:
    """Write what is held, and by which lines of code; the sentence that says where, empty if it cannot be written."""
    path = folder / "profile" / (f"memory_snapshot_rank_{rank():05d}.pickle" if rank() else "memory_snapshot.pickle")
    with suppress(OSError, RuntimeError, MemoryError):  # The error to report is the one that led here.
        path.parent.mkdir(exist_ok=True)
        torch.cuda.memory._dump_snapshot(str(path))
        return f" What held the GPU's memory: {path}, to be opened at https://pytorch.org/memory_viz."
    return ""


def _settings(config: Config) -> Iterator[str]:
    """What can still be changed, by how much it helps for what it costs."""
    train, side = config.train, config.data.max_side
    queries = -(-train.batch_size // world_size())  # Of a process.
    in_pass = -(-queries // train.accumulation)
    if in_pass > 1:
        passes = min(2 * train.accumulation, queries)
        yield (
            f"--train.accumulation {passes} (now {train.accumulation}), or half of --batch_size (now "
            f"{train.batch_size}): activations of {-(-queries // passes)} queries at a time in place of {in_pass}"
        )
    if not config.qwen.gradient_checkpointing:
        yield (
            "--qwen.gradient_checkpointing true: of Qwen's layers, the activations of one at a time in place of all, "
            "in about a third more time"
        )
    if side > 1:
        lower = max(1, 2 * side // 3)
        yield (
            f"--data.max_side {lower} (now {side}), fewer tasks: at most {lower**2} cells, and so tokens, a grid in "
            f"place of {side**2}"
        )
    if train.precision == "no":
        yield "--train.precision bf16, if the device has it: half the bytes of most activations"
    if config.qwen.dtype == "float32":
        yield "--qwen.dtype bfloat16: half the bytes of Qwen's frozen weights"
    yield f"a smaller --agent.hidden_dim (now {config.agent.hidden_dim}): the grid modules' activations shrink with it"
    yield "a smaller --qwen.model"
