"""What a checkpoint holds of a session: tensors by name, and a few numbers."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from arcdist.config import Config
from arcdist.errors import ConfigError
from arcdist.training.session import Session

_PACKAGES = ("torch", "accelerate", "transformers", "peft")


def gather_weights(session: Session) -> dict[str, Tensor]:
    """All trainable state by name, on the CPU; the frozen base is never part of it.

    `qwen.` are adapters, projection and control MLP, `grid.` agent, solver with its memory, and EFE; then `refiner.`,
    and `averaged_agent.` where an average is kept.
    """
    models, engines = session.models, session.engines
    modules: dict[str, nn.Module] = {"refiner": models.refiner}
    if models.averaged_agent.module is not models.agent:
        modules["averaged_agent"] = models.averaged_agent.module
    parts = {"qwen": engines.qwen.gather_weights(), "grid": engines.grid.gather_weights()}
    for part, module in modules.items():
        state = module.state_dict()
        parts[part] = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def gather_moments(session: Session) -> dict[str, Tensor]:
    """State of the optimizers, named after the parameters."""
    refiner = {
        f"{name}@{moment}": value.detach().cpu().clone()
        for name, parameter in session.models.refiner.named_parameters()
        for moment, value in session.refiner_optimizer.state.get(parameter, {}).items()
    }
    parts = {
        "qwen": session.engines.qwen.gather_moments(),
        "grid": session.engines.grid.gather_moments(),
        "refiner": refiner,
    }
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def load_weights(session: Session, weights: Mapping[str, Tensor]) -> None:
    """Set what `gather_weights` gave.

    Raises:
        ConfigError: the weights belong to another configuration.
    """

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}

    models = session.models
    session.engines.qwen.load_weights(part("qwen"))
    session.engines.grid.load_weights(part("grid"))
    try:
        models.refiner.load_state_dict(part("refiner"))
        if models.averaged_agent.module is not models.agent:
            models.averaged_agent.module.load_state_dict(part("averaged_agent"))
    except RuntimeError as error:
        raise ConfigError(f"The weights do not fit the configured models: {error}") from error


def describe(config: Config, *, step: int, epoch: int, memory_average: Mapping[str, float]) -> dict[str, Any]:
    """The numbers of `state.json`."""
    return {
        "step": step,
        "epoch": epoch,
        "seed": config.train.seed,
        "memory_gate": dict(memory_average),
        "versions": {name: version(name) for name in _PACKAGES},
    }
