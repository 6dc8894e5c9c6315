"""What a checkpoint holds of a session: tensors by name, a few numbers, and the name of the frozen base."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in its __all__
from torch import Tensor
from transformers import PreTrainedConfig

from arcdist.checkpoint.store import Snapshot
from arcdist.config import Config, QwenConfig
from arcdist.config.keys import build, flatten
from arcdist.data import read_task_sets, tasks_digest
from arcdist.data.text import has_random_weights
from arcdist.engine import on_cpu
from arcdist.errors import ConfigError, DataError, DistributedError, PlatformError, reason
from arcdist.files import expanded
from arcdist.host import versions
from arcdist.rng import PURPOSES
from arcdist.training.session import Session


def take_snapshot(session: Session, progress: Mapping[str, Any]) -> Snapshot | None:
    """A run's whole state in memory, independent of how many processes share it. All processes call it together.

    Args:
        session: of the run.
        progress: what the loop knows.

    Returns:
        The copy on the process that writes files; None on the others, which only take part in gathering it.

    Raises:
        DistributedError: adapters came back empty.
    """
    engines, models = session.engines, session.models
    weights, moments = gather_weights(session, keep=session.is_main), gather_moments(session, keep=session.is_main)
    if not session.is_main:
        return None
    kept, prompts = models.prompts.state()
    state = {
        **progress,
        "steps_of_schedules": {name: engine.schedule.steps_done for name, engine in engines.by_name().items()},
        "loss_scale": engines.precision.state(),
        "averaged_agent": {"updates": models.averaged_agent.updates},
        "prompts": kept,
        "random_streams": {"seed": session.config.train.seed, "purposes": list(PURPOSES)},
        "data": session.data,
        "tasks": list(session.training.collator.task_rows),
        "config": flatten(session.config),
        "processes": session.accelerator.num_processes,
        "versions": versions(),
    }
    return Snapshot(weights=weights, moments=moments, prompts=prompts, state=state)


def restore(session: Session, snapshot: Snapshot) -> None:
    """Set what `take_snapshot` gave, on any number of processes under any engine. All processes call it together.

    Raises:
        ConfigError: the state belongs to another configuration.
    """
    state, engines, models = snapshot.state, session.engines, session.models
    load_weights(session, snapshot.weights)
    for name, engine in engines.by_name().items():
        engine.load_moments(tensors_of(name, snapshot.moments))
        engine.schedule.steps_done = state["steps_of_schedules"][name]
    engines.precision.load_state(state["loss_scale"])
    models.averaged_agent.updates = state["averaged_agent"]["updates"]
    models.prompts.load_state(state["prompts"], snapshot.prompts)


def gather_weights(session: Session, *, keep: bool = True) -> dict[str, Tensor]:
    """All trainable state by name, whole and on the CPU; the frozen base is never part of it.

    `qwen.` are adapters, projection and control MLP, `grid.` agent, solver with its memory, and EFE; then `refiner.`,
    and `averaged_agent.` if an average is kept. All processes call it together; without `keep` it is empty.

    Raises:
        DistributedError: adapters came back empty.
    """
    parts = {name: engine.gather_weights(keep=keep) for name, engine in session.engines.by_name().items()}
    empty = [name for name, value in parts["qwen"].items() if not value.numel()]
    if empty:
        raise DistributedError(f"Gathering Qwen's weights left {', '.join(empty)} empty: nothing was saved.")
    models = session.models
    if keep and models.averaged_agent.module is not models.agent:
        state = models.averaged_agent.module.state_dict()
        parts["averaged_agent"] = {name: on_cpu(value) for name, value in state.items()}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def gather_moments(session: Session, *, keep: bool = True) -> dict[str, Tensor]:
    """State of the optimizers by parameter. All processes call it together; without `keep` it is empty."""
    return {
        f"{part}.{name}": value
        for part, engine in session.engines.by_name().items()
        for name, value in engine.gather_moments(keep=keep).items()
    }


def load_weights(session: Session, weights: Mapping[str, Tensor]) -> None:
    """Set what `gather_weights` gave.

    Raises:
        ConfigError: the weights belong to another configuration.
    """
    for name, engine in session.engines.by_name().items():
        engine.load_weights(tensors_of(name, weights))
    models = session.models
    if models.averaged_agent.module is not models.agent:
        try:
            models.averaged_agent.module.load_state_dict(tensors_of("averaged_agent", weights))
        except RuntimeError as error:
            raise ConfigError(f"The weights do not fit the configured models: {error}") from error


def replicated(session: Session) -> dict[str, Iterable[Tensor]]:
    """What every process holds a copy of, equal to the last bit, by the names that users know."""
    models = session.models
    modules = {name: getattr(models, name) for name in ("agent", "solver", "efe", "refiner")}
    modules["averaged_agent"] = models.averaged_agent.module
    return {
        "qwen": session.engines.qwen.replicated(),
        **{name: module.state_dict(keep_vars=True).values() for name, module in modules.items()},
    }


def tensors_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a module, by their names in it; `name` is the module's among those of the checkpoint."""
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def config_of(state: Mapping[str, Any]) -> Config:
    """The configuration in a checkpoint's state. A key that is younger than the checkpoint has its default."""
    # JSON has no tuples.
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in state["config"].items()}
    return build({name: known.get(name, value) for name, value in flatten(Config()).items()})


def trained_tasks(state: Mapping[str, Any], config: Config) -> list[str]:
    """Ids of the tasks that a run was trained on, in the order of their vectors.

    A checkpoint that is older than this record has a checksum of them, by which they are read from their source.

    Raises:
        DataError: that source cannot be read, or has changed.
    """
    if "tasks" in state:
        return list(state["tasks"])
    used = read_task_sets(config.data).training.used
    if tasks_digest(used) != state.get("data", {}).get("training"):
        raise DataError(
            f"The checkpoint does not name the tasks that it was trained on, and {config.data.source} has changed "
            f"since: give back its tasks, or resume the run for a step, which writes a checkpoint that names them."
        )
    return [task.id for task in used]


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The frozen base that a checkpoint belongs to, which it names and does not hold."""

    kind: str
    """`hub` or `folder` for pretrained weights, or `random`; `unknown` if an older checkpoint's name may be either."""
    name: str
    """What loads it: a name on the Hub, the path of a folder, or `embedded:tiny`."""
    sha256: str


def base_identity(config: PreTrainedConfig, model: str, *, random: bool, seed: int) -> dict[str, str]:
    """The base's `model` name and `kind`, its `folder` if it has one, and its `sha256`.

    The checksum is that of its weights' files or, if they are random, of what they are made of.

    Args:
        config: of the base, which knows the folder that it came from.
        model: its name in the run's configuration.
        random: whether its weights were drawn.
        seed: that they were drawn with.

    Raises:
        PlatformError: the files of its weights are not where it came from, or cannot be read.
    """
    source = Path(config.name_or_path) if config.name_or_path else None
    given = expanded(model)
    # What came from the Hub lies in its cache, under another name.
    folder = {"folder": str(given.absolute())} if source == given else {}
    if random:
        kind = "random"
        shape = {name: value for name, value in config.to_dict().items() if isinstance(value, int | float | bool)}
        sha256 = hashlib.sha256(repr((sorted(shape.items()), seed)).encode()).hexdigest()
    else:
        kind = "folder" if folder else "hub"
        sha256 = _checksum_of_weights(source, model)
    return {"model": model, "kind": kind, **folder, "sha256": sha256}


def read_base(identity: Mapping[str, str], qwen: QwenConfig) -> Base:
    """The base that `base_identity` named; an older version gave no kind and no folder.

    Raises:
        DataError: it names none.
    """
    if missing := {"model", "sha256"} - identity.keys():
        raise DataError(f"The checkpoint does not say what base it belongs to: it lacks {', '.join(sorted(missing))}.")
    model = identity["model"]
    kind = identity.get("kind") or ("random" if has_random_weights(qwen.model, qwen.init) else "unknown")
    if kind == "unknown":
        # As far as the name tells: whether a folder of that name is here now says nothing about the run.
        try:
            validate_repo_id(model)
        except HFValidationError:
            kind = "folder"
    name = str(expanded(model)) if model.startswith("~") else model
    return Base(kind=kind, name=identity.get("folder", name), sha256=identity["sha256"])


def _checksum_of_weights(folder: Path | None, model: str) -> str:
    digest = hashlib.sha256()
    try:
        files = sorted(folder.glob("*.safetensors")) if folder else []
        for file in files:
            digest.update(f"{file.name}\0{_checksum(file)}\0".encode())
    except OSError as error:
        raise PlatformError(
            f"qwen.model {model!r}: {error.filename} cannot be read ({reason(error)}), and a checkpoint has to name "
            f"the weights that it belongs to: see who may read them."
        ) from error
    if not files:
        raise PlatformError(
            f"qwen.model {model!r}: there are no weights as safetensors in {folder or 'any folder'}, where they were "
            f"read from, and a checkpoint has to name those that it belongs to: leave them there during a run."
        )
    return digest.hexdigest()


def _checksum(file: Path) -> str:
    """SHA-256 of a file. The Hub's cache names a large file after it, and it is not computed again.

    There, and in no other place, `models--NAME/snapshots/COMMIT/FILE` links to `models--NAME/blobs/SHA-256`. Small
    files have Git's shorter checksums for names.
    """
    blob, snapshots = file.resolve(), file.parent.resolve().parent
    cached = snapshots.parent.name.startswith("models--") and snapshots.name == "snapshots"
    linked = file.is_symlink() and blob.parent == snapshots.parent / "blobs"
    if cached and linked and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
