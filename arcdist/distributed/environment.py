"""What the launcher's environment variables say of this process; without a launcher, one process of rank 0."""

import os

from arcdist.errors import ConfigError

_MANY = 2**31 - 1
_NUMBERS = {
    **dict.fromkeys(("RANK", "LOCAL_RANK"), (0, _MANY)),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"), (1, _MANY)),
    "MASTER_PORT": (1, 65535),
}
"""The variables that are whole numbers, with the least and the greatest."""
_OF_SEVERAL = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What each of several processes has to know besides WORLD_SIZE."""
_OTHER_SIZES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""How many processes srun or mpirun has started, which do not set WORLD_SIZE."""
_LAUNCH = "start several processes with `accelerate launch` or `torchrun`, which set it"


def check_environment() -> None:
    """Check what the environment says of this process, before anything reads it.

    Variables that are empty count as not set, and those that only several processes need are not left to one: they are
    removed, because Accelerate and PyTorch read them too.

    Raises:
        ConfigError: a variable is no number or out of range, is missing, or contradicts another. It is named.
    """
    for name in (*_NUMBERS, *_OF_SEVERAL):
        if os.environ.get(name) == "":
            del os.environ[name]
    given = {name: _number(name) for name in _NUMBERS if name in os.environ}
    processes = given.get("WORLD_SIZE", 1)
    for name, sizes in (("RANK", ("WORLD_SIZE",)), ("LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))):
        size = next((size for size in sizes if size in given), "WORLD_SIZE")
        if given.get(name, 0) >= given.get(size, 1):
            size_words = f"{given[size]}, and ranks begin with 0" if size in given else "not set"
            raise ConfigError(
                f"{name} is {given[name]}, but {size} is {size_words}: {_LAUNCH}, or unset {name} for one process."
            )
    missing = [name for name in _OF_SEVERAL if name not in os.environ]
    if processes > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE is {processes}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            f"start several processes with `accelerate launch` or `torchrun`, which set all of them, or unset "
            f"WORLD_SIZE for one process."
        )
    if missing or "WORLD_SIZE" not in given:
        os.environ.pop("LOCAL_RANK", None)
    for name in _OTHER_SIZES if processes == 1 else ():
        size = os.environ.get(name, "")
        if "WORLD_SIZE" in given:
            os.environ.pop(name, None)
        elif size.isdecimal() and int(size) > 1:
            # Each of them would train the whole run.
            raise ConfigError(
                f"{name} is {size}, but WORLD_SIZE is not set, so that these processes do not know of each other: "
                f"let srun or mpirun start `accelerate launch` once a machine, as launch/slurm_multi_node.sh does, or "
                f"set WORLD_SIZE=1 for {size} runs of one process each."
            )


def _number(name: str) -> int:
    text, (least, most) = os.environ[name].strip(), _NUMBERS[name]
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise ConfigError(
            f"{name} is {os.environ[name]!r}, and has to be a whole number from {least}"
            f"{f' to {most}' if most != _MANY else ''}: {_LAUNCH}, or unset {name} for one process."
        )
    return int(text)


def rank() -> int:
    """This process among all, from 0."""
    return int(os.environ.get("RANK") or "0")


def world_size() -> int:
    """How many processes the run has, on all machines."""
    return int(os.environ.get("WORLD_SIZE") or "1")


def local_rank() -> int:
    """This process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or "0")


def local_world_size() -> int:
    """How many processes of the run are on this machine."""
    # The second is what DeepSpeed's launcher sets.
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1")


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
