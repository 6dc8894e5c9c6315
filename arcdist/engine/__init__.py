"""Engines: forward, backward, norms, step, state. Nothing else knows which one runs.

`arcdist.engine.deepspeed` is imported by whoever has found that DeepSpeed was asked for.
"""

from arcdist.engine.base import Engine, Engines, OptimizerSettings, ParameterGroup, Precision, on_cpu
from arcdist.engine.plain import PlainEngine

__all__ = [
    "Engine",
    "Engines",
    "OptimizerSettings",
    "ParameterGroup",
    "PlainEngine",
    "Precision",
    "on_cpu",
]
