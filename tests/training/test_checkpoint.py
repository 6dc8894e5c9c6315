import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from arcdist.errors import DataError
from arcdist.training.checkpoint import (
    MOMENTS,
    STATE,
    WEIGHTS,
    checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_folder,
)

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.bool)


def tensors(value):
    """One tensor of each type that a run keeps, and an empty one."""
    return {str(dtype): torch.tensor([value, 0, 1]).to(dtype) for dtype in DTYPES} | {"empty": torch.zeros(0, 4)}


def save(folder, value=1):
    save_checkpoint(folder, tensors(value), {"p@exp_avg": torch.full((2,), float(value))}, {"step": value})


def assert_holds(folder, value):
    weights, moments, state = load_checkpoint(folder)
    expected = tensors(value)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)
    assert moments["p@exp_avg"].tolist() == [value, value]
    assert state == {"step": value}


def test_what_is_saved_is_what_is_loaded_and_nothing_else_is_there(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000001"
    save(folder)
    assert_holds(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, MOMENTS, STATE])
    assert list(folder.parent.iterdir()) == [folder]


def test_a_checkpoint_of_the_same_name_is_replaced(tmp_path):
    save(tmp_path / "best", 1)
    save(tmp_path / "best", 2)
    assert_holds(tmp_path / "best", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("failure", ["weights", "state"])
def test_a_failure_while_writing_leaves_the_old_one(tmp_path, failure):
    save(tmp_path / "best", 1)
    shared = torch.zeros(4)  # safetensors refuses two names for one memory
    weights = {"a": shared, "b": shared[:2]} if failure == "weights" else {"a": shared}
    state = {"step": object()} if failure == "state" else {"step": 2}
    with pytest.raises((RuntimeError, TypeError)):
        save_checkpoint(tmp_path / "best", weights, {}, state)
    assert_holds(tmp_path / "best", 1)
    # What the failure left behind is in nobody's way.
    save(tmp_path / "best", 3)
    assert_holds(tmp_path / "best", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_was_half_written_is_no_checkpoint(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(step_folder(tmp_path, 7), {}, {}, {"step": object()})
    assert checkpoints(tmp_path) == []


def test_the_newest_are_kept_in_the_order_of_their_steps(tmp_path):
    for step in (100, 5, 20, 1000000):
        save(step_folder(tmp_path, step))
    (tmp_path / "notes").mkdir()
    assert [folder.name for folder in checkpoints(tmp_path)] == [
        "step_00000005",
        "step_00000020",
        "step_00000100",
        "step_01000000",
    ]
    prune(tmp_path, keep_last=2)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step_00000100", "step_01000000"]
    prune(tmp_path, keep_last=5)
    assert len(checkpoints(tmp_path)) == 2
    assert (tmp_path / "notes").is_dir()


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, STATE])
@pytest.mark.parametrize("damage", ["missing", "cut off", "garbage"])
def test_a_broken_checkpoint_is_told_by_its_path(tmp_path, name, damage):
    save(tmp_path / "best")
    file = tmp_path / "best" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3] if damage == "cut off" else b"\xff\xfe garbage")
    with pytest.raises(DataError, match=r"is no whole checkpoint \(.*\): choose another") as raised:
        load_checkpoint(tmp_path / "best")
    assert str(tmp_path / "best") in str(raised.value)
    assert raised.value.exit_code == 2


def test_there_is_nothing_to_unpickle(tmp_path):
    save(tmp_path / "best")
    json.loads((tmp_path / "best" / STATE).read_text())
    for name in (WEIGHTS, MOMENTS):
        content = (tmp_path / "best" / name).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        # safetensors: a length, a JSON header, and the bytes that it names; nothing after them.
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        assert len(content) == 8 + int.from_bytes(content[:8], "little") + end


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_whole_checkpoints_only(tmp_path):
    program = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from arcdist.training.checkpoint import save_checkpoint, step_folder\n"
        "for step in range(1, 100000):\n"
        "    weights = {'a': torch.full((500_000,), float(step))}\n"
        "    save_checkpoint(step_folder(Path(sys.argv[1]), step), weights, {}, {'step': step})\n"
    )
    for round_ in range(3):
        root = tmp_path / str(round_)
        writer = subprocess.Popen([sys.executable, "-c", program, str(root)])
        while len(checkpoints(root)) < 3 + round_:
            assert writer.poll() is None
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for folder in checkpoints(root):
            weights, _, state = load_checkpoint(folder)
            assert folder == step_folder(root, state["step"])
            assert (weights["a"] == state["step"]).all()
        shutil.rmtree(root)
