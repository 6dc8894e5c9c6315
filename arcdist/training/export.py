"""A checkpoint as files for others: a PEFT adapter, the agent, and what else an answer takes. No pickled object."""

import json
import os
import shutil
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
from arcdist.errors import ConfigError, DataError, SaveError
from arcdist.training.checkpoint import Snapshot, flaw, load_checkpoint
from arcdist.training.inspection import checkpoints_of_run, is_checkpoint, no_checkpoint
from arcdist.training.model_card import Facts, model_card

_BODY = "qwen.body."
_PEFT = "base_model.model."
"""What PEFT calls the model that it wraps; the adapter's own name, `default`, is left out of its files."""

_REST = {
    **{f"qwen.{name}.": f"{name}." for name in ("prompt_projection", "control_mlp")},
    **{f"grid.{name}.": f"{name}." for name in ("solver", "efe")},
    "refiner.": "refiner.",
}
"""Prefixes of weights in a checkpoint, and in `rest.safetensors`."""

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
    target = target.expanduser()
    _require_free(target)
    choice = choose(path)
    try:
        snapshot = load_checkpoint(choice.folder)
    except DataError as error:
        raise DataError(f"{error} Export another checkpoint: `launch/checkpoint.py list` shows them.") from error
    files = contents(snapshot)
    write_folder(target, files)
    console = Console()
    for broken in choice.passed_over:
        console.print(f"Passed over: {broken}", soft_wrap=True, highlight=False, markup=False)
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
        if place.name == "best":
            return Choice(folder=place)
    broken: list[str] = []
    # What was set aside is older, in the run's own order, than what it has saved since.
    steps = [place for place in places if place.name.startswith("step_")]
    for place in reversed(steps or places):
        wrong = flaw(place)
        if wrong is None:
            return Choice(folder=place, passed_over=tuple(broken))
        broken.append(wrong)
    raise DataError(f"None of the checkpoints in {path} is whole: {broken[0]}")


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    """The files of an export by their path in its folder."""
    weights, state = snapshot.weights, snapshot.state
    config = config_of(state)
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
        base=_base(config),
        averaged=bool(average),
        without_control_mlp=not any(name.startswith("control_mlp.") for name in rest),
    )
    return {
        "adapter/adapter_config.json": _adapter_config(config, adapter),
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


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their path in a folder, which is whole as soon as it has its name.

    Raises:
        SaveError: it could not be written, and is as it was.
    """
    place = target.resolve()
    partial = place.with_name(f".{place.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        partial.rename(place)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        existing = next(folder for folder in place.parents if folder.exists())
        needed, free = sum(map(len, files.values())), shutil.disk_usage(existing).free
        raise SaveError(
            f"{target} could not be written ({error.strerror or error}): it needs {decimal(needed)}, and "
            f"{decimal(free)} are free there. Make room, or export to another folder."
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_free(target: Path) -> None:
    if not target.exists():
        return
    if target.resolve() == Path.cwd():
        raise ConfigError(f"{target} is the folder you are in, which would be replaced: export to another folder.")
    try:
        taken = next(target.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"{target} is no folder that can be read ({error.strerror}): export to another.") from error
    if taken is not None:
        raise ConfigError(f"{target} exists and is not empty (it holds {taken.name}): export to another folder.")


def _adapter_config(config: Config, adapter: Mapping[str, Tensor]) -> bytes:
    qwen = config.qwen
    targets = list(qwen.lora_targets)
    if targets == ["all-linear"]:
        # On a model with a head, all linear layers would be others.
        targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in adapter})
    lora = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        # Random weights must not be mistaken for those of the model whose shape they have.
        base_model_name_or_path=None if qwen.init == "random" else _base(config),
        r=qwen.lora_r,
        lora_alpha=qwen.lora_alpha,
        lora_dropout=qwen.lora_dropout,
        target_modules=targets,
        inference_mode=True,
    )
    return _json({key: sorted(value) if isinstance(value, set) else value for key, value in lora.to_dict().items()})


def _base(config: Config) -> str:
    """The base's name, or its folder as any program finds it."""
    return str(Path(config.qwen.model).expanduser())


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
