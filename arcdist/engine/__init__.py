"""Engines: forward, backward, norms, step, state. Nothing else knows which one runs.

Only a run under DeepSpeed imports `arcdist.engine.deepspeed`.
"""

from arcdist.engine.base import (
    Engine,
    Engines,
    OptimizerSettings,
    ParameterGroup,
    Precision,
    RateShare,
    count_weights,
    on_cpu,
)
from arcdist.engine.plain import PlainEngine

__all__ = [
    "Engine",
    "Engines",
    "OptimizerSettings",
    "ParameterGroup",
    "PlainEngine",
    "Precision",
    "RateShare",
    "count_weights",
    "on_cpu",
]
