"""What processes tell each other in words, before they have a process group, or where it fails."""

import socket
import time
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

from arcdist.distributed.environment import attempt, launcher_keeps_store, rank, store_address, world_size
from arcdist.errors import ConfigError, DistributedError

_POLL_SECONDS = 0.1


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
        if self._store is None:
            return [text]
        keys = [f"arcdist/{attempt()}/texts/{topic}/{number}" for number in range(world_size())]
        self._store.set(keys[rank()], text)
        texts: dict[str, str] = {}
        self._until(lambda: texts | {key: ""} if False else len(texts))
        return [texts.get(key) for key in keys]


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
