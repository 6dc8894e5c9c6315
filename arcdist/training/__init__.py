"""Training: a run from its configuration to its last checkpoint."""

from arcdist.training.run import train

__all__ = ["train"]
