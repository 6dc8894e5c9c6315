"""What a checkpoint holds of a session: tensors by name, and a few numbers."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from torch import Tensor

from arcdist.config import Config
from arcdist.engine import on_cpu
from arcdist.errors import ConfigError, DistributedError
from arcdist.training.session import Session

_PACKAGES = ("torch", "accelerate", "transformers", "peft")


def gather_weights(session: Session) -> dict[str, Tensor]:
    """All trainable state by name, whole and on the CPU; the frozen base is never part of it.

    `qwen.` are adapters, projection and control MLP, `grid.` agent, solver with its memory, and EFE; then `refiner.`,
    and `averaged_agent.` where an average is kept. All processes call it together.

    Raises:
        DistributedError: adapters came back empty.
    """
    parts = {name: engine.gather_weights() for name, engine in session.engines.by_name().items()}
    empty = [name for name, value in parts["qwen"].items() if not value.numel()]
    if empty:
        raise DistributedError(f"Gathering Qwen's weights left {', '.join(empty)} empty: nothing was saved.")
    models = session.models
    if models.averaged_agent.module is not models.agent:
        state = models.averaged_agent.module.state_dict()
        parts["averaged_agent"] = {name: on_cpu(value) for name, value in state.items()}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def gather_moments(session: Session) -> dict[str, Tensor]:
    """State of the optimizers, named after the parameters. All processes call it together."""
    return {
        f"{part}.{name}": value
        for part, engine in session.engines.by_name().items()
        for name, value in engine.gather_moments().items()
    }


def load_weights(session: Session, weights: Mapping[str, Tensor]) -> None:
    """Set what `gather_weights` gave.

    Raises:
        ConfigError: the weights belong to another configuration.
    """

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}

    for name, engine in session.engines.by_name().items():
        engine.load_weights(part(name))
    models = session.models
    if models.averaged_agent.module is not models.agent:
        try:
            models.averaged_agent.module.load_state_dict(part("averaged_agent"))
        except RuntimeError as error:
            raise ConfigError(f"The weights do not fit the configured models: {error}") from error


def replicated(session: Session) -> dict[str, Iterable[Tensor]]:
    """What every process holds a copy of, equal to the last bit, by the names that users know."""
    models = session.models
    modules = {
        "agent": models.agent,
        "solver": models.solver,
        "efe": models.efe,
        "refiner": models.refiner,
        "averaged_agent": models.averaged_agent.module,
    }
    return {
        "qwen": session.engines.qwen.replicated(),
        **{name: module.state_dict(keep_vars=True).values() for name, module in modules.items()},
    }


def describe(config: Config, *, step: int, epoch: int, memory_average: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of `state.json`."""
    return {
        "step": step,
        "epoch": epoch,
        "seed": config.train.seed,
        "memory_gate": dict(memory_average),
        "versions": {name: version(name) for name in _PACKAGES},
    }
