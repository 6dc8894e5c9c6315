"""The README of an export: what the models are, what they were trained on, how to load them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from platform import python_version
from typing import Any

from huggingface_hub import ModelCardData

from arcdist.config import Config
from arcdist.models.base_identity import Base
from arcdist.tracking.wording import DASH, counted, percent

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
            "from arcdist.models.qwen_body import load_body",
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
