"""Engines: forward, backward, norms, step, state. Nothing else knows which one runs.

`arcdist.engine.deepspeed` is imported by whoever has found that DeepSpeed was asked for.
"""

from arcdist.engine.engines import Engines
from arcdist.engine.interface import Engine, OptimizerSettings, ParameterGroup
from arcdist.engine.plain import PlainEngine
from arcdist.engine.precision import Precision
from arcdist.engine.trained_state import on_cpu

__all__ = ["Engine", "Engines", "OptimizerSettings", "ParameterGroup", "PlainEngine", "Precision", "on_cpu"]
