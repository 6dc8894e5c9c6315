"""What the tests of the training loop share."""

import pytest

from arcdist.distributed import Heartbeat
from arcdist.tracking import TrainingMetricsTracker
from arcdist.training.loop import Loop


@pytest.fixture
def make_loop(build_tiny, tmp_path):
    """A loop on a tiny session, ready to run in the test's folder."""
    return lambda *flags: Loop(build_tiny(*flags), tmp_path, Heartbeat(tmp_path, 0))


@pytest.fixture
def undrawn(monkeypatch):
    """Draw nothing: pictures take as long as the steps, and are drawn from numbers that are compared."""
    monkeypatch.setattr(TrainingMetricsTracker, "draw", lambda self, **_: self.plot_path)
