"""What the launcher's environment variables say of this process; without a launcher, one process of rank 0."""

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
    """Whether this is the process that reports to the user and writes files."""
    return rank() == 0


def store_address() -> tuple[str, int] | None:
    """Host and port of the store through which processes meet; None without a launcher."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    return (host, int(port)) if host and port else None


def launcher_keeps_store() -> bool:
    """Whether the store belongs to the first machine's launcher.

    Such a store (torchrun's, and so `accelerate launch`'s) exists from before any process starts until all have ended
    well. Other launchers leave it to rank 0, which opens it with the process group.
    """
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_key(name: str) -> str:
    """The key under which the store holds something of this start of the run."""
    # torchrun may start a failed run again, with the same store.
    run, restarts = os.environ.get("TORCHELASTIC_RUN_ID", ""), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"arcdist/{run}/{restarts}/{name}"


def is_restart() -> bool:
    """Whether the launcher has started the processes again, because one of them had failed."""
    return world_size() > 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
