"""Runs side by side: which is better, by how much, and why."""

from arcdist.comparison.comparison import Comparison, compare
from arcdist.comparison.program import compare_runs

__all__ = ["Comparison", "compare", "compare_runs"]
