"""Puzzles to look at: what the models are given of a task, and what a data source holds. No model is built."""

from arcdist.preview.wanted import PREVIEW, Wanted, read_wanted

__all__ = ["PREVIEW", "Wanted", "read_wanted"]
