"""What is left of a GPU that ran out of memory; CUDA itself is made up."""

from pathlib import Path

import pytest
import torch

from arcdist.config import Config
from arcdist.errors import OutOfMemoryError
from arcdist.training.memory_limit import explained_out_of_memory


@pytest.fixture
def cuda(monkeypatch):
    """A GPU, as far as its allocator is asked; returns what it was asked."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda.memory,
        "_record_memory_history",
        lambda enabled="all", **options: asked.append(("record", enabled, options)),
    )

    def dump(path):
        asked.append(("dump", path))
        Path(path).write_bytes(b"held")

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    return asked


def run_out(folder):
    with explained_out_of_memory(Config(), folder):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")


def test_a_snapshot_is_written_and_named(cuda, tmp_path):
    with pytest.raises(OutOfMemoryError) as raised:
        run_out(tmp_path)
    path = tmp_path / "profile" / "memory_snapshot.pickle"
    assert path.read_bytes() == b"held"
    assert str(raised.value).endswith(
        f" What held the GPU's memory: {path}, to be opened at https://pytorch.org/memory_viz."
    )
    (_, started, options), dumped, (_, ended, _) = cuda
    assert (started, ended) == ("all", None)
    assert options["stacks"] == "python"
    assert options["max_entries"] <= 10_000
    assert dumped == ("dump", str(path))


def test_each_process_has_a_file_of_its_own(cuda, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(OutOfMemoryError, match=r"profile/memory_snapshot_rank_00003\.pickle"):
        run_out(tmp_path)


def test_a_run_that_fits_leaves_nothing_and_records_no_longer(cuda, tmp_path):
    with explained_out_of_memory(Config(), tmp_path):
        pass
    assert [entry[1] for entry in cuda] == ["all", None]
    assert list(tmp_path.iterdir()) == []


def test_another_error_leaves_no_snapshot_either(cuda, tmp_path):
    with pytest.raises(KeyError), explained_out_of_memory(Config(), tmp_path):
        raise KeyError("a")
    assert [entry[1] for entry in cuda] == ["all", None]
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_that_cannot_be_written_hides_no_message(cuda, tmp_path):
    (tmp_path / "profile").write_text("")
    with pytest.raises(OutOfMemoryError) as raised:
        run_out(tmp_path)
    assert str(raised.value).endswith("--dry_run shows the peak of the longest batch.")


def test_an_allocator_that_remembers_nothing_is_left_alone(cuda, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("cudaMallocAsync does not yet support recordHistory")

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", refuse)
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_on_a_cpu_and_without_a_folder_there_is_no_snapshot(cuda, tmp_path, monkeypatch):
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(tmp_path)
    assert cuda == []
    assert list(tmp_path.iterdir()) == []
