"""Engines: backward, norms, step, state. Nothing else knows which one runs."""

from arcdist.engine.plain import Engines, ParameterGroup, PlainEngine

__all__ = ["Engines", "ParameterGroup", "PlainEngine"]
