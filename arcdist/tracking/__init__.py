"""Where a run's numbers, lines and pictures go. Nothing flows back from here into training."""

from arcdist.tracking.console import MovingPace, PhaseLines, ProgressBar, epoch_table, log_table, no_log, open_log
from arcdist.tracking.metrics import Record, TrainingMetricsTracker
from arcdist.tracking.mirror import Mirrors, check_mirrors, open_mirrors
from arcdist.tracking.run_folder import discard_run_folder, make_run_folder

__all__ = [
    "Mirrors",
    "MovingPace",
    "PhaseLines",
    "ProgressBar",
    "Record",
    "TrainingMetricsTracker",
    "check_mirrors",
    "discard_run_folder",
    "epoch_table",
    "log_table",
    "make_run_folder",
    "no_log",
    "open_log",
    "open_mirrors",
]
