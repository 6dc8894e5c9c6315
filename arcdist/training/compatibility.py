"""Whether a run may go on under a configuration that is not the one it was saved under."""

import logging
from collections.abc import Mapping
from typing import Any

from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.errors import ConfigError, DataError

_logger = logging.getLogger(__name__)

_MAY_CHANGE = (
    *("output.", "tracking.", "distributed.", "train.accumulation", "train.device", "train.cpu_threads"),
    *("qwen.gradient_checkpointing", "data.source", "data.validation_source"),
)
"""What changes nothing that is computed. Data are compared by their content."""

_WITH_A_WARNING = (
    *("train.epochs", "train.precision", "qwen.dtype", "qwen.model"),
    *("optim.", "reward.", "curriculum.", "efe."),
)
"""What a user may want to change on the way; the curve has a bend there. Another base is told by its checksum."""


def check_configuration(
    config: Config, state: Mapping[str, Any], base: Mapping[str, str], data: Mapping[str, str]
) -> None:
    """Whether a run may go on with this configuration; what bends its curve is logged.

    Args:
        config: of this run.
        state: of the checkpoint.
        base: Qwen's frozen base in this run, as `base_identity` names it.
        data: checksums of this run's tasks, by their role.

    Raises:
        ConfigError: what it may not; both values are named.
        DataError: the state does not say what it is the state of.
    """
    missing = {"config", "data", "base", "step", "epoch", "batch"} - set(state)
    if missing:
        raise DataError(f"The checkpoint's state.json lacks {', '.join(sorted(missing))}: resume from another one.")
    changes = _changes(config, state["config"])
    refused = {name: values for name, values in changes.items() if not name.startswith(_WITH_A_WARNING)}
    if refused:
        named = ", ".join(
            f"{name} is {now}, and the checkpoint's run has {then}" for name, (now, then) in refused.items()
        )
        flags = " ".join(f"--{name} {then}" for name, (_, then) in refused.items())
        raise ConfigError(f"{named}: a run cannot change that on the way. Resume with {flags}, or start a new run.")
    for name, (now, then) in changes.items():
        also = ": the learning rates follow the new length" if name == "train.epochs" else ""
        _logger.warning("%s is %s from here on, no longer %s%s.", name, now, then, also)
    for role, digest in data.items():
        if digest != state["data"][role]:
            raise ConfigError(
                f"The {role} tasks are not those of the checkpoint's run (checksum {digest[:12]}, there "
                f"{state['data'][role][:12]}): name the same ones with --data.source, or start a new run."
            )
    if base["sha256"] != state["base"]["sha256"]:
        raise ConfigError(
            f"Qwen's frozen base is {base['model']} (SHA-256 {base['sha256'][:12]}), and the checkpoint's adapters "
            f"belong to {state['base']['model']} ({state['base']['sha256'][:12]}): give that one with --qwen.model."
        )
    begun = state["epoch"] + (state["batch"] > 0)
    if config.train.epochs < begun:
        raise ConfigError(
            f"train.epochs is {config.train.epochs}, and the checkpoint was taken after {state['step']} steps, in the "
            f"run's epoch {begun}: choose --epochs {begun} or more."
        )


def _changes(config: Config, before: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Each key that matters and differs, with its value now and before as a flag takes it."""
    changes = {}
    for name, value in flatten(config).items():
        # JSON has no tuples. A key that is younger than the checkpoint had its default.
        value = list(value) if isinstance(value, tuple) else value
        if name in before and value != before[name] and not name.startswith(_MAY_CHANGE):
            changes[name] = (_shown(value), _shown(before[name]))
    return changes


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
