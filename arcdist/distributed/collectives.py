"""What processes send each other: sums, rows, texts, and checksums that show whether they still agree."""

import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TypeVar

import torch
from jaxtyping import Int64, Num, Shaped
from torch import Tensor, distributed

from arcdist.errors import ConfigError, ReplicaError
from arcdist.regions import region

T = TypeVar("T")

# N rows over all processes, n rows of this one, F shape of a row, M modules.

_SHOWN = 3
"""How many differences a message names."""
_PIECE = 64 * 2**20
"""Bytes that one broadcast from the host moves, and takes of the device's memory."""
_CHUNK = 2**20
_INTEGERS = {1: torch.int8, 2: torch.int16}
"""What the bits of numbers of so many bytes are read as; those of larger ones as one or more 32-bit integers."""


def is_distributed() -> bool:
    """Whether there are other processes in the process group."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def all_reduce_sum(named: Mapping[str, Num[Tensor, "..."]]) -> dict[str, Num[Tensor, "..."]]:
    """Sums over all processes of tensors by name, in float32 and in one message.

    Every process gives the same names and shapes, in the same order.
    """
    sums = torch.cat([value.detach().float().reshape(-1) for value in named.values()])
    if is_distributed():
        with region("communication"):
            distributed.all_reduce(sums)
    parts = sums.split([value.numel() for value in named.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(named.items(), parts, strict=True)}


@torch.no_grad()
def all_reduce_sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one dtype by their sums over all processes, in one message."""
    if not (is_distributed() and tensors):
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with region("communication"):
        distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)])


@torch.no_grad()
def broadcast_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by those of process 0, so that replicas begin alike."""
    if is_distributed():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def gather_rows(rows: Shaped[Tensor, " n *F"], counts: Sequence[int]) -> Shaped[Tensor, " N *F"]:
    """The rows of all processes, one process after the other.

    Args:
        rows: this process's.
        counts: rows of each process, known to all of them.
    """
    if not is_distributed():
        return rows
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    received = [torch.empty_like(padded) for _ in counts]
    with region("communication"):
        distributed.all_gather(received, padded)
    return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])


def shutdown() -> None:
    """Leave the process group, at the end of a run that went well.

    Without it a process may be aborted at its very end, by threads of the process group that are still running.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def broadcast_text(text: str) -> str:
    """Process 0's text, on every process; those of the others are ignored."""
    return _from_process_0(text)


def broadcast_tensors(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Process 0's tensors by name, on the CPU of every process; what the others give is ignored.

    They are sent one by one, in pieces of at most 64 MiB, so that the device has to hold no more than that.

    Args:
        named: on the CPU, of any shapes and dtypes.
    """
    if not is_distributed():
        return dict(named)
    is_first = distributed.get_rank() == 0
    device = torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")
    received = {}
    for name, dtype, shape in _from_process_0([(name, value.dtype, value.shape) for name, value in named.items()]):
        received[name] = named[name].contiguous() if is_first else torch.empty(shape, dtype=dtype)
        for piece in received[name].view(-1).view(torch.uint8).split(_PIECE) if received[name].numel() else ():
            sent = piece.to(device)
            distributed.broadcast(sent, src=0)
            if not is_first:
                piece.copy_(sent)
    return received


def _from_process_0(value: T) -> T:
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compare facts by name with rank 0's; every process calls this at the same point of its run.

    Raises:
        ConfigError: on the process that has a different fact.
    """
    first = json.loads(broadcast_text(json.dumps(dict(facts))))
    differing = sorted(name for name in {*first, *facts} if first.get(name) != facts.get(name))
    if differing:
        shown = "; ".join(f"{name} is {facts.get(name)}, there {first.get(name)}" for name in differing[:_SHOWN])
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise ConfigError(
            f"This process, on {socket.gethostname()}, would not train what rank 0 trains: {shown}{more}. "
            f"Start every machine with the same flags, files, data and checkout."
        )


@torch.no_grad()
def fingerprints(modules: Mapping[str, Iterable[Tensor]], device: torch.device) -> Int64[Tensor, " M"]:
    """A checksum of each module's tensors, computed where they are, without waiting for the device.

    Bits are read as integers of at most 32 bits, multiplied by odd 64-bit weights that depend on the position, and
    summed modulo 2^64. A single integer that differs always shows; of other differences all but one in 2^32 do.

    Args:
        modules: the tensors of each module, of any dtype, always in the same order.
        device: of the result.
    """
    sums = [_fingerprint(tensors, device) for tensors in modules.values()]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64, device=device)


def _fingerprint(tensors: Iterable[Tensor], device: torch.device) -> Int64[Tensor, ""]:
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        bits = tensor.reshape(-1).view(_INTEGERS.get(tensor.element_size(), torch.int32))
        for chunk in bits.split(_CHUNK):
            weighted = (chunk * _weights(chunk.device)[: len(chunk)]).sum()
            # An odd factor loses no bit, and distinguishes chunks and tensors that have swapped places.
            total = total * 0x5851F42D4C957F2D + weighted.to(device)
    return total


@cache
def _weights(device: torch.device) -> Int64[Tensor, " n"]:
    """Odd 64-bit numbers without a pattern: the position, mixed as in SplitMix64."""
    mixed = torch.arange(1, _CHUNK + 1, device=device) * -0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return (mixed ^ (mixed >> 31)) | 1


def check_replicas(modules: Mapping[str, Iterable[Tensor]], device: torch.device, step: int) -> None:
    """Compare modules over all processes, in one message; with one process, do nothing.

    Args:
        modules: as for `fingerprints`, with the same names in the same order on every process.
        device: of the process group's messages.
        step: the step just done, for the message.

    Raises:
        ReplicaError: on every process; names each module that differs, and the ranks whose is not that of most.
    """
    if not is_distributed():
        return
    own = fingerprints(modules, device)
    gathered = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, own)
    by_module = torch.stack(gathered, dim=1).tolist()
    found = [_difference(name, values) for name, values in zip(modules, by_module, strict=True) if len(set(values)) > 1]
    if found:
        raise ReplicaError(
            f"After step {step} the processes no longer hold the same parameters: {'; '.join(found)}. Go back to a "
            f"checkpoint from before that step. If it happens again at the same step, it is an error in arcdist; at "
            f"another, suspect the machine of that rank, which heartbeats/ in the run folder names."
        )


def _difference(module: str, values: Sequence[int]) -> str:
    """Which ranks differ from the most common fingerprint, from the fingerprints in the order of ranks."""
    holders: dict[int, list[int]] = {}
    for rank, value in enumerate(values):
        holders.setdefault(value, []).append(rank)
    common = max(holders, key=lambda value: len(holders[value]))
    names = {value: _ranks(ranks) for value, ranks in holders.items()}
    if is_majority := 2 * len(holders[common]) > len(values):
        names[common] = "the others"
    differing = _ranks([rank for rank, value in enumerate(values) if value != common])
    held = ", ".join(f"{value % 2**64:016x} on {name}" for value, name in names.items())
    return f"{differing}'s {module} differs from {names[common]}'{'' if is_majority else 's'} ({held})"


def _ranks(ranks: Sequence[int]) -> str:
    *first, last = map(str, ranks)
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
