import pytest
import torch

from arcdist.errors import OutOfMemoryError
from arcdist.training.memory_limit import explained_out_of_memory


def cpu_tensor():
    return torch.empty(2**55)


def python_object():
    return bytearray(2**60)


def gpu_tensor():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nGPU 0 has ...")


@pytest.mark.parametrize("allocate", [cpu_tensor, python_object, gpu_tensor])
def test_running_out_of_memory_names_the_knobs(allocate):
    with pytest.raises(OutOfMemoryError) as raised, explained_out_of_memory(batch_size=24):
        allocate()
    message = str(raised.value)
    assert raised.value.exit_code == 4
    assert "--batch_size (now 24)" in message
    assert "--qwen.gradient_checkpointing true" in message
    assert "\n" not in message
    assert raised.value.__cause__ is not None


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match="size mismatch") as raised, explained_out_of_memory(batch_size=1):
        raise RuntimeError("size mismatch")
    assert type(raised.value) is RuntimeError
    with pytest.raises(KeyError), explained_out_of_memory(batch_size=1):
        raise KeyError("a")


def test_nothing_happens_where_memory_suffices():
    with explained_out_of_memory(batch_size=1):
        assert torch.empty(2).shape == (2,)
