"""The steps between two log lines, as one."""

import time
from collections import defaultdict

from arcdist.training.step import StepReport


class Interval:
    """Means of the metrics, means and maxima of the gradient norms, and the pace, since the last `clear`."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._steps = 0
        self._sums: dict[str, float] = defaultdict(float)
        self._norm_sums: dict[str, float] = defaultdict(float)
        self.largest_norms: dict[str, float] = {}
        self._queries = 0
        self._tokens = 0
        self._start = time.perf_counter()

    def add(self, report: StepReport, *, queries: int, tokens: int) -> None:
        """Take in a step."""
        self._steps += 1
        self._queries += queries
        self._tokens += tokens
        for name, value in report.metrics.items():
            self._sums[name] += value
        for name, norm in report.group_norms.items():
            self._norm_sums[name] += norm
            self.largest_norms[name] = max(norm, self.largest_norms.get(name, 0.0))

    def means(self) -> dict[str, float]:
        """Metrics, `grad_norm/<group>`, queries and tokens a second."""
        steps = max(1, self._steps)
        seconds = max(time.perf_counter() - self._start, 1e-9)
        return {
            **{name: total / steps for name, total in self._sums.items()},
            **{f"grad_norm/{name}": total / steps for name, total in self._norm_sums.items()},
            "pairs_per_s": self._queries / seconds,
            "tokens_per_s": self._tokens / seconds,
        }
