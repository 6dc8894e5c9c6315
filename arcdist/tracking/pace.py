"""How fast a run is just now."""

from collections import deque

_STEPS = 20


class MovingPace:
    """Queries and tokens a second over the last 20 steps, their waits for data included."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=_STEPS)

    def add(self, queries: int, tokens: int, seconds: float) -> None:
        """Take in a step and what it took."""
        self._steps.append((queries, tokens, seconds))

    @property
    def seconds(self) -> float:
        """What the last step took."""
        return self._steps[-1][2]

    def __str__(self) -> str:
        """As it is shown; nothing before the first step."""
        queries, tokens, seconds = (sum(step[part] for step in self._steps) for part in range(3))
        return f"{_short(queries / seconds)} pairs/s, {_short(tokens / seconds)} tok/s" if seconds else ""


def _short(number: float) -> str:
    """In four characters or so."""
    if number >= 999_500:
        return f"{number / 1e6:.1f}M"
    if number >= 9_995:
        return f"{number / 1e3:.0f}k"
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"
