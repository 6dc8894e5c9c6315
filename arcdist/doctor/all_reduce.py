"""Whether the processes can add up numbers, and how fast."""

import queue
import statistics
import threading
import time

import torch
from torch import distributed

from arcdist.distributed.exchange import several_processes
from arcdist.doctor.finding import Finding, failure, headline, warning

_SIZES = {"1 KB": 2**10, "64 MB": 2**26}
_REPEATS = {"1 KB": 20, "64 MB": 5}
_SLOW_SECONDS = 1.0
"""For 64 MB, about the gradients of Qwen2.5-1.5B's adapters, which every step waits for."""
_MOST_SECONDS = 60.0
"""What the first exchange may take: with NCCL all connections are made in it."""


def check_all_reduce(device: torch.device, timeout: float) -> Finding:
    """Sums over all processes of numbers that differ from process to process: their values and their pace.

    Args:
        device: of this process.
        timeout: seconds after which PyTorch ends a process whose exchange is stuck.
    """
    if not several_processes():
        return Finding(found="one process, which has nobody to exchange with")
    backend = distributed.get_backend()
    mend = f"Name the interface by which the machines reach each other, {backend.upper()}_SOCKET_IFNAME=eth0 for one."
    if backend == "nccl":
        mend += " NCCL_DEBUG=INFO shows what is tried; a container needs --shm-size=8g or --ipc=host."
    try:
        # Half, so that the doctor tells, not the process's end.
        _connect(device, min(_MOST_SECONDS, timeout / 2))
        wrong = [name for name, size in _SIZES.items() if not _is_right(device, size)]
        seconds = torch.tensor([_seconds(device, name) for name in _SIZES], dtype=torch.float64, device=device)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    except (RuntimeError, TimeoutError) as error:
        return failure(f"failed with {backend}: {headline(error)}", mend)
    if wrong:
        return failure(
            f"The sum of {' and of '.join(wrong)} is wrong.",
            "Suspect the driver, or the link between GPUs: try again with NCCL_P2P_DISABLE=1.",
        )
    latency, slowest = seconds.tolist()
    pace = _SIZES["64 MB"] / slowest
    found = f"right sums; 1 KB in {latency * 1e3:.2f} ms, 64 MB in {slowest * 1e3:.0f} ms ({pace / 1e9:.2f} GB/s)"
    return warning(f"{found}, which is slow", mend) if slowest > _SLOW_SECONDS else Finding(found=found)


def _connect(device: torch.device, seconds: float) -> None:
    """Exchange something for the first time, without waiting longer than that.

    Raises:
        TimeoutError: in its place; the exchange may still go on.
    """
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def exchange() -> None:
        try:
            number = torch.ones(1, device=device)
            distributed.all_reduce(number)
            number.item()  # On a GPU, the sum has only been asked for.
        except Exception as error:
            answers.put(error)
        else:
            answers.put(None)

    # A thread, because NCCL connects within the call itself, asynchronous or not, and may wait there for ever.
    threading.Thread(target=exchange, name="first exchange", daemon=True).start()
    try:
        error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer from the other processes in {seconds:.0f} s") from None
    if error is not None:
        raise error


def _is_right(device: torch.device, size: int) -> bool:
    # Small whole numbers, whose sums float32 holds exactly in any order.
    pattern = torch.arange(size // 4, device=device, dtype=torch.float32) % 7
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    sums = (rank + 1) * pattern
    distributed.all_reduce(sums)
    return torch.equal(sums, processes * (processes + 1) / 2 * pattern)


def _seconds(device: torch.device, name: str) -> float:
    """Median time of one exchange, waited for."""
    numbers = torch.zeros(_SIZES[name] // 4, device=device)
    times = []
    for _ in range(_REPEATS[name]):
        start = time.perf_counter()
        distributed.all_reduce(numbers)
        numbers[0].item()  # On a GPU, all before has only been asked for.
        times.append(time.perf_counter() - start)
    return statistics.median(times)
