"""A checkpoint as files for others: a PEFT adapter, the agent, and what else an answer takes. No pickled object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from arcdist.config import Config, format_config
from arcdist.config.keys import build, flatten
from arcdist.errors import ConfigError, DataError
from arcdist.models.base_identity import Base, read_base
from arcdist.paths import expanded
from arcdist.training.checkpoint import BEST, STATE, Snapshot, is_numbered, parse_files, read_files
from arcdist.training.durable import write_folder
from arcdist.training.inspection import inspect
from arcdist.training.model_card import Facts, model_card
from arcdist.training.places import checkpoints_of_run, is_checkpoint, moved, no_checkpoint, read_unchanged
from arcdist.training.state_file import read_state

_BODY = "qwen.body."
_PEFT = "base_model.model."
"""What PEFT calls the model that it wraps; the adapter's own name, `default`, is left out of its files."""

_REST = {
    **{f"qwen.{name}.": f"{name}." for name in ("prompt_projection", "control_mlp")},
    **{f"grid.{name}.": f"{name}." for name in ("solver", "efe")},
    "refiner.": "refiner.",
}
"""Prefixes of weights in a checkpoint, and in `rest.safetensors`."""

_NEEDED = {
    **dict.fromkeys(("step", "epoch", "batch", "processes"), int),
    **dict.fromkeys(("config", "base", "versions"), dict),
    "epochs": list,
}
"""What an export takes from the state."""

_PURPOSES = {
    "adapter/": "PEFT adapter",
    "agent.safetensors": "weights of the grid agent",
    "agent.json": "arguments of its constructor",
    "rest.safetensors": "prompt projection, control MLP, solver, EFE, refiner",
    "config.yaml": "configuration of the run",
    "README.md": "model card",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The checkpoint that an export is made of."""

    folder: Path
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that are broken, each with what is wrong."""


def export(path: Path, target: Path) -> None:
    """Write a checkpoint's models into a folder of their own, and print what is where. The base is not loaded.

    Args:
        path: a checkpoint, or a run folder for its `best/` or, where there is none, its newest whole checkpoint.
        target: the folder to make; it must not exist, or be empty.

    Raises:
        ConfigError: `path` is no checkpoint, or `target` is taken.
        DataError: the checkpoint is broken; the message says how.
        SaveError: `target` could not be written; it is then as it was.
    """
    target = expanded(target)
    _require_free(target)
    choice = choose(path)
    place, snapshot = _load(choice.folder)
    files = contents(snapshot)
    write_folder(target, files)
    console = Console()
    remarks = [f"Passed over: {broken}" for broken in choice.passed_over]
    if place != choice.folder:
        remarks.append(moved(choice.folder, place))
    for remark in remarks:
        console.print(remark, soft_wrap=True, highlight=False, markup=False)
    done = f"Exported {choice.folder}, step {snapshot.state['step']}, to {target}:"
    console.print(done, soft_wrap=True, highlight=False, markup=False)
    console.print(_table(files))


def choose(path: Path) -> Choice:
    """The checkpoint that a path means: itself, or of a run the best one or, where none is, the newest whole one.

    Raises:
        ConfigError: neither a checkpoint nor a run.
        DataError: the run's best checkpoint is broken, or all that it has are.
    """
    if is_checkpoint(path):
        return Choice(folder=path)
    places = checkpoints_of_run(path)
    if not places:
        raise ConfigError(no_checkpoint(path))
    for place in places:
        if place.name == BEST:
            return Choice(folder=place)
    broken: list[str] = []
    # What was set aside is older, in the run's own order, than what it has saved since.
    steps = [place for place in places if is_numbered(place)]
    for place in reversed(steps or places):
        inspection = inspect(place)
        if inspection and inspection.flaw is None:
            return Choice(folder=place, passed_over=tuple(broken))
        broken.append(f"{place}: {inspection.flaw if inspection else 'it was removed meanwhile.'}")
    raise DataError(f"None of the checkpoints in {path} is whole: {broken[0]}")


def _load(folder: Path) -> tuple[Path, Snapshot]:
    """Where a checkpoint lies, and what is in it."""
    try:
        found = read_unchanged(folder, _parse)
    except DataError as error:
        raise DataError(f"{error} Export another checkpoint: `launch/checkpoint.py list` shows them.") from error
    if found is None:
        raise DataError(f"{folder} was removed meanwhile: export another checkpoint.")
    return found


def _parse(place: Path) -> Snapshot:
    files = read_files(place)
    read_state(files[STATE], place / STATE, _NEEDED)
    return parse_files(files, place)


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    """The files of an export by their path in its folder."""
    weights, state = snapshot.weights, snapshot.state
    config = config_of(state)
    base = read_base(state["base"], config.qwen)
    adapter = {
        _PEFT + name.removeprefix(_BODY).replace(".default.", "."): value
        for name, value in weights.items()
        if name.startswith(_BODY) and ".lora_" in name
    }
    average = {name: value for name, value in weights.items() if name.startswith("averaged_agent.")}
    agent = _without("averaged_agent.", average) if average else _without("grid.agent.", weights)
    rest = {new + name: value for old, new in _REST.items() for name, value in _without(old, weights).items()}
    facts = Facts(
        config=config,
        state=state,
        base=base,
        averaged=bool(average),
        without_control_mlp=not any(name.startswith("control_mlp.") for name in rest),
    )
    return {
        "adapter/adapter_config.json": _adapter_config(config, adapter, base),
        "adapter/adapter_model.safetensors": _tensors(adapter),
        "agent.safetensors": _tensors(agent),
        "agent.json": _json(agent_arguments(config, agent)),
        "rest.safetensors": _tensors(rest),
        "config.yaml": format_config(config).encode(),
        "README.md": model_card(facts).encode(),
    }


def config_of(state: Mapping[str, Any]) -> Config:
    """The configuration in a checkpoint's state. A key that is younger than the checkpoint has its default."""
    defaults = flatten(Config())
    # JSON has no tuples.
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in state["config"].items()}
    return build({name: known.get(name, value) for name, value in defaults.items()})


def agent_arguments(config: Config, agent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `ARCPromptGuidedAgent` was built with; its table of task vectors knows how many tasks there were."""
    table = agent.get("task_vectors.weight")
    return {
        "kind": config.agent.kind,
        "max_grid_size": config.agent.max_grid_size,
        "num_colors": config.agent.num_colors,
        "hidden_dim": config.agent.hidden_dim,
        "prompt_dim": config.qwen.prompt_dim,
        "max_steps": config.agent.max_steps,
        "num_tasks": 0 if table is None else len(table) - 1,
        "task_vectors": config.agent.task_vectors,
    }


def _require_free(target: Path) -> None:
    try:
        if not target.exists():
            return
        if target.resolve() == Path.cwd():
            raise ConfigError(f"{target} is the folder you are in, which would be replaced: export to another folder.")
        taken = next(target.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"{target} is no folder that can be read ({error.strerror}): export to another.") from error
    if taken is not None:
        raise ConfigError(f"{target} exists and is not empty (it holds {taken.name}): export to another folder.")


def _adapter_config(config: Config, adapter: Mapping[str, Tensor], base: Base) -> bytes:
    qwen = config.qwen
    targets = list(qwen.lora_targets)
    if targets == ["all-linear"]:
        # On a model with a head, all linear layers would be others.
        targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in adapter})
    lora = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        # Random weights must not be mistaken for those of the model whose shape they have, nor a folder for a name.
        base_model_name_or_path=base.name if base.kind in ("hub", "folder") else None,
        r=qwen.lora_r,
        lora_alpha=qwen.lora_alpha,
        lora_dropout=qwen.lora_dropout,
        target_modules=targets,
        inference_mode=True,
    )
    return _json({key: sorted(value) if isinstance(value, set) else value for key, value in lora.to_dict().items()})


def _without(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _tensors(named: Mapping[str, Tensor]) -> bytes:
    return save(dict(named), metadata={"format": "pt"})


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _table(files: Mapping[str, bytes]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, purpose in _PURPOSES.items():
        size = sum(len(content) for path, content in files.items() if path.startswith(name))
        table.add_row(f"  {name}", purpose, decimal(size))
    return table
