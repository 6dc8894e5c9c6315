"""A trained solver, read back from a run, a checkpoint or an export."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from arcdist.checkpoint.export import is_export, read_export
from arcdist.checkpoint.inspect import best_whole, moved_message
from arcdist.checkpoint.state import base_identity, config_of, tensors_of, trained_tasks
from arcdist.config import Config
from arcdist.config.keys import flatten
from arcdist.data.text import has_random_weights
from arcdist.engine import Precision
from arcdist.errors import ConfigError
from arcdist.evaluation import Predictor
from arcdist.models import QwenHybridPrompt
from arcdist.training.models import build_models

_logger = logging.getLogger(__name__)

_STATE = {"config": dict, "data": dict, "base": dict, "step": int}
_OF_ANSWERS = ("qwen.", "agent.", "solver.", "refiner.", "train.precision", "data.max_context_pairs")


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
    """Checksum of the weights, the same for a run and its export."""

    @property
    def longest_side(self) -> int:
        """Of a grid that the agent can be given."""
        return self.predictor.agent.size_head.max_grid_size

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
        PlatformError: Qwen's base cannot be had.
    """
    if is_export(path):
        weights, state, trained_with = read_export(path)
        origin = path
    else:
        origin, place, snapshot, broken = best_whole(path, _STATE)
        for flaw in broken:
            _logger.warning("Passed over: %s", flaw)
        if place != origin:
            _logger.warning(moved_message(origin, place))
        weights, state, trained_with = dict(snapshot.weights), dict(snapshot.state), config_of(snapshot.state)
        state["tasks"] = trained_tasks(snapshot.state, trained_with)
    # A base with random weights is drawn by the seed of its run; `train.seed` here is that of the answers.
    built_with = replace(config, train=replace(config.train, seed=trained_with.train.seed))
    models = build_models(built_with, len(state["tasks"]), device)
    then = flatten(trained_with)
    changed = ", ".join(f"{key} is {now}, not {then[key]}" for key, now in changed_keys(config, trained_with).items())
    used = {
        "qwen": tensors_of("qwen", weights),
        "agent": tensors_of("averaged_agent", weights) or tensors_of("grid.agent", weights),
        "solver": tensors_of("grid.solver", weights),
        "refiner": tensors_of("refiner", weights),
    }
    for name, tensors in used.items():
        module: nn.Module = getattr(models, name)
        _load(module, tensors, changed, frozen_base=name == "qwen")
        module.to(device).eval()
    _check_base(models.qwen, built_with, state["base"])
    return Trained(
        predictor=Predictor(
            read=models.qwen, qwen=models.qwen, agent=models.agent, solver=models.solver, refiner=models.refiner
        ),
        config=trained_with,
        tasks=tuple(state["tasks"]),
        device=device,
        precision=Precision(config.train.precision, device),
        origin=f"{origin}, step {state['step']}",
        digest=_digest({f"{part}.{name}": value for part, of in used.items() for name, value in of.items()}),
    )


def changed_keys(config: Config, before: Config) -> dict[str, Any]:
    """Values that answers depend on and that differ from those in training."""
    now, then = flatten(config), flatten(before)
    return {name: now[name] for name in now if name.startswith(_OF_ANSWERS) and now[name] != then[name]}


def _load(module: nn.Module, weights: Mapping[str, Tensor], changed: str, *, frozen_base: bool) -> None:
    needed = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    try:
        found = module.load_state_dict(dict(weights), strict=False)
        absent = [name for name in found.missing_keys if name in needed or not frozen_base]
        problem = ", ".join([*absent, *found.unexpected_keys][:3])
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
    if not problem:
        return
    if changed:
        raise ConfigError(f"The weights are of another architecture: {changed}. Leave out what changes the models.")
    raise ConfigError(
        f"The weights are of another architecture ({problem}): take the version of arcdist that trained them, and the "
        f"config.yaml that the run was trained with."
    )


def _check_base(qwen: QwenHybridPrompt, config: Config, trained_on: Mapping[str, str]) -> None:
    """Refuse another frozen base than the adapters belong to, which nothing else would show."""
    model, random = config.qwen.model, has_random_weights(config.qwen.model, config.qwen.init)
    base = base_identity(qwen.body.config, model, random=random, seed=config.train.seed)
    if base["sha256"] != trained_on["sha256"]:
        raise ConfigError(
            f"Qwen's frozen base is {model} (SHA-256 {base['sha256'][:12]}), and the run was trained on "
            f"{trained_on['model']} ({trained_on['sha256'][:12]}): give that one, or where it lies here, with "
            f"--qwen.model."
        )


def _digest(weights: Mapping[str, Tensor]) -> str:
    return blake2b(save({name: weights[name] for name in sorted(weights)}), digest_size=16).hexdigest()
