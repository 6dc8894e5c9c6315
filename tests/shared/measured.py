"""Numbers of a run that the clock or the installation gives, not the seed: no two runs have them alike."""

from typing import Any

MEASURED = frozenset(
    {
        "pairs_per_s",
        "tokens_per_s",
        "time/elapsed_s",
        "time/device_hours",
        "time/tracking_s",
        "seconds",
        "cost",
        "versions",
    }
)


def without_measured(value: Any) -> Any:
    """Records, or a state, without such numbers at any depth."""
    if isinstance(value, dict):
        return {name: without_measured(entry) for name, entry in value.items() if name not in MEASURED}
    return [without_measured(entry) for entry in value] if isinstance(value, list) else value
