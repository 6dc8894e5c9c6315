"""A trained solver, read back from a run, a checkpoint or an export."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from arcdist.checkpoint.export import TASKS, best_whole, config_of
from arcdist.checkpoint.state import tensors_of
from arcdist.config import Config, load_config
from arcdist.data import read_task_sets, tasks_digest
from arcdist.engine import Precision
from arcdist.errors import ConfigError, DataError
from arcdist.evaluation import Predictor
from arcdist.training.models import build_models

_STATE = {"config": dict, "data": dict}


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Models that answer puzzles, and what is known of their training."""

    predictor: Predictor
    """In evaluation mode, on the device."""
    config: Config
    """Of the run that trained them."""
    tasks: tuple[str, ...]
    """Ids of the tasks that they were trained on, in the order of the task vectors."""
    device: torch.device
    precision: Precision
    origin: str
    """Where they were read from, in words."""
    digest: str
    """Checksum of the weights."""

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of forward passes."""
        return self.precision.autocast()


def read_trained(path: Path, config: Config, device: torch.device) -> Trained:
    """Build the models of a run and load their weights; those of the best validation if the path is a run's.

    Args:
        path: a run folder, a checkpoint, or a folder that `checkpoint.py export` has written.
        config: how to build them; where the base is, its precision, and the device may differ from training.
        device: to compute on.

    Raises:
        ConfigError: there is nothing of the kind, or the weights are of another architecture.
        DataError: the files are broken.
    """
    if (path / "agent.safetensors").is_file():
        weights, tasks, trained_with = _read_export(path)
        origin = str(path)
    else:
        folder, _, snapshot, _ = best_whole(path, _STATE)
        weights, trained_with = dict(snapshot.weights), config_of(snapshot.state)
        tasks = tuple(snapshot.state.get("tasks") or _tasks_of(trained_with, snapshot.state["data"]["training"]))
        origin = f"{folder}, step {snapshot.state.get('step', '?')}"
    models = build_models(config, len(tasks), device)
    agent = tensors_of("averaged_agent", weights) or tensors_of("grid.agent", weights)
    _load(models.qwen, tensors_of("qwen", weights), frozen_base=True)
    _load(models.agent, agent)
    _load(models.solver, tensors_of("grid.solver", weights))
    _load(models.refiner, tensors_of("refiner", weights))
    for module in (models.qwen, models.agent, models.solver, models.refiner):
        module.to(device).eval()
    return Trained(
        predictor=Predictor(
            read=models.qwen, qwen=models.qwen, agent=models.agent, solver=models.solver, refiner=models.refiner
        ),
        config=trained_with,
        tasks=tasks,
        device=device,
        precision=Precision(config.train.precision, device),
        origin=origin,
        digest=_digest(weights),
    )


def _load(module: nn.Module, weights: Mapping[str, Tensor], *, frozen_base: bool = False) -> None:
    needed = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        found = module.load_state_dict(dict(weights), strict=False)
        absent = [name for name in found.missing_keys if name in needed or not frozen_base]
        if absent or found.unexpected_keys:
            raise ConfigError(
                f"The weights are of another architecture: {', '.join([*absent, *found.unexpected_keys][:3])}, … "
                f"belong to one of them only. Leave out the flags that change the models."
            )
    except RuntimeError as error:
        raise ConfigError(
            f"The weights are of another architecture ({str(error).splitlines()[-1].strip()}): leave out the flags "
            f"that change the models."
        ) from error


def _tasks_of(config: Config, digest: str) -> tuple[str, ...]:
    """The tasks of a run whose checkpoint does not name them, read from its data source again."""
    used = read_task_sets(config.data).training.used
    if tasks_digest(used) != digest:
        raise DataError(
            f"The checkpoint does not name the tasks that it was trained on, and {config.data.source} has changed "
            f"since: resume the run for a step, which writes a checkpoint that names them."
        )
    return tuple(task.id for task in used)


def _read_export(folder: Path) -> tuple[dict[str, Tensor], tuple[str, ...], Config]:
    try:
        adapter, agent, rest = (
            load_file(folder / name)
            for name in ("adapter/adapter_model.safetensors", "agent.safetensors", "rest.safetensors")
        )
        tasks = json.loads((folder / TASKS).read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(
            f"{folder} is no export that can be read ({type(error).__name__}: {error}): export the run again with "
            f"`launch/checkpoint.py export`."
        ) from error
    weights: dict[str, Tensor] = {}
    for name, value in adapter.items():
        layer = name.removeprefix("base_model.model.").removesuffix(".weight")
        weights[f"qwen.body.{layer}.default.weight"] = value
    weights |= {f"averaged_agent.{name}": value for name, value in agent.items()}
    for name, value in rest.items():
        part = name.partition(".")[0]
        place = {"solver": "grid.", "efe": "grid.", "refiner": ""}.get(part, "qwen.")
        weights[place + name] = value
    return weights, tuple(tasks), load_config(["--config", str(folder / "config.yaml")]).config


def _digest(weights: Mapping[str, Tensor]) -> str:
    return blake2b(save({name: weights[name] for name in sorted(weights)}), digest_size=16).hexdigest()
