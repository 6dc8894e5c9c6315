"""Where a run's numbers, lines and pictures go. Nothing flows back from here into training."""

from arcdist.tracking.log import console, log_table, no_log, open_log
from arcdist.tracking.metrics import Record, TrainingMetricsTracker
from arcdist.tracking.plots import ARC_COLORS, Example, draw_grids, plot_examples, plot_metrics
from arcdist.tracking.progress import ProgressBar
from arcdist.tracking.run_folder import discard_run_folder, make_run_folder
from arcdist.tracking.table import epoch_table

__all__ = [
    "ARC_COLORS",
    "Example",
    "ProgressBar",
    "Record",
    "TrainingMetricsTracker",
    "console",
    "discard_run_folder",
    "draw_grids",
    "epoch_table",
    "log_table",
    "make_run_folder",
    "no_log",
    "open_log",
    "plot_examples",
    "plot_metrics",
]
