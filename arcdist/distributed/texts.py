"""What processes tell each other in words, before they have a process group, or where it fails."""

import socket
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

from arcdist.distributed.environment import attempt, launcher_keeps_store, rank, store_address, world_size
from arcdist.errors import ConfigError, DistributedError

_POLL_SECONDS = 0.1
_READING_SECONDS = 5.0
"""How long rank 0 stays for others that have not read yet, and may have failed."""


class TextExchange:
    """Gathers short texts through the store at which the launcher has processes meet. With one nothing is sent.

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
            reason = str(error).strip().partition("\n")[0]
            raise DistributedError(
                f"Rank {rank()} does not reach the store of rank 0's machine at {address[0]}:{address[1]} ({reason}): "
                f"check main_process_ip and main_process_port, and that no firewall is between the machines."
            ) from error

    def gather(self, topic: str, text: str) -> Sequence[str | None]:
        """Every process's text on a topic, by rank; none of a process that has not given it in time.

        Each process asks for a topic once.
        """
        store = self._store
        if store is None:
            return [text]
        prefix = f"arcdist/{attempt()}/texts/{topic}"
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
            self._stay_until_read(store, f"{prefix}/readers", len(texts))
        return [texts.get(number) for number in range(world_size())]

    def _stay_until_read(self, store: TCPStore, key: str, readers: int) -> None:
        """The store goes when rank 0 ends, so rank 0 lets the others read first."""
        count = store.add(key, 1)
        give_up = time.monotonic() + _READING_SECONDS
        while rank() == 0 and count < readers and time.monotonic() < give_up:
            time.sleep(_POLL_SECONDS)
            count = store.add(key, 0)


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
