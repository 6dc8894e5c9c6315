"""Several processes: who is who, how one's failure ends all, and whether replicas are still alike.

What is named here needs no torch. `exchange` and `replicas`, which do, are imported by their own names.
"""

from arcdist.distributed.environment import is_main, local_rank, local_world_size, rank, world_size
from arcdist.distributed.heartbeat import Heartbeat
from arcdist.distributed.supervision import FailureWatch, run_guarded

__all__ = [
    "FailureWatch",
    "Heartbeat",
    "is_main",
    "local_rank",
    "local_world_size",
    "rank",
    "run_guarded",
    "world_size",
]
