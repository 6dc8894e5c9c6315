"""Whether all processes run the same thing: each machine reads flags, files and data of its own."""

import json
import socket
from collections.abc import Mapping

from arcdist.distributed.exchange import hear_from_first
from arcdist.errors import ConfigError

_SHOWN = 3
"""How many differences a message names."""


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compare facts of this process with rank 0's.

    Args:
        facts: by name; every process gives them at the same point of its run.

    Raises:
        ConfigError: a fact differs, and this is the process whose it is.
    """
    first: dict[str, str] = json.loads(hear_from_first(json.dumps(dict(facts))))
    differing = sorted(name for name in {*first, *facts} if first.get(name) != facts.get(name))
    if differing:
        shown = "; ".join(f"{name} is {facts.get(name)}, there {first.get(name)}" for name in differing[:_SHOWN])
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise ConfigError(
            f"This process, on {socket.gethostname()}, would not train what rank 0 trains: {shown}{more}. "
            f"Start every machine with the same flags, files, data and checkout."
        )
