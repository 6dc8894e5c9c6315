"""A run's health: red flags, steps that were skipped, replicas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arcdist.tracking.run_record import RunRecord
from arcdist.tracking.wording import counted
from arcdist.training import health

_GRADIENT = "_gradient_zero"
_PATIENCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class RaisedFlag:
    """A red flag that was up at some time."""

    name: str
    first: int
    """The first logged step at which it was up."""
    last: int
    steps: int
    """Logged steps at which it was up."""
    is_up: bool
    """Whether it was up at the last logged step."""
    meaning: str
    mend: str


def raised_flags(steps: Sequence[Mapping[str, Any]]) -> list[RaisedFlag]:
    """The flags of the logged steps, in the order in which they came up."""
    up: dict[str, list[int]] = {}
    for step in steps:
        for name in step.get("flags") or ():
            up.setdefault(str(name), []).append(step["step"])
    return [
        RaisedFlag(
            name=name,
            first=at[0],
            last=at[-1],
            steps=len(at),
            is_up=at[-1] == steps[-1]["step"],
            **_explained(name),
        )
        for name, at in up.items()
    ]


def skipped_steps(steps: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps that were skipped because something was not finite; none where the run did not count them."""
    known = [step["skipped_steps"] for step in steps if step.get("skipped_steps") is not None]
    return known[-1] if known else None


def replicas(record: RunRecord) -> str:
    """What is known of the comparison of what all processes hold alike, as a sentence."""
    if record.identity.processes == 1:
        return "One process: there are no replicas to compare."
    every = record.config.get("distributed.replica_check_every")
    if not every:
        return "The replicas of the processes were not compared."
    # A step is logged before it is compared, and a difference ends the run.
    last = (max(step["step"] for step in record.steps) - 1) // every * every if record.steps else 0
    if last <= 0:
        return f"The replicas of the processes had not been compared yet: they are after each {counted(every, 'step')}."
    return f"The replicas of the processes were alike when they were last known to be compared, after step {last:,}."


def _explained(name: str) -> dict[str, str]:
    flags = {flag.name: flag for flag in vars(health).values() if isinstance(flag, health.Flag)}
    flag = flags.get(name)
    if flag is None and name.endswith(_GRADIENT):
        flag = health.gradient_zero(name.removesuffix(_GRADIENT), _PATIENCE)
    return {"meaning": flag.sentence, "mend": flag.mend} if flag else {"meaning": "", "mend": ""}
