"""The launch as a run understands it, and its process group."""

import socket
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

from arcdist.config import Config
from arcdist.distributed import local_world_size
from arcdist.distributed.collectives import is_distributed
from arcdist.distributed.environment import launcher_keeps_store, rank, store_address, store_key, world_size
from arcdist.doctor.examination import Finding, Verdict, failure, installed_version, warning
from arcdist.engine.deepspeed_config import read_deepspeed_config
from arcdist.engine.platform import Platform, check_launch_settings, deepspeed_config_file
from arcdist.errors import ConfigError, DistributedError, kind_and_reason, reason

_POLL_SECONDS = 0.1
_READING_SECONDS = 5.0
"""How long rank 0 waits for others that have not read yet, and may have failed."""
_EXCHANGES = {"1 KB": (2**10, 20), "64 MB": (2**26, 5)}
"""Bytes, and how often they are exchanged; the second about the gradients of Qwen2.5-1.5B's adapters."""
_SLOW_SECONDS = 1.0
"""For 64 MB, which every step waits for."""
_MOST_SECONDS = 60.0
"""What the first exchange may take: with NCCL all connections are made in it."""


class TextExchange:
    """Gathers short texts through the store at which the launcher has processes meet. One process sends nothing.

    Args:
        patience: seconds to wait for the store, and for the slowest process each time.

    Raises:
        ConfigError: several processes, and no launcher that says where they meet.
        DistributedError: the store does not answer.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._store: TCPStore | None = None
        if world_size() == 1:
            return
        address = store_address()
        if address is None:
            raise ConfigError(
                f"WORLD_SIZE is {world_size()}, but there is no MASTER_ADDR and MASTER_PORT: start several processes "
                f"with `accelerate launch`."
            )
        # Another launcher than torchrun leaves the store to rank 0, whose process group will share it.
        opens = rank() == 0 and not launcher_keeps_store()
        try:
            if not opens:
                _wait_until_it_answers(address, patience)
            limit = timedelta(seconds=patience)
            self._store = TCPStore(*address, is_master=opens, timeout=limit, wait_for_workers=False, multi_tenant=opens)
        except (OSError, RuntimeError) as error:
            raise DistributedError(
                f"Rank {rank()} does not reach the store of rank 0's machine at {address[0]}:{address[1]} "
                f"({reason(error)}): check main_process_ip and main_process_port, and that no firewall is between the "
                f"machines."
            ) from error

    def gather(self, topic: str, text: str) -> Sequence[str | None]:
        """Every process's text on a topic, by rank; None for a process that has not given it in time.

        Each process asks for a topic once.
        """
        store = self._store
        if store is None:
            return [text]
        prefix = store_key(f"texts/{topic}")
        store.set(f"{prefix}/{rank()}", text)
        texts: dict[int, str] = {}
        give_up = time.monotonic() + self._patience
        while True:
            for number in set(range(world_size())) - texts.keys():
                if store.check([f"{prefix}/{number}"]):
                    texts[number] = store.get(f"{prefix}/{number}").decode()
            if len(texts) == world_size() or time.monotonic() > give_up:
                break
            time.sleep(_POLL_SECONDS)
        if not launcher_keeps_store():
            # The store goes when rank 0 ends, so rank 0 lets the others read first.
            readers = store.add(f"{prefix}/readers", 1)
            give_up = time.monotonic() + _READING_SECONDS
            while rank() == 0 and readers < len(texts) and time.monotonic() < give_up:
                time.sleep(_POLL_SECONDS)
                readers = store.add(f"{prefix}/readers", 0)
        return [texts.get(number) for number in range(world_size())]


def _wait_until_it_answers(address: tuple[str, int], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            # Asked first, because torch writes a page to stderr when it cannot connect.
            socket.create_connection(address, timeout=seconds).close()
            return
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_POLL_SECONDS)


def check_all_reduce(device: torch.device, timeout: float) -> Finding:
    """Sums over all processes of numbers that differ from process to process: their values and their pace.

    Args:
        device: of this process.
        timeout: seconds after which PyTorch ends a process whose exchange is stuck.
    """
    if not is_distributed():
        return Finding(found="one process, which has nobody to exchange with")
    backend = distributed.get_backend()
    advice = f"Name the interface by which the machines reach each other, {backend.upper()}_SOCKET_IFNAME=eth0 for one."
    if backend == "nccl":
        advice += " NCCL_DEBUG=INFO shows what is tried; a container needs --shm-size=8g or --ipc=host."
    try:
        # Half, so that the doctor reports it before the process is ended.
        _connect(device, min(_MOST_SECONDS, timeout / 2))
        wrong = [name for name, (size, _) in _EXCHANGES.items() if not _is_right(device, size)]
        medians = [_median_seconds(device, size, repeats) for size, repeats in _EXCHANGES.values()]
        seconds = torch.tensor(medians, dtype=torch.float64, device=device)
        distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    except (RuntimeError, TimeoutError) as error:
        return failure(f"failed with {backend}: {kind_and_reason(error)}", advice)
    if wrong:
        return failure(
            f"The sum of {' and of '.join(wrong)} is wrong.",
            "Suspect the driver, or the link between GPUs: try again with NCCL_P2P_DISABLE=1.",
        )
    latency, slowest = seconds.tolist()
    pace = _EXCHANGES["64 MB"][0] / slowest
    found = f"right sums; 1 KB in {latency * 1e3:.2f} ms, 64 MB in {slowest * 1e3:.0f} ms ({pace / 1e9:.2f} GB/s)"
    return warning(f"{found}, which is slow", advice) if slowest > _SLOW_SECONDS else Finding(found=found)


def _connect(device: torch.device, seconds: float) -> None:
    """Exchange something for the first time, without waiting longer than that.

    Raises:
        TimeoutError: in its place; the exchange may still continue.
    """
    done: Future[None] = Future()

    def exchange() -> None:
        try:
            number = torch.ones(1, device=device)
            distributed.all_reduce(number)
            number.item()  # On a GPU, the sum has only been asked for.
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    # NCCL connects within the call itself, asynchronous or not, and may wait there for ever. No executor: the program
    # would wait for its thread at the end.
    threading.Thread(target=exchange, name="first exchange", daemon=True).start()
    try:
        done.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer from the other processes in {seconds:.0f} s") from None


def _is_right(device: torch.device, size: int) -> bool:
    # Small whole numbers, whose sums float32 holds exactly in any order.
    pattern = torch.arange(size // 4, device=device, dtype=torch.float32) % 7
    processes = distributed.get_world_size()
    sums = (distributed.get_rank() + 1) * pattern
    distributed.all_reduce(sums)
    return torch.equal(sums, processes * (processes + 1) / 2 * pattern)


def _median_seconds(device: torch.device, size: int, repeats: int) -> float:
    numbers = torch.zeros(size // 4, device=device)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        distributed.all_reduce(numbers)
        numbers[0].item()  # On a GPU, all before has only been asked for.
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def check_launch(config: Config) -> Finding:
    """How many processes, on how many machines, and what runs Qwen.

    Raises:
        ConfigError: the launcher and the configuration contradict each other, or cannot go together.
    """
    check_launch_settings(config)
    processes = world_size()
    found = "one process"
    if processes > 1:
        machines = processes // local_world_size()
        found = f"{processes} processes on {machines} machine{'' if machines == 1 else 's'}"
    file = deepspeed_config_file()
    if file is not None:
        stage = read_deepspeed_config(file)["zero_optimization"]["stage"]
        found += f", DeepSpeed ZeRO-{stage} ({file})"
    elif processes > 1:
        found += ", each with the whole of Qwen (DDP)"
    return Finding(found=found, differing=Verdict.FAIL)


def check_deepspeed() -> Finding:
    """Whether DeepSpeed is there, if the launch asks for it."""
    version = installed_version("deepspeed")
    try:
        needed = deepspeed_config_file() is not None
    except ConfigError:
        needed = True
    if not needed:
        return Finding(found=f"{version or 'not installed'}; this launch does not need it")
    if version is None:
        return failure(
            "not installed, and the launch asks for it",
            "Install it with `pip install 'arcdist[deepspeed]'` (in a checkout `pip install '.[deepspeed]'`), or "
            "launch with accelerate_configs/multi_gpu.yaml, which needs none.",
        )
    return Finding(found=version, differing=Verdict.WARN)


def check_platform(platform: Platform, config: Config) -> Finding:
    """What was started.

    Raises:
        ConfigError: a number in DeepSpeed's file that is not the run configuration's.
    """
    # The width of the model only fills in sizes, of which nothing is made here.
    platform.zero_config(config, hidden_size=1)
    found = f"Accelerate on {platform.accelerator.device}, precision {config.train.precision}"
    if distributed.is_initialized():
        found += f"; process group of {distributed.get_world_size()}, {distributed.get_backend()}"
    return Finding(found=found)
