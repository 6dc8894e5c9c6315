"""What a run was: its identity, and where its configuration differs from that of its recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcdist.config import Config, load_config, recipe_names
from arcdist.config.keys import flatten
from arcdist.tracking.run_record import RunRecord
from arcdist.tracking.wording import DASH


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A key that the run has otherwise than its recipe."""

    key: str
    run: str
    recipe: str


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """What the run was, a name and a value each."""
    identity, config = record.identity, record.config
    scored = len(record.validations[-1].results) if record.validations else None
    return [
        ("recipe", identity.recipe or "none: a configuration of its own"),
        ("data", f"{identity.source} ({_value(config, 'data.split')})"),
        ("checksums of the tasks", _listed({role: digest[:12] for role, digest in identity.data.items()})),
        ("validation queries", DASH if scored is None else f"{scored:,}"),
        ("Qwen", f"{_value(config, 'qwen.model')}, LoRA rank {_value(config, 'qwen.lora_r')}"),
        (
            "agent",
            f"{_value(config, 'agent.kind')}, width {_value(config, 'agent.hidden_dim')}, "
            f"{_value(config, 'agent.max_steps')} planning steps",
        ),
        ("batch size", _value(config, "train.batch_size")),
        ("seed", _value(config, "train.seed")),
        ("device", identity.device),
        ("processes", str(identity.processes)),
        ("DeepSpeed", "no" if identity.zero_stage is None else f"ZeRO-{identity.zero_stage}"),
        ("precision", _value(config, "train.precision")),
        ("started", _time(identity.started)),
        ("commit", identity.git_commit or DASH),
        ("versions", _listed(identity.versions)),
        ("id, in W&B too" if (Path(record.place) / "wandb").is_dir() else "id", identity.id),
        ("group of runs that repeat it", identity.group),
        ("folder", record.place),
    ]


def differences(record: RunRecord) -> tuple[str, list[Difference]]:
    """What the configuration is compared with, in words, and the keys that differ; the run's folder is left out."""
    recipe = record.identity.recipe
    if recipe in recipe_names():
        against, base = f"the recipe {recipe}", load_config(["--recipe", recipe]).config
    else:
        against, base = "the defaults", Config()
    expected = {key: shown(setting) for key, setting in flatten(base).items()}
    found = [
        Difference(key=key, run=shown(setting), recipe=expected.get(key, DASH))
        for key, setting in record.config.items()
        if key != "output.dir" and shown(setting) != expected.get(key)
    ]
    return against, found


def shown(setting: Any) -> str:
    """A value of a configuration as one would write it into a file."""
    if isinstance(setting, list | tuple):
        return f"[{', '.join(map(str, setting))}]"
    if setting is None:
        return "null"
    return str(setting).lower() if isinstance(setting, bool) else str(setting)


def _value(config: Mapping[str, Any], key: str) -> str:
    """A dash where the run knew no such key."""
    return shown(config[key]) if key in config else DASH


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or DASH


def _time(started: str) -> str:
    try:
        return f"{datetime.fromisoformat(started).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    except ValueError:
        return started
