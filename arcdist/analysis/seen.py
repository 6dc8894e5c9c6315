"""What the models are given of a query, read back from the tensors that the collator makes of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
from jaxtyping import Int, UInt8

from arcdist.config import Config, QwenConfig
from arcdist.data import (
    FEATURE_NAMES,
    Augmentation,
    Collator,
    GridTokenizer,
    Pair,
    Query,
    QueryBatch,
    Task,
    build_queries,
    embedded_tokenizer,
    from_pretrained_tokenizer,
    read_queries,
)
from arcdist.errors import ConfigError, PlatformError
from arcdist.files import expanded

TINY = "embedded:tiny"
"""The same as in `arcdist.models`, whose import takes longer than a preview."""

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewTokenizer:
    """A tokenizer that can be read back."""

    grids: GridTokenizer
    """Writes tasks as token ids."""
    decode: Callable[[Int[np.ndarray, " L"]], str]
    """The text of token ids, special tokens included, as their own tokenizer tells it."""
    name: str
    """Whose tokens these are, in words."""


def load_tokenizer(qwen: QwenConfig) -> PreviewTokenizer:
    """The tokenizer that a run would write grids with.

    Raises:
        ConfigError: no such model, or one that cannot read grids.
        PlatformError: it is neither in a local folder nor in the cache.
    """
    folder = expanded(qwen.model)
    if qwen.model == TINY:
        return _embedded(f"qwen.model is {TINY}")
    if folder.is_dir():
        return _from_folder(folder, qwen)
    if qwen.init == "random" or qwen.model.startswith("embedded:"):
        from arcdist.models.qwen_source import EMBEDDED_MODELS

        if qwen.init == "random" and qwen.model in EMBEDDED_MODELS:
            return _embedded("qwen.init is random")
        raise ConfigError(
            f"qwen.model is {qwen.model!r}, which has no configuration in the package and is no local folder: "
            f"choose {TINY}, a folder with config.json, or {' or '.join(EMBEDDED_MODELS[1:])} with --qwen.init random."
        )
    return _from_folder(_cached(qwen.model), qwen)


def _embedded(reason: str) -> PreviewTokenizer:
    tokenizer = embedded_tokenizer()
    return PreviewTokenizer(grids=tokenizer, decode=tokenizer.decode, name=f"arcdist's own tokenizer ({reason})")


def _from_folder(folder: Path, qwen: QwenConfig) -> PreviewTokenizer:
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ConfigError(f"qwen.model {qwen.model!r}: {folder} has no config.json, so it is not a folder of a model.")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        if qwen.init == "random":
            return _embedded(f"{folder} has none")
        raise ConfigError(
            f"qwen.model {qwen.model!r}: {folder} has no tokenizer ({', '.join(_VOCABULARIES)}): copy the model's "
            f"there, or give --qwen.model {TINY}."
        )
    try:
        pretrained = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"qwen.model {qwen.model!r}: the tokenizer in {folder} cannot be read: {error}") from error

    def decode(ids: Int[np.ndarray, " L"]) -> str:
        return str(pretrained.decode(ids.tolist(), skip_special_tokens=False))

    return PreviewTokenizer(
        grids=from_pretrained_tokenizer(pretrained), decode=decode, name=f"the tokenizer of {qwen.model}"
    )


def _cached(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except HFValidationError as error:
        raise ConfigError(f"qwen.model {model!r} is neither a folder that exists nor a name of the Hub.") from error
    except LocalEntryNotFoundError as error:
        raise PlatformError(
            f"qwen.model {model!r} is no local folder and not in the local cache, and a preview downloads nothing. "
            f"Three ways out: `hf download {model} {' '.join(_FILES)}` where there is a network; --qwen.model PATH, a "
            f"folder with the model's files; or --qwen.model {TINY}, whose tokens are other numbers for the same text."
        ) from error


Kind = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Given:
    """A query as the data holds it, and as the models are given it."""

    task: Task
    query: Query
    """As in the data, before any augmentation."""
    names: tuple[str, ...]
    """`train:N` for each pair of its context, in the data's order."""
    augmentation: Augmentation | None
    """What training draws for it; none for a test query, which is seen as it is."""
    context: tuple[Pair, ...]
    """The context pairs as given, in the order given."""
    input: UInt8[np.ndarray, "h w"]
    """The query's input as given."""
    target: UInt8[np.ndarray, "p q"] | None
    """What the answer is scored against, augmented alike; never given. None where it is not known."""
    ids: Int[np.ndarray, " L"]
    """The tokens, without padding."""
    text: str
    """The same as their tokenizer tells it."""
    tokenizer: str
    """Whose tokens these are, in words."""
    features: Mapping[str, float]
    """The transformation features by name."""
    working_area: tuple[int, int]
    """Height and width in which the answer is computed."""
    task_row: int
    """Row of the task among the learned task vectors; -1 for a task that is not trained on."""
    token_counts: Mapping[str, int]
    """Tokens of all queries of the task, by `train:N` or `test:N`; train queries as seen in the same epoch."""

    @property
    def name(self) -> str:
        """`train:N` or `test:N`: the pair that is asked for."""
        return _short(self.query.id)


def give(
    config: Config,
    task: Task,
    *,
    kind: Kind,
    index: int,
    epoch: int,
    task_rows: Mapping[str, int],
    tokenizer: PreviewTokenizer,
) -> Given:
    """Collate a task's queries as a run does, and read back what the models would see of one of them.

    Args:
        config: of the run.
        task: to ask.
        kind: `train` holds out a demonstration, augmented as training does in `epoch`; `test` asks a test pair.
        index: of that pair.
        epoch: counted from 0.
        task_rows: row of each task that is trained on.
        tokenizer: writes the text.

    Raises:
        ConfigError: the task has no such query.
    """
    augment = config.data.augment
    # A task that a run leaves out for its size is still shown.
    max_grid_size = max(config.agent.max_grid_size, task.longest_side)
    collators = {
        "train": Collator(
            tokenizer.grids,
            task_rows=task_rows,
            seed=config.train.seed,
            dihedral=augment.dihedral,
            colors=augment.colors,
            order=augment.order,
            max_grid_size=max_grid_size,
        ),
        "test": Collator(tokenizer.grids, task_rows=task_rows, max_grid_size=max_grid_size),
    }
    queries = _queries(task)
    batches = {of: collators[of](asked, epoch) for of, asked in queries.items()}
    name = f"{task.id}:{kind}:{index}"
    row = next((row for row, query in enumerate(queries.get(kind, [])) if query.id == name), None)
    if row is None:
        known = [_short(query.id) for asked in queries.values() for query in asked]
        mend = f"choose --query {_listed(known)}" if known else "it has one demonstration and no test pair"
        raise ConfigError(f"Task {task.id} has no query {kind}:{index}: {mend}.")
    query, batch = queries[kind][row], batches[kind]
    ids = batch.inputs.tokens[row][batch.inputs.token_mask[row]].numpy()
    height, width = batch.inputs.working_area[row].tolist()
    return Given(
        task=task,
        query=query,
        names=tuple(f"train:{place}" for place in range(len(task.demonstrations)) if kind == "test" or place != index),
        augmentation=collators[kind].draw(query, epoch) if kind == "train" else None,
        context=_context(batch, row),
        input=_grid(batch.inputs.query[row].numpy(), batch.inputs.query_size[row].tolist()),
        target=_target(batch, row),
        ids=ids,
        text=tokenizer.decode(ids),
        tokenizer=tokenizer.name,
        features=dict(zip(FEATURE_NAMES, batch.inputs.features[row].tolist(), strict=True)),
        working_area=(height, width),
        task_row=int(batch.inputs.task_index[row]),
        token_counts={
            _short(query_id): count
            for collated in batches.values()
            for query_id, count in zip(collated.ids, collated.inputs.token_mask.sum(1).tolist(), strict=True)
        },
    )


def _queries(task: Task) -> dict[str, list[Query]]:
    # A task with a single demonstration has no train query, one without test pairs no test query.
    made: dict[str, datasets.Dataset] = {}
    if len(task.demonstrations) > 1:
        made["train"] = build_queries([task], "train")
    if task.tests:
        made["test"] = build_queries([task], "test")
    return {kind: read_queries(queries, range(len(queries))) for kind, queries in made.items()}


def _short(query_id: str) -> str:
    return ":".join(query_id.rsplit(":", 2)[1:])


def _listed(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _context(batch: QueryBatch, row: int) -> tuple[Pair, ...]:
    inputs = batch.inputs
    sizes = inputs.context_sizes[row].tolist()
    return tuple(
        Pair(
            _grid(inputs.context_inputs[row, place].numpy(), before),
            _grid(inputs.context_outputs[row, place].numpy(), after),
        )
        for place, (before, after) in enumerate(sizes)
        if before[0]
    )


def _target(batch: QueryBatch, row: int) -> UInt8[np.ndarray, "p q"] | None:
    height, width = batch.targets.target_size[row].tolist()
    return _grid(batch.targets.target[row].numpy(), (height, width)) if height else None


def _grid(canvas: Int[np.ndarray, "H W"], size: list[int] | tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    height, width = size
    return canvas[:height, :width].astype(np.uint8)
