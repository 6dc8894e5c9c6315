"""What the processes of a run tell each other in a step. With one process nothing is sent."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Num, Shaped
from torch import Tensor, distributed

from arcdist.regions import region

# N rows over all processes, n rows of this one, F shape of a row.


def several_processes() -> bool:
    """Whether there is anyone to talk to."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def add_up(named: Mapping[str, Num[Tensor, "..."]]) -> dict[str, Num[Tensor, "..."]]:
    """Sums over all processes of tensors by name, in float32 and in one message.

    Every process gives the same names and shapes, in the same order.
    """
    sums = torch.cat([value.detach().float().reshape(-1) for value in named.values()])
    if several_processes():
        with region("communication"):
            distributed.all_reduce(sums)
    parts = sums.split([value.numel() for value in named.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(named.items(), parts, strict=True)}


@torch.no_grad()
def add_up_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes, in one message."""
    if not (several_processes() and tensors):
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with region("communication"):
        distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


@torch.no_grad()
def take_over_from_first(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of process 0, so that replicas begin alike."""
    if several_processes():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def gather_rows(rows: Shaped[Tensor, " n *F"], counts: Sequence[int]) -> Shaped[Tensor, " N *F"]:
    """The rows of all processes, one process after the other.

    Args:
        rows: this process's.
        counts: rows of each process, known to all of them.
    """
    if not several_processes():
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    with region("communication"):
        distributed.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])


def part() -> None:
    """Take leave of the other processes, at the end of a run that went well.

    Without it a process may be aborted at its very end, by threads of the process group that are still at work.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def bytes_from_first(content: bytes) -> bytes:
    """Process 0's bytes, on every process; what the others give is not heard."""
    if not several_processes():
        return content
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    length = torch.tensor([len(content)], device=device)
    distributed.broadcast(length, src=0)
    said = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if distributed.get_rank() == 0 and content:
        said.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    distributed.broadcast(said, src=0)
    return said.cpu().numpy().tobytes()


def hear_from_first(text: str) -> str:
    """Process 0's text, on every process; what the others say is not heard."""
    return bytes_from_first(text.encode()).decode()
