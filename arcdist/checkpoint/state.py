"""What a checkpoint holds of a session: tensors by name, and a few numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from arcdist.checkpoint.store import Snapshot
from arcdist.config.keys import flatten
from arcdist.engine import on_cpu
from arcdist.errors import ConfigError, DistributedError
from arcdist.host import versions
from arcdist.rng import PURPOSES
from arcdist.training.session import Session


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
    for name, engine in session.engines.by_name().items():
        engine.load_weights(_part(weights, name))
    models = session.models
    if models.averaged_agent.module is not models.agent:
        try:
            models.averaged_agent.module.load_state_dict(_part(weights, "averaged_agent"))
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


def take_snapshot(session: Session, progress: Mapping[str, Any]) -> Snapshot:
    """A run's whole state in memory, independent of how many processes share it. All processes call it together.

    Args:
        session: of the run.
        progress: what the loop knows.

    Raises:
        DistributedError: adapters came back empty.
    """
    engines, models = session.engines, session.models
    kept, prompts = models.prompts.state()
    state = {
        **progress,
        "steps_of_schedules": {name: engine.schedule.steps_done for name, engine in engines.by_name().items()},
        "loss_scale": engines.precision.state(),
        "averaged_agent": {"updates": models.averaged_agent.updates},
        "prompts": kept,
        "random_streams": {"seed": session.config.train.seed, "purposes": list(PURPOSES)},
        "data": session.data,
        "config": flatten(session.config),
        "processes": session.accelerator.num_processes,
        "versions": versions(),
    }
    return Snapshot(weights=gather_weights(session), moments=gather_moments(session), prompts=prompts, state=state)


def restore(session: Session, snapshot: Snapshot) -> None:
    """Set what `take_snapshot` gave, on any number of processes under any engine. All processes call it together.

    Raises:
        ConfigError: the state belongs to another configuration.
    """
    state, engines, models = snapshot.state, session.engines, session.models
    load_weights(session, snapshot.weights)
    for name, engine in engines.by_name().items():
        engine.load_moments(_part(snapshot.moments, name))
        engine.schedule.steps_done = state["steps_of_schedules"][name]
    engines.precision.load_state(state["loss_scale"])
    models.averaged_agent.updates = state["averaged_agent"]["updates"]
    models.prompts.load_state(state["prompts"], snapshot.prompts)


def _part(named: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in named.items() if key.startswith(f"{name}.")}
