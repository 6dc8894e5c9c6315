"""What a launcher's environment says of this process, read at each call. Without a launcher: one process, rank 0."""

import os


def rank() -> int:
    """This process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the run has, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes of the run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that speaks to the user and writes files."""
    return rank() == 0


def store_address() -> tuple[str, int] | None:
    """Host and port of the store through which processes meet; none where no launcher has named them."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    return (host, int(port)) if host and port else None


def launcher_keeps_store() -> bool:
    """Whether the store is the first machine's launcher's.

    Such a store (torchrun's, and with it `accelerate launch`'s) is there before any process starts and stays until all
    have ended well. Other launchers leave it to rank 0, which opens it with the process group.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def attempt() -> str:
    """Tells this start of the run from others that the same store has seen: torchrun may start a failed run again."""
    return f"{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def is_restart() -> bool:
    """Whether the launcher has started the processes again, because one of them had failed."""
    return world_size() > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
