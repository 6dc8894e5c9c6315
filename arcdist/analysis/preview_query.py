"""A query as the models are given it, collated as a run collates it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import numpy as np
from jaxtyping import Int

from arcdist.config import Config, DataConfig, QwenConfig
from arcdist.data import FEATURE_NAMES, Augmentation, Collator, Query, Task, TaskSets, build_queries
from arcdist.data.queries import Kind
from arcdist.data.text import GridTokenizer, locate_qwen, read_tokenizer, ways_out
from arcdist.errors import ConfigError, PlatformError


def load_tokenizer(qwen: QwenConfig) -> GridTokenizer:
    """The tokenizer that a run would write grids with.

    Raises:
        ConfigError: there is no such model, or it cannot read grids.
        PlatformError: it is neither in a local folder nor in the cache.
    """
    source = locate_qwen(qwen.model, qwen.init)
    if source.kind == "hub" and source.folder is None:
        files = ("config.json", "tokenizer.json", "tokenizer_config.json")
        raise PlatformError(
            f"qwen.model {qwen.model!r} is no local folder and not in the local cache, and a preview downloads "
            f"nothing. {ways_out(qwen.model, *files)}"
        )
    return read_tokenizer(source)


def find_task(sets: TaskSets, task_id: str, kind: Kind) -> tuple[Task, str]:
    """A task and where it was read from: for a train query first among the trained ones, else among the scored.

    Raises:
        ConfigError: it is in neither; the message names the nearest ids.
    """
    for tasks in sets.distinct if kind == "train" else reversed(sets.distinct):
        for task in (*tasks.used, *tasks.tasks):
            if task.id == task_id:
                # Demonstrations that join the training are of another origin.
                return task, str(tasks.origin) if task in tasks.tasks else task.source
    ids = sorted({task.id for tasks in sets.distinct for task in (*tasks.used, *tasks.tasks)})
    near = get_close_matches(task_id, ids, n=3)
    hint = f"The nearest: {', '.join(near)}." if near else f"Its ids are like {ids[0]}."
    raise ConfigError(
        f"There is no task {task_id!r} in {' and '.join(str(tasks.origin) for tasks in sets.distinct)}. {hint} "
        f"Other tasks: --data.source, --data.split, --data.validation_source."
    )


def exclusion(sets: TaskSets, data: DataConfig, task: Task, kind: Kind) -> str | None:
    """Why a run does not ask a task's queries of a kind, in a sentence; None if it does."""
    tasks = sets.training if kind == "train" else sets.validation
    if task in tasks.used:
        return None
    if task not in tasks.tasks:
        reason = f"it is not in {tasks.origin}"
    elif task.longest_side > data.max_side:
        reason = f"its longest side is {task.longest_side}, data.max_side is {data.max_side}"
    else:
        reason = f"it is not among the first data.max_tasks = {data.max_tasks}"
    return f"A run would not {'train on' if kind == 'train' else 'score'} it: {reason}."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CollatedQuery:
    """A query as the data holds it, and as the models are given it."""

    task: Task
    query: Query
    """As in the data, with the context pairs that it is shown."""
    shown: Sequence[int]
    """Which demonstrations of the task these are, in the data's order."""
    epoch: int
    augmentation: Augmentation | None
    """What training draws for it in that epoch; None for a test query, which is given as it is."""
    given: Query
    """As the models see it, but for the target, which is augmented alike and never given."""
    ids: Int[np.ndarray, " L"]
    """The tokens, without padding."""
    text: str
    """The same, decoded by their tokenizer."""
    tokenizer: str
    """Whose tokens these are, in words."""
    features: Mapping[str, float]
    """The transformation features by name."""
    working_area: tuple[int, int]
    """Height and width in which the answer is computed."""
    task_row: int
    """Row of the task among the learned task vectors; -1 for a task that is not trained on."""
    token_counts: Mapping[str, int]
    """Tokens of all queries of the task, by `train:N` or `test:N`; train queries as in the same epoch."""

    @property
    def name(self) -> str:
        """`train:N` or `test:N`: the pair that is asked for."""
        return _short(self.query.id)

    @property
    def context_names(self) -> list[str]:
        """`train:N` of each context pair, in the data's order."""
        return [f"train:{place}" for place in self.shown]

    @property
    def undrawn(self) -> int:
        """How many demonstrations could be context pairs and are not in this epoch."""
        others = len(self.task.demonstrations) - (self.augmentation is not None)
        return others - len(self.shown)


def collate_query(
    config: Config, sets: TaskSets, task: Task, *, kind: Kind, index: int, epoch: int, tokenizer: GridTokenizer
) -> CollatedQuery:
    """Collate a task's queries as a run does, and read back what the models would be given of one of them.

    Args:
        config: of the run.
        sets: its tasks, which give the rows of the task vectors.
        task: to ask.
        kind: `train` holds out a demonstration, augmented as training does in `epoch`; `test` asks a test pair.
        index: of that pair.
        epoch: counted from 0.
        tokenizer: writes the text.

    Raises:
        ConfigError: the task has no such query.
    """
    augment = config.data.augment
    make_collator = partial(
        Collator,
        tokenizer,
        task_rows={trained.id: row for row, trained in enumerate(sets.training.used)},
        # A task that a run leaves out for its size is still shown.
        max_grid_size=max(config.agent.max_grid_size, task.longest_side),
    )
    collators = {
        "train": make_collator(
            seed=config.train.seed, dihedral=augment.dihedral, colors=augment.colors, order=augment.order
        ),
        "test": make_collator(),
    }
    read = tokenizer.leaving_room() if config.qwen.lm_weight > 0 else tokenizer
    most = config.data.max_context_pairs, read.max_tokens
    made, epochs = {}, {"train": epoch, "test": 0}
    if len(task.demonstrations) > 1:
        made["train"] = build_queries([task], "train").limited(*most, seed=config.train.seed)
    if task.tests:
        made["test"] = build_queries([task], "test").limited(*most)
    queries = {of: asked.read(range(len(asked)), epochs[of]) for of, asked in made.items()}
    batches = {of: collators[of](asked, epochs[of]) for of, asked in queries.items()}
    token_counts = {
        _short(query_id): count
        for batch in batches.values()
        for query_id, count in zip(batch.ids, batch.inputs.token_mask.sum(1).tolist(), strict=True)
    }
    if not token_counts:
        raise ConfigError(f"Task {task.id} has no query: it has one demonstration and no test pair.")
    if f"{kind}:{index}" not in token_counts:
        *first, last = token_counts
        choices = f"{', '.join(first)} or {last}" if first else last
        raise ConfigError(f"Task {task.id} has no query {kind}:{index}: choose --query {choices}.")
    query, inputs = queries[kind][index], batches[kind].inputs
    augmentation = collators[kind].draw(query, epochs[kind])[0]  # The first view, if it is seen from several sides.
    row = index * inputs.views
    ids = inputs.tokens[index][inputs.token_mask[index]].numpy()
    height, width = inputs.working_area[row].tolist()
    return CollatedQuery(
        task=task,
        query=query,
        shown=made[kind].context(index, epochs[kind]),
        epoch=epoch,
        augmentation=augmentation if kind == "train" else None,
        given=augmentation.apply_query(query),
        ids=ids,
        text=tokenizer.decode(ids),
        tokenizer=tokenizer.name,
        features=dict(zip(FEATURE_NAMES, inputs.features[index].tolist(), strict=True)),
        working_area=(height, width),
        task_row=int(inputs.task_index[row]),
        token_counts=token_counts,
    )


def _short(query_id: str) -> str:
    return ":".join(query_id.rsplit(":", 2)[1:])
