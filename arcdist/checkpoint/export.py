"""A checkpoint as files for others, and read back: a PEFT adapter, the agent, and what else an answer takes.

No file holds a pickled object.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData
from peft import LoraConfig
from rich.console import Console
from rich.filesize import decimal
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from arcdist.checkpoint.inspect import best_whole, moved_message
from arcdist.checkpoint.state import Base, config_of, read_base, tensors_of, trained_tasks
from arcdist.checkpoint.store import Snapshot
from arcdist.config import Config, format_config, load_config
from arcdist.config.schema import section_arguments
from arcdist.data.tasks import NUM_COLORS
from arcdist.errors import ConfigError, DataError, reason
from arcdist.files import expanded, write_folder
from arcdist.formatting import DASH, counted, percent
from arcdist.host import versions

_ADAPTER, _AGENT, _REST = "adapter/adapter_model.safetensors", "agent.safetensors", "rest.safetensors"
_TRAINED, _CONFIG = "trained.json", "config.yaml"


class _Module(NamedTuple):
    """Where an export has a module, whose tensors are called `prefix`, their name in the module, `suffix`."""

    name: str
    """In a checkpoint."""
    file: str
    prefix: str
    suffix: str = ""
    own_suffix: str = ""
    """What a checkpoint has in place of `suffix`."""


_MODULES = (
    # PEFT has its own name for the model that it wraps, and leaves the adapter's, `default`, out of its files.
    _Module("qwen.body", _ADAPTER, "base_model.model.", ".weight", ".default.weight"),
    _Module("averaged_agent", _AGENT, ""),
    _Module("grid.agent", _AGENT, ""),
    *(_Module(f"qwen.{name}", _REST, f"{name}.") for name in ("prompt_projection", "control_mlp", "lm_head")),
    *(_Module(f"grid.{name}", _REST, f"{name}.") for name in ("solver", "efe")),
    _Module("refiner", _REST, "refiner."),
)

_NEEDED = {
    **dict.fromkeys(("step", "epoch", "batch", "processes"), int),
    **dict.fromkeys(("config", "base", "versions"), dict),
    "epochs": list,
}
"""What an export takes from the state."""
_EXPORTED = {"step": int, "base": dict, "tasks": list}
"""What `read_export` takes from `trained.json`."""


def export(path: Path, target: Path) -> None:
    """Write a checkpoint's models into a folder of their own, and print what is where. The base is not loaded.

    Args:
        path: a checkpoint, or a run folder for its `best/` or, if there is none, its newest whole checkpoint.
        target: the folder to make; it must not exist, or be empty.

    Raises:
        ConfigError: `path` is no checkpoint, or `target` is taken.
        DataError: the checkpoint is broken; the message says how.
        SaveError: `target` could not be written; it is then as it was.
    """
    target = expanded(target)
    _require_free(target)
    folder, place, snapshot, broken = best_whole(path, _NEEDED)
    files = contents(snapshot)
    write_folder(target, files)
    lines = [f"Passed over: {flaw}" for flaw in broken]
    if place != folder:
        lines.append(moved_message(folder, place))
    lines.append(f"Exported {folder}, step {snapshot.state['step']}, to {target}:")
    lines += [f"  {name}, {decimal(len(content))}" for name, content in files.items()]
    Console().out(*lines, sep="\n", highlight=False)


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    """The files of an export by their path in its folder."""
    weights, state = snapshot.weights, snapshot.state
    config = config_of(state)
    base = read_base(state["base"], config.qwen)
    averaged = config.agent.ema_decay > 0
    tensors: dict[str, dict[str, Tensor]] = {}
    for module in _modules(averaged=averaged):
        for name, value in tensors_of(module.name, weights).items():
            exported = module.prefix + name.removesuffix(module.own_suffix) + module.suffix
            tensors.setdefault(module.file, {})[exported] = value
    adapter, agent, rest = (tensors[file] for file in (_ADAPTER, _AGENT, _REST))
    control_mlp = any(name.startswith("control_mlp.") for name in rest)
    return {
        "adapter/adapter_config.json": _json(_adapter_config(config, adapter, base)),
        _ADAPTER: save(adapter, metadata={"format": "pt"}),
        _AGENT: save(agent, metadata={"format": "pt"}),
        "agent.json": _json(agent_arguments(config, agent)),
        _TRAINED: _json({"step": state["step"], "base": state["base"], "tasks": _tasks(state, config)}),
        _REST: save(rest, metadata={"format": "pt"}),
        _CONFIG: format_config(config).encode(),
        "README.md": model_card(config, state, base, averaged=averaged, control_mlp=control_mlp).encode(),
    }


def is_export(path: Path) -> bool:
    """Whether a folder is one that `export` has written."""
    return (path / _AGENT).is_file()


def read_export(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Config]:
    """What `export` has written: weights by their names in a checkpoint, `trained.json`, the run's configuration.

    The last weights of an agent whose average was kept are not among them.

    Raises:
        DataError: a file is missing or broken, or the trained tasks are not known.
    """
    try:
        tensors = {file: load_file(folder / file) for file in (_ADAPTER, _AGENT, _REST)}
        state = json.loads((folder / _TRAINED).read_text(encoding="utf-8"))
        if not (_EXPORTED.keys() <= state.keys() and all(isinstance(state[k], kind) for k, kind in _EXPORTED.items())):
            raise ValueError(f"{_TRAINED} lacks one of {', '.join(_EXPORTED)}")
    except (AttributeError, OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{folder} is no export that puzzles can be solved with ({reason(error)}): export the run again with "
            f"`launch/checkpoint.py export`."
        ) from error
    config = load_config(["--config", str(folder / _CONFIG)]).config
    weights = {
        f"{module.name}.{name.removeprefix(module.prefix).removesuffix(module.suffix)}{module.own_suffix}": value
        for module in _modules(averaged=config.agent.ema_decay > 0)
        for name, value in tensors[module.file].items()
        if name.startswith(module.prefix)
    }
    return weights, state, config


def _modules(*, averaged: bool) -> list[_Module]:
    """The modules of an export, which has one agent: the average of its last weights if the run has kept one."""
    left_out = "grid.agent" if averaged else "averaged_agent"
    return [module for module in _MODULES if module.name != left_out]


def _tasks(state: Mapping[str, Any], config: Config) -> list[str] | None:
    """What can be told of the trained tasks: an export is of use without them, and cannot answer puzzles."""
    try:
        return trained_tasks(state, config)
    except DataError:
        return None


def agent_arguments(config: Config, agent: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `ARCPromptGuidedAgent` was built with; its table of task vectors knows how many tasks there were."""
    table = agent.get("task_vectors.weight")
    return {
        **section_arguments(config.agent, without=["ema_decay"]),
        "num_colors": NUM_COLORS,
        "prompt_dim": config.qwen.prompt_dim,
        "num_tasks": 0 if table is None else len(table) - 1,
    }


def _require_free(target: Path) -> None:
    try:
        if not target.exists():
            return
        if target.resolve() == Path.cwd():
            raise ConfigError(f"{target} is the folder you are in, which would be replaced: export to another folder.")
        taken = next(target.iterdir(), None)
    except OSError as error:
        raise ConfigError(f"{target} is no folder that can be read ({reason(error)}): export to another.") from error
    if taken is not None:
        raise ConfigError(f"{target} exists and is not empty (it holds {taken.name}): export to another folder.")


def _adapter_config(config: Config, adapter: Mapping[str, Tensor], base: Base) -> dict[str, Any]:
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
    return {key: sorted(value) if isinstance(value, set) else value for key, value in lora.to_dict().items()}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


_SCORES = (
    ("exact grids", "val/exact", "floor/copy_exact"),
    ("cells", "val/cell", "floor/copy_cell"),
    ("grid sizes", "val/size", ""),
)
_ORIGIN = {
    "hub": "pretrained weights from the Hugging Face Hub",
    "folder": "pretrained weights from the folder `{}`",
    "random": "random weights",
    "unknown": "pretrained weights, from a folder or from the Hugging Face Hub: the checkpoint does not say",
}
_NOTES = {
    "folder": "  # or where a copy of that folder lies",
    "unknown": "  # the run's folder of that name, or the Hub's model",
}


def model_card(config: Config, state: Mapping[str, Any], base: Base, *, averaged: bool, control_mlp: bool) -> str:
    """The card in Markdown, with the metadata of the Hub in front.

    Args:
        config: of the run.
        state: of the checkpoint.
        base: that the adapter belongs to.
        averaged: whether the agent's weights are the average of the run's last ones.
        control_mlp: whether the control MLP was trained, and is among the weights.
    """
    data, train, qwen = config.data, config.train, config.qwen
    # A name that may be a folder's would lead to some other model that a stranger has put under it.
    on_hub = base.name if base.kind == "hub" else None
    metadata = ModelCardData(base_model=on_hub, library_name="peft", tags=["arc-agi", "arcdist", "lora"])
    agent = "the average of its last weights, which validation uses" if averaged else "its last weights"
    control = "`control_mlp`, " if control_mlp else ""
    rest = f"`prompt_projection`, {control}`solver` with its memory, `efe`, `refiner`, by these prefixes"
    if qwen.lm_weight > 0 and base.kind == "random":
        rest = rest.replace("`solver`", "`lm_head`, `solver`")
    if not control_mlp:
        rest += "; not the control MLP, which `qwen.control_weight` 0 leaves as the seed drew it"
    tasks = f"`{data.source}`, {data.split} split, grids with sides up to {data.max_side}"
    if data.max_tasks is not None:
        tasks += f", the first {data.max_tasks} tasks"
    scored = "the tasks trained on" if data.validation_source is None else f"`{data.validation_source}`"
    steps, queries = counted(state["step"], "step"), counted(train.batch_size, "query")
    length = f"{steps} of up to {queries} each; {counted(state['epoch'], 'whole epoch')}"
    if state["batch"]:
        length += f" and {counted(state['batch'], 'step')} of the next"
    origin, name = _ORIGIN[base.kind].format(base.name), json.dumps(base.name)
    if base.kind == "random":
        imports = "from arcdist.models.qwen_source import load_body"
        load = f'base, _ = load_body({name}, "random", torch.{qwen.dtype}, seed={train.seed})'
    else:
        imports = "from transformers import AutoModel"
        load = f"base = AutoModel.from_pretrained({name}, dtype=torch.{qwen.dtype}){_NOTES.get(base.kind, '')}"
    here = versions()
    packages = [(name, then, here.get(name, DASH)) for name, then in state["versions"].items()]
    packages += [("safetensors", DASH, version("safetensors")), ("Python", DASH, python_version())]
    return f"""\
---
{metadata.to_yaml()}
---

# An ARC-AGI solver on {qwen.model}

Trained by arcdist: a language model with LoRA reads a puzzle as text and gives a prompt, and a small grid agent, guided
by that prompt, predicts the answer's size and colours. The language model's own weights were frozen and are not in
here.

| file | content |
| --- | --- |
| `adapter/` | the LoRA adapter, for PEFT |
| `agent.safetensors` | the grid agent: {agent} |
| `agent.json` | the arguments of its constructor, `arcdist.models.ARCPromptGuidedAgent` |
| `trained.json` | the step, the base, and the ids of the trained tasks in the order of the agent's task vectors |
| `rest.safetensors` | {rest} |
| `config.yaml` | the run's configuration, for `--config` |

## Training

|  |  |
| --- | --- |
| tasks | {tasks} |
| validation | the test pairs of {scored} |
| length | {length} |
| base | `{qwen.model}`, {origin}, {qwen.dtype}, SHA-256 `{base.sha256}` |
| adapter | rank {qwen.lora_r}, alpha {qwen.lora_alpha}, dropout {qwen.lora_dropout} |
| precision | `{train.precision}` |
| seed, processes | {train.seed}, {state["processes"]} |

## Scores

{_scores(config, state)}
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
{load}
qwen = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()

agent = ARCPromptGuidedAgent(**json.loads((folder / "agent.json").read_text()))
agent.load_state_dict(load_file(folder / "agent.safetensors"))
agent.eval()

rest = load_file(folder / "rest.safetensors")  # prompt_projection.*, solver.*, refiner.*, ...
```

`qwen(input_ids=tokens).last_hidden_state`, averaged over the tokens, goes through the prompt projection.

## Versions

{_markdown(("package", "trained with", "exported with"), *packages)}
## License

No license is named in the metadata of this card: whoever publishes these weights has to choose one. The base model's
license is its own and covers what is derived from it, and so does that of the tasks; arcdist itself is Apache-2.0.
"""


def _scores(config: Config, state: Mapping[str, Any]) -> str:
    scored = [record for record in state["epochs"] if record.get("val/exact") is not None]
    if not scored:
        return "None: the checkpoint is older than the run's first validation.\n"
    record = scored[-1]
    rows = [(name, percent(record.get(key)), percent(record.get(floor))) for name, key, floor in _SCORES]
    text = _markdown(("validation", f"epoch {record['epoch']}", "copying the input"), *rows)
    if (state["epoch"], state["batch"]) != (record["epoch"] + 1, 0):
        text += "\nTraining continued after this validation: these are not the scores of exactly these weights.\n"
    if config.data.validation_source is None:
        text += "\nThe demonstrations of the scored tasks were trained on: a task never seen is harder.\n"
    return text


def _markdown(head: Sequence[str], *rows: Sequence[str]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))
