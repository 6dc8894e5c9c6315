"""Running out of memory, told with the knobs that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from arcdist.errors import OutOfMemoryError

# What the CPU's allocator, the CUDA driver and cuBLAS say; they have no error type of their own.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


@contextmanager
def explained_out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn the device's and the host's out-of-memory errors into one that names what to change.

    Raises:
        OutOfMemoryError: in their place.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not is_typed and not any(sign in str(error) for sign in _SIGNS):
            raise
        # Python's own error says nothing.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise OutOfMemoryError(
            f"Out of memory ({reason}). In this order: double --train.accumulation or halve --batch_size (now "
            f"{batch_size}), set --qwen.gradient_checkpointing true, lower --data.max_side; --dry_run shows the peak "
            f"of the longest batch."
        ) from error
