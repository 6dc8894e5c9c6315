import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import Config, DataConfig, QwenConfig, TrainConfig
from arcdist.errors import OutOfMemoryError
from arcdist.training.memory_limit import explained_out_of_memory


def cpu_tensor():
    return torch.empty(2**55)


def python_object():
    return bytearray(2**60)


def gpu_tensor():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nGPU 0 has ...")


def knobs(config):
    """What the message ranks, in its order."""
    with pytest.raises(OutOfMemoryError) as raised, explained_out_of_memory(config):
        gpu_tensor()
    found = re.fullmatch(r".* In this order: 1\. (.*); 2\. (.*); 3\. (.*)\. --dry_run shows .*", str(raised.value))
    return found.groups()


@pytest.mark.parametrize("allocate", [cpu_tensor, python_object, gpu_tensor])
def test_running_out_of_memory_names_the_knobs(allocate):
    config = Config(train=TrainConfig(batch_size=24))
    with pytest.raises(OutOfMemoryError) as raised, explained_out_of_memory(config):
        allocate()
    message = str(raised.value)
    assert raised.value.exit_code == 4
    assert "--batch_size (now 24)" in message
    assert "--qwen.gradient_checkpointing true" in message
    assert "\n" not in message
    assert raised.value.__cause__ is not None


def test_what_each_knob_saves_is_told():
    first, second, third = knobs(Config(train=TrainConfig(batch_size=24)))
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


def test_a_knob_that_is_turned_already_makes_room_for_the_next():
    config = Config(
        train=TrainConfig(batch_size=1, precision="bf16"), qwen=QwenConfig(gradient_checkpointing=True, dtype="float32")
    )
    assert [knob.partition(" (")[0].partition(":")[0] for knob in knobs(config)] == [
        "--data.max_side 20",
        "--qwen.dtype bfloat16",
        "a smaller --agent.hidden_dim",
    ]


def test_the_queries_at_a_time_are_those_of_a_pass_of_a_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    first, *_ = knobs(Config(train=TrainConfig(batch_size=24, accumulation=2)))
    assert first.startswith("--train.accumulation 4 (now 2), ")
    assert first.endswith(": activations of 2 queries at a time in place of 3")
    # Six queries in five passes: more than six passes cannot be.
    first, *_ = knobs(Config(train=TrainConfig(batch_size=24, accumulation=5)))
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
    assert len(set(knobs(config))) == 3


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="size mismatch") as raised, explained_out_of_memory(Config()):
        raise RuntimeError("size mismatch")
    assert type(raised.value) is RuntimeError
    with pytest.raises(KeyError), explained_out_of_memory(Config()):
        raise KeyError("a")


def test_nothing_happens_where_memory_suffices():
    with explained_out_of_memory(Config()):
        assert torch.empty(2).shape == (2,)
