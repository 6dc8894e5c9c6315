"""The steps between two log lines, as one."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from arcdist.training.step import StepReport


class Interval:
    """Means of the metrics over queries, means and maxima of the gradient norms over steps, and the pace."""

    def __init__(self) -> None:
        self.largest_norms: dict[str, float] = {}
        self.steps = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._norm_sums: dict[str, float] = defaultdict(float)
        self._queries = 0
        self._tokens = 0
        self._seconds = 0.0

    def add(self, report: StepReport, *, seconds: float) -> None:
        """Take in a step and what it took, its wait for data included."""
        self.steps += 1
        self._queries += report.queries
        self._tokens += report.tokens
        self._seconds += seconds
        norms = {f"grad_norm/{name}": norm for name, norm in report.group_norms.items()}
        for name, value in report.metrics.items():
            self._sums[name] += value * report.queries  # The last batch of an epoch may be smaller.
        for name, norm in norms.items():
            self._norm_sums[name] += norm
        for name, norm in report.group_norms.items():
            self.largest_norms[name] = max(norm, self.largest_norms.get(name, 0.0))

    def means(self) -> dict[str, float]:
        """Metrics, `grad_norm/<group>`, and `pairs_per_s` and `tokens_per_s`; only the pace if nothing was added."""
        seconds = max(self._seconds, 1e-9)
        means = {name: total / self._queries for name, total in self._sums.items()}
        means |= {name: total / self.steps for name, total in self._norm_sums.items()}
        return means | {"pairs_per_s": self._queries / seconds, "tokens_per_s": self._tokens / seconds}

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "steps": self.steps,
            "queries": self._queries,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "sums": dict(self._sums),
            "norm_sums": dict(self._norm_sums),
            "largest_norms": dict(self.largest_norms),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()` of another run."""
        self.steps, self._queries, self._tokens = state["steps"], state["queries"], state["tokens"]
        self._seconds = state["seconds"]
        self._sums = defaultdict(float, state["sums"])
        self._norm_sums = defaultdict(float, state["norm_sums"])
        self.largest_norms = dict(state["largest_norms"])
