"""A checkpoint as files for others: a PEFT adapter, the agent, and what else an answer takes. No pickled object."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from huggingface_hub import ModelCardData
from peft import LoraConfig
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from arcdist.checkpoint.base import Base, read_base
from arcdist.checkpoint.inspect import inspect
from arcdist.checkpoint.resume import checkpoints_of_run, is_checkpoint, moved, no_checkpoint, read_unchanged
from arcdist.checkpoint.store import BEST, STATE, Snapshot, is_numbered, parse_files, read_files, read_state
from arcdist.config import Config, format_config
from arcdist.config.keys import build, flatten
from arcdist.data.tasks import NUM_COLORS
from arcdist.errors import ConfigError, DataError
from arcdist.files import expanded, write_folder
from arcdist.formatting import DASH, counted, percent

_SCORES = (
    ("exact grids", "val/exact", "floor/copy_exact"),
    ("cells", "val/cell", "floor/copy_cell"),
    ("grid sizes", "val/size", None),
)

_WEIGHTS = {
    "hub": "pretrained weights from the Hugging Face Hub",
    "folder": "pretrained weights from the folder `{}`",
    "random": "random weights",
    "unknown": "pretrained weights, from a folder or from the Hugging Face Hub: the checkpoint does not say",
}
_NOTES = {
    "folder": "  # or where a copy of that folder lies",
    "unknown": "  # the run's folder of that name, or the Hub's model",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a card tells."""

    config: Config
    """Of the run."""
    state: Mapping[str, Any]
    """Of the checkpoint."""
    base: Base
    """That the adapter belongs to."""
    averaged: bool
    """Whether the agent's weights are the average of the run's last ones."""
    without_control_mlp: bool
    """Whether the control MLP was never trained, and is not among the weights."""


def model_card(facts: Facts) -> str:
    """The card in Markdown, with the metadata of the Hub in front."""
    # A name that may be a folder's would lead to whatever model a stranger has put under it.
    base = facts.base.name if facts.base.kind == "hub" else None
    metadata = ModelCardData(base_model=base, library_name="peft", tags=["arc-agi", "arcdist", "lora"])
    parts = (_what(facts), _files(facts), _training(facts), _scores(facts), _loading(facts), _versions(facts), _LICENSE)
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(parts)


def _what(facts: Facts) -> str:
    return f"""\
# An ARC-AGI solver on {facts.config.qwen.model}

Trained by arcdist: a language model with LoRA reads a puzzle as text and gives a prompt, and a small grid agent, guided
by that prompt, predicts the answer's size and colours. The language model's own weights were frozen and are not in
here.
"""


def _files(facts: Facts) -> str:
    agent = "the average of its last weights, which validation uses" if facts.averaged else "its last weights"
    rest = "`prompt_projection`, `control_mlp`, `solver` with its memory, `efe`, `refiner`, by these prefixes"
    if facts.without_control_mlp:
        rest = rest.replace("`control_mlp`, ", "") + (
            "; not the control MLP, which `qwen.control_weight` 0 leaves as the seed drew it"
        )
    return _table(
        ("file", "content"),
        (
            ("`adapter/`", "the LoRA adapter, for PEFT"),
            ("`agent.safetensors`", f"the grid agent: {agent}"),
            ("`agent.json`", "the arguments of its constructor, `arcdist.models.ARCPromptGuidedAgent`"),
            ("`rest.safetensors`", rest),
            ("`config.yaml`", "the run's configuration, for `--config`"),
        ),
    )


def _training(facts: Facts) -> str:
    data, train, qwen, state = facts.config.data, facts.config.train, facts.config.qwen, facts.state
    tasks = f"`{data.source}`, {data.split} split, grids with sides up to {data.max_side}"
    if data.max_tasks is not None:
        tasks += f", the first {data.max_tasks} tasks"
    where = "the tasks trained on" if data.validation_source is None else f"`{data.validation_source}`"
    done = f"{counted(state['step'], 'step')} of up to {counted(train.batch_size, 'query')} each; "
    done += counted(state["epoch"], "whole epoch")
    if state["batch"]:
        done += f" and {counted(state['batch'], 'step')} of the next"
    weights = _WEIGHTS[facts.base.kind].format(facts.base.name)
    return "## Training\n\n" + _table(
        ("", ""),
        (
            ("tasks", tasks),
            ("validation", f"the test pairs of {where}"),
            ("length", done),
            ("base", f"`{qwen.model}`, {weights}, {qwen.dtype}, SHA-256 `{facts.base.sha256}`"),
            ("adapter", f"rank {qwen.lora_r}, alpha {qwen.lora_alpha}, dropout {qwen.lora_dropout}"),
            ("precision", f"`{train.precision}`"),
            ("seed, processes", f"{train.seed}, {state['processes']}"),
        ),
    )


def _scores(facts: Facts) -> str:
    scored = [record for record in facts.state["epochs"] if record.get("val/exact") is not None]
    if not scored:
        return "## Scores\n\nNone: the checkpoint is older than the run's first validation.\n"
    record, state = scored[-1], facts.state
    rows = ((name, percent(record.get(key)), percent(record.get(floor or ""))) for name, key, floor in _SCORES)
    text = "## Scores\n\n" + _table(("validation", f"epoch {record['epoch']}", "copying the input"), rows)
    if (state["epoch"], state["batch"]) != (record["epoch"] + 1, 0):
        text += "\nTraining went on after this validation: these are not the scores of exactly these weights.\n"
    if facts.config.data.validation_source is None:
        text += "\nThe demonstrations of the scored tasks were trained on: a task never seen is harder.\n"
    return text


def _loading(facts: Facts) -> str:
    qwen, name = facts.config.qwen, json.dumps(facts.base.name)
    if facts.base.kind == "random":
        imports, base = (
            "from arcdist.models.qwen_source import load_body",
            f'base, _ = load_body({name}, "random", torch.{qwen.dtype}, seed={facts.config.train.seed})',
        )
    else:
        imports = "from transformers import AutoModel"
        base = f"base = AutoModel.from_pretrained({name}, dtype=torch.{qwen.dtype}){_NOTES.get(facts.base.kind, '')}"
    return f"""\
## Loading

The adapter belongs on the language model without its head: `AutoModel`, not `AutoModelForCausalLM`, whose layers have
other names.

```python
import json
from pathlib import Path

import torch
from arcdist.models import ARCPromptGuidedAgent
{imports}
from peft import PeftModel
from safetensors.torch import load_file

folder = Path(".")  # where this card lies
{base}
qwen = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()

agent = ARCPromptGuidedAgent(**json.loads((folder / "agent.json").read_text()))
agent.load_state_dict(load_file(folder / "agent.safetensors"))
agent.eval()

rest = load_file(folder / "rest.safetensors")  # prompt_projection.*, solver.*, refiner.*, ...
```

`qwen(input_ids=tokens).last_hidden_state`, averaged over the tokens, goes through the prompt projection.
"""


def _versions(facts: Facts) -> str:
    trained = facts.state["versions"]
    names = ("arcdist", *trained, "safetensors")
    rows = [(name, trained.get(name, DASH), version(name)) for name in names]
    return "## Versions\n\n" + _table(
        ("package", "trained with", "exported with"), [*rows, ("Python", DASH, python_version())]
    )


_LICENSE = """\
## License

No license is named in the metadata of this card: whoever publishes these weights has to choose one. The base model's
license is its own and covers what is derived from it, and so does that of the tasks; arcdist itself is Apache-2.0.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
    console.print(_table_of_export(files))


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
        "num_colors": NUM_COLORS,
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


def _table_of_export(files: Mapping[str, bytes]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for name, purpose in _PURPOSES.items():
        size = sum(len(content) for path, content in files.items() if path.startswith(name))
        table.add_row(f"  {name}", purpose, decimal(size))
    return table
