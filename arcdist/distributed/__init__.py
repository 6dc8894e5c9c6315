"""Several processes: their ranks, what they send each other, and how the failure of one ends all.

What is exported here needs no torch. `arcdist.distributed.collectives`, which does, is imported by its own name.
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
