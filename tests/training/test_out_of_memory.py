"""What an out-of-memory error names, and the record of the GPU's allocations that a flag turns on."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import Config, DataConfig, QwenConfig, TrainConfig
from arcdist.errors import OutOfMemoryError
from arcdist.training.out_of_memory import explained_out_of_memory


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


RECORDING = Config(train=TrainConfig(memory_history=True))


def run_out(folder, config=RECORDING):
    with explained_out_of_memory(config, folder):
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
    with explained_out_of_memory(RECORDING, tmp_path):
        pass
    assert [entry[1] for entry in cuda] == ["all", None]
    assert list(tmp_path.iterdir()) == []


def test_another_error_leaves_no_snapshot_either(cuda, tmp_path):
    with pytest.raises(KeyError), explained_out_of_memory(RECORDING, tmp_path):
        raise KeyError("a")
    assert [entry[1] for entry in cuda] == ["all", None]
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_that_cannot_be_written_hides_no_message(cuda, tmp_path):
    (tmp_path / "profile").write_text("")
    with pytest.raises(OutOfMemoryError) as raised:
        run_out(tmp_path)
    assert str(raised.value).endswith("--dry_run shows the peak of the longest batch.")


def test_an_allocator_without_a_history_is_left_alone(cuda, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("cudaMallocAsync does not yet support recordHistory")

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", refuse)
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_flag_nothing_is_recorded(cuda, tmp_path):
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(tmp_path, Config())
    assert cuda == []
    assert list(tmp_path.iterdir()) == []


def test_on_a_cpu_and_without_a_folder_there_is_no_snapshot(cuda, tmp_path, monkeypatch):
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with pytest.raises(OutOfMemoryError, match=r"longest batch\.$"):
        run_out(tmp_path)
    assert cuda == []
    assert list(tmp_path.iterdir()) == []


def cpu_tensor():
    return torch.empty(2**55)


def python_object():
    return bytearray(2**60)


def gpu_tensor():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nGPU 0 has ...")


def named_settings(config):
    """What the message ranks, in its order."""
    with pytest.raises(OutOfMemoryError) as raised, explained_out_of_memory(config):
        gpu_tensor()
    found = re.fullmatch(r".* In this order: 1\. (.*); 2\. (.*); 3\. (.*)\. --dry_run shows .*", str(raised.value))
    return found.groups()


@pytest.mark.parametrize("allocate", [cpu_tensor, python_object, gpu_tensor])
def test_running_out_of_memory_names_the_named_settings(allocate):
    config = Config(train=TrainConfig(batch_size=24))
    with pytest.raises(OutOfMemoryError) as raised, explained_out_of_memory(config):
        allocate()
    message = str(raised.value)
    assert raised.value.exit_code == 4
    assert "--batch_size (now 24)" in message
    assert "--qwen.gradient_checkpointing true" in message
    assert "\n" not in message
    assert raised.value.__cause__ is not None


def test_what_each_setting_saves_is_named():
    first, second, third = named_settings(Config(train=TrainConfig(batch_size=24)))
    assert first == (
        "--train.accumulation 2 (now 1), or half of --batch_size (now 24): activations of 12 queries at a time in "
        "place of 24"
    )
    assert second == (
        "--qwen.gradient_checkpointing true: of Qwen's layers, the activations of one at a time in place of all, in "
        "about a third more time"
    )
    assert third == (
        "--data.max_side 20 (now 30), fewer tasks: at most 400 cells, and so tokens, a grid in place of 900"
    )


def test_a_setting_that_is_changed_already_makes_room_for_the_next():
    config = Config(
        train=TrainConfig(batch_size=1, precision="bf16"), qwen=QwenConfig(gradient_checkpointing=True, dtype="float32")
    )
    assert [each.partition(" (")[0].partition(":")[0] for each in named_settings(config)] == [
        "--data.max_side 20",
        "--qwen.dtype bfloat16",
        "a smaller --agent.hidden_dim",
    ]


def test_the_queries_at_a_time_are_those_of_a_pass_of_a_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    first, *_ = named_settings(Config(train=TrainConfig(batch_size=24, accumulation=2)))
    assert first.startswith("--train.accumulation 4 (now 2), ")
    assert first.endswith(": activations of 2 queries at a time in place of 3")
    # Six queries in five passes: more than six passes cannot be.
    first, *_ = named_settings(Config(train=TrainConfig(batch_size=24, accumulation=5)))
    assert first.startswith("--train.accumulation 6 (now 5), ")
    assert first.endswith(": activations of 1 queries at a time in place of 2")


@given(
    batch_size=st.integers(1, 64),
    precision=st.sampled_from(["no", "bf16", "fp16"]),
    checkpointing=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    max_side=st.integers(2, 30),
)
def test_there_are_always_three(batch_size, precision, checkpointing, dtype, max_side):
    config = Config(
        train=TrainConfig(batch_size=batch_size, precision=precision),
        qwen=QwenConfig(gradient_checkpointing=checkpointing, dtype=dtype),
        data=DataConfig(max_side=max_side),
    )
    assert len(set(named_settings(config))) == 3


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="size mismatch") as raised, explained_out_of_memory(Config()):
        raise RuntimeError("size mismatch")
    assert type(raised.value) is RuntimeError
    with pytest.raises(KeyError), explained_out_of_memory(Config()):
        raise KeyError("a")


def test_nothing_happens_where_memory_suffices():
    with explained_out_of_memory(Config()):
        assert torch.empty(2).shape == (2,)
