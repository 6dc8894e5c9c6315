"""Red flags of a training run, judged from the numbers that are logged anyway.

A flag says what is wrong and what to try, once when it rises and once when it clears. Two conditions end the run:
a trainable group without a gradient after the first step, and a number that is not finite.
"""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from arcdist.errors import HealthError, NotFiniteError

_logger = logging.getLogger(__name__)

PATIENCE = 100
"""Batches from which on a gradient that stays zero is flagged."""
_WINDOW = 10
"""Points that are compared with others."""
_STEPS_A_POINT = 20
_REWARD_FLOOR = -0.1
_CLEAR_Z = 3.0
"""Beyond three standard deviations of chance a change counts as real; 0.1 % of unchanged windows reach it."""
_VAGUE_Z = 2.0
"""Within two it counts as absent. The gap keeps a flag from flapping."""


class Flag(NamedTuple):
    """A symptom: its name in `steps.jsonl`, what it means, what to try."""

    name: str
    sentence: str
    fix: str


LOSS_NOT_FINITE = Flag(
    "loss_not_finite",
    "A loss or a gradient is NaN or infinite.",
    "Lower --optim.agent_lr and --optim.qwen_lr, or train with --train.precision no.",
)
GROUP_WITHOUT_GRADIENT = Flag(
    "group_without_gradient",
    "A trainable group received no gradient in the first step, so it would never learn.",
    "Give a weight above 0 to a loss that reaches it (--efe.lambda_*, --reward.reward_weight).",
)
LOSS_FLAT = Flag(
    "loss_flat",
    "The loss has not fallen since the start of the run.",
    "Raise --optim.agent_lr, or try --recipe overfit16: it must reach almost every query of its 16 tasks.",
)
LOSS_RISING = Flag(
    "loss_rising",
    "The loss is higher than it was a window ago, beyond its noise.",
    "Lower --optim.agent_lr or lengthen --optim.warmup_steps.",
)
REWARD_LOW = Flag(
    "reward_low",
    "Refined prompts give worse answers: the mean reward stayed below -0.1.",
    "Lower --refiner.rl_delta_scale or --refiner.rl_lr.",
)
ACCURACY_DELTA_ZERO = Flag(
    "accuracy_delta_zero",
    "Refined prompts change no answer: the accuracy delta stayed at exactly 0.",
    "Raise --refiner.rl_delta_scale; harmless where the training queries are solved already.",
)


def gradient_zero(group: str, batches: int = PATIENCE) -> Flag:
    """The flag of a group whose gradient has been zero for so many batches."""
    return Flag(
        f"{group}_gradient_zero",
        f"The gradient of {group} has been zero for {batches} batches.",
        "Check that a loss with a weight reaches it.",
    )


def mann_whitney_z(earlier: Sequence[float], later: Sequence[float]) -> float:
    """How clearly `later` lies above `earlier`, in standard deviations of chance (negative: below).

    z = (U - mn/2) / sqrt(mn(m+n+1)/12), U the number of pairs with later > earlier, ties counting half
    (Mann & Whitney 1947). It compares ranks, so that a single outlier cannot decide it.
    """
    m, n = len(earlier), len(later)
    pairs_above = sum((b > a) + 0.5 * (b == a) for a in earlier for b in later)
    return (pairs_above - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


class _Point(NamedTuple):
    """Means over at least `_STEPS_A_POINT` steps, whatever the log cadence."""

    loss: float
    reward: float
    moved: bool


class RunHealth:
    """Judges a run at log cadence; keeps a few dozen floats.

    A window is 10 points, a point the mean over at least 20 steps. The loss is compared by ranks: the latest window
    with the run's first (flat: a plateau far below the start is no alarm) and with the one before it (rising).

    Args:
        prompt_batches: batches that a prompt serves (`qwen.every`): while all are kept, Qwen has no gradient.
    """

    def __init__(self, prompt_batches: int = 1) -> None:
        self._qwen_patience = PATIENCE + prompt_batches - 1
        self._last_gradient: dict[str, int] = {}
        self._first: list[float] = []
        self._points: deque[_Point] = deque(maxlen=2 * _WINDOW)
        self._pending: list[tuple[float, float, float]] = []
        self._point_start = 0
        self._raised: dict[str, Flag] = {}

    @property
    def flags(self) -> list[str]:
        """Names of the flags that are up, sorted."""
        return sorted(self._raised)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "gradients": dict(self._last_gradient),
            "first": list(self._first),
            "points": [list(point) for point in self._points],
            "pending": [list(means) for means in self._pending],
            "point_start": self._point_start,
            "raised": [list(flag) for flag in self._raised.values()],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()` of another run."""
        self._last_gradient = dict(state["gradients"])
        self._first = list(state["first"])
        self._points = deque((_Point(*values) for values in state["points"]), maxlen=2 * _WINDOW)
        self._pending = [(loss, reward, delta) for loss, reward, delta in state["pending"]]
        self._point_start = state["point_start"]
        self._raised = {values[0]: Flag(*values) for values in state["raised"]}

    def not_finite(self, step: int, numbers: str, in_a_row: int) -> NotFiniteError:
        """Raise the flag of losses or gradients that are NaN or infinite, and give the error that ends the run.

        Args:
            step: the last one that was skipped.
            numbers: what of it is not finite.
            in_a_row: how many such steps came one after the other.
        """
        flag = self._raised[LOSS_NOT_FINITE.name] = LOSS_NOT_FINITE
        last = f", the last of {in_a_row} such steps in a row" if in_a_row > 1 else ""
        return NotFiniteError(
            f"{flag.name} at step {step}: {numbers}{last}. No such step changed a parameter. {flag.fix}"
        )

    def require_gradients(self, norms: Mapping[str, float]) -> None:
        """Check, by the norms after the first step's backward passes, that every trainable group has a gradient.

        Raises:
            HealthError: naming the groups that have none.
        """
        dry = [group for group, norm in norms.items() if norm == 0.0]
        if dry:
            flag = self._raised[GROUP_WITHOUT_GRADIENT.name] = GROUP_WITHOUT_GRADIENT
            raise HealthError(f"{flag.name}: {', '.join(dry)}. {flag.sentence} {flag.fix}")

    def observe(
        self, step: int, *, loss: float, reward: float, accuracy_delta: float, gradient_norms: Mapping[str, float]
    ) -> list[str]:
        """Judge a logged step and return the names of the flags that are up. Changes are logged.

        `loss`, `reward` and `accuracy_delta` are means, `gradient_norms` each group's largest norm before clipping,
        all since the last call: with a cached prompt (`qwen.every`), a single batch may rightly have no gradient.
        """
        for group, norm in gradient_norms.items():
            if norm != 0.0:
                self._last_gradient[group] = step
            batches = step - self._last_gradient.setdefault(group, 0)
            is_zero = batches >= (self._qwen_patience if group == "qwen" else PATIENCE)
            self._settle(step, gradient_zero(group, batches), rises=is_zero, clears=not is_zero)
        self._pending.append((loss, reward, accuracy_delta))
        if step - self._point_start >= _STEPS_A_POINT:
            losses, rewards, deltas = zip(*self._pending, strict=True)
            point = _Point(math.fsum(losses) / len(losses), math.fsum(rewards) / len(rewards), any(deltas))
            self._points.append(point)
            if len(self._first) < _WINDOW:
                self._first.append(point.loss)
            self._pending, self._point_start = [], step
            self._judge_window(step)
        return self.flags

    def _judge_window(self, step: int) -> None:
        points = list(self._points)
        before, latest = points[:-_WINDOW], points[-_WINDOW:]
        if len(latest) < _WINDOW:
            return
        low = sum(point.reward < _REWARD_FLOOR for point in latest)
        self._settle(step, REWARD_LOW, rises=low == _WINDOW, clears=2 * low <= _WINDOW)
        moved = any(point.moved for point in latest)
        self._settle(step, ACCURACY_DELTA_ZERO, rises=not moved, clears=moved)

        if len(before) < _WINDOW:
            return
        losses = [point.loss for point in latest]
        since_start = mann_whitney_z(self._first, losses)
        self._settle(step, LOSS_FLAT, rises=since_start > -_VAGUE_Z, clears=since_start <= -_CLEAR_Z)
        lately = mann_whitney_z([point.loss for point in before], losses)
        self._settle(step, LOSS_RISING, rises=lately >= _CLEAR_Z, clears=lately < _VAGUE_Z)

    def _settle(self, step: int, flag: Flag, *, rises: bool, clears: bool) -> None:
        if flag.name not in self._raised and rises:
            self._raised[flag.name] = flag
            _logger.warning("red flag at step %d, %s: %s %s", step, *flag)
        elif flag.name in self._raised and clears:
            del self._raised[flag.name]
            _logger.info("red flag cleared at step %d: %s", step, flag.name)
