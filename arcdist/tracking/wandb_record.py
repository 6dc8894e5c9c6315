"""A run as it is looked at afterwards, from what W&B keeps of it: configuration, rows, tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcdist.config.keys import config_keys
from arcdist.errors import ConfigError, DataError
from arcdist.tracking.identity import parse_identity
from arcdist.tracking.metrics import TrainingMetricsTracker
from arcdist.tracking.rows import records_of
from arcdist.tracking.run_record import RunRecord, flat
from arcdist.tracking.validation import Validation
from arcdist.tracking.wandb_keys import BEST_METRIC, QUERIES, RUN, SHOWN, WHOLE
from arcdist.tracking.wandb_tables import validation_of


def make_record(
    place: str, config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], validations: Sequence[Validation]
) -> RunRecord:
    """A run from W&B's configuration and its rows by step.

    Raises:
        ConfigError: it is none of arcdist's.
        DataError: it holds no row.
    """
    try:
        identity = parse_identity(config[RUN])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{place} is no run of arcdist: its configuration in W&B lacks `{RUN}`. Give a run of arcdist."
        ) from error
    if not rows:
        raise DataError(f"{place} holds no logged step yet: wait until the run has made --output.log_every steps.")
    whole = frozenset(config[RUN].get(WHOLE, ()))
    records = [records_of(row, whole) for row in rows]
    tracker = TrainingMetricsTracker(Path(place), config[RUN].get(BEST_METRIC, "val/exact"), writes=False)
    for _, epoch in records:
        if epoch is not None:
            tracker.log_epoch(epoch)
    return RunRecord(
        place=place,
        identity=identity,
        config=dict(_flat_config(config)),
        steps=tuple(step for step, _ in records if step is not None),
        epochs=tuple(tracker.epochs),
        best=tracker.best,
        validations=tuple(validations),
    )


def validations_in(
    place: str, row: Mapping[str, Any], read_table: Callable[[str], Mapping[str, Any] | None]
) -> Iterator[Validation]:
    """The validation of a row, where it has one; `read_table` gives the content of a table by its path, if it is there.

    Raises:
        DataError: the tables are none of a validation.
    """
    queries, shown = (
        read_table(row[name]["path"]) if isinstance(row.get(name), dict) else None for name in (QUERIES, SHOWN)
    )
    if queries is None:
        return
    try:
        yield validation_of(row["epoch"], row["_step"], queries, shown)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: the tables of step {row['_step']} are no validation ({error!r}): leave that run out."
        ) from error


def _flat_config(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    keys = config_keys()
    for name, value in flat({part: value for part, value in config.items() if part not in (RUN, "_wandb")}):
        # A server may keep 1.0 as 1.
        is_float = name in keys and float in (keys[name].type, *getattr(keys[name].type, "__args__", ()))
        yield name, float(value) if is_float and isinstance(value, int) else value
