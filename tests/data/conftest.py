import datasets
import pytest


@pytest.fixture(autouse=True)
def hugging_face_cache(tmp_path_factory, monkeypatch):
    """A cache of the test's own, so that nothing of an earlier run is read."""
    folder = tmp_path_factory.mktemp("huggingface")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder
