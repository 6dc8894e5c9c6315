"""A folder of tasks that can be counted by hand."""

import json

import datasets
import pytest

from arcdist.config import load_config

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
    """A cache for these tests, so that nothing of an earlier run is read."""
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
    """The configuration of quickstart on that folder, with further flags."""
    return lambda *flags: load_config(["--data.source", str(folder), *flags]).config
