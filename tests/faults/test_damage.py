"""Checkpoints that are no longer what was saved, by accident or by design."""

import json
import os
import pickle
import random
import re

import pytest
import torch

from arcdist.checkpoint.resume import find_start
from arcdist.checkpoint.store import FILES, MANIFEST, load_checkpoint, manifest_entry, manifest_text
from arcdist.errors import DataError

pytestmark = pytest.mark.slow

DAMAGES = ("flipped", "cut off", "missing")
NEWEST, BEFORE = "checkpoints/step_00000009", "checkpoints/step_00000006"


def damage(file, how):
    content = bytearray(file.read_bytes())
    position = random.Random(f"{file.name} {how}").randrange(len(content))
    if how == "missing":
        file.unlink()
    elif how == "cut off":
        file.write_bytes(content[:position])
    else:
        content[position] ^= 1 << position % 8
        file.write_bytes(content)


def found_by(run, resume="newest"):
    """What a run that resumes would continue from."""
    start = find_start(str(run), resume)
    start.lock.release()
    return start


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(saved, name, how):
    damage(saved / NEWEST / name, how)
    start = found_by(saved)
    assert start.checkpoint == saved / BEFORE
    (warning,) = start.warnings
    assert str(saved / NEWEST / name) in warning
    assert warning.endswith(" The one before it is taken.")
    with pytest.raises(DataError, match="Resume from another checkpoint") as raised:
        found_by(saved, str(saved / NEWEST))
    assert str(saved / NEWEST / name) in str(raised.value)


def assert_resumes_before(start, saved, assert_ended_as, name, how):
    damage(saved / NEWEST / name, how)
    attempt = start("--resume", launcher=False)
    assert attempt.wait() == 0, attempt.output
    assert attempt.resumed_from == 6
    log = (saved / "training.log").read_text()
    (line,) = [line for line in log.splitlines() if "The one before it is taken." in line]
    assert f"{NEWEST}/{name}" in line
    assert line.partition(" WARNING ")[2] in attempt.output
    assert_ended_as(saved, 1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_so_does_one_with_any_damage(start, saved, assert_ended_as, name, how):
    assert_resumes_before(start, saved, assert_ended_as, name, how)


class Trap:
    """What is unpickled from it is a folder that is made."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    """A folder that is there once something of a stranger's has run."""
    return tmp_path / "it_ran"


def replace_by_pickle(folder, name, marker):
    """Put a pickle in the place of a file, with a manifest that vouches for it."""
    (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    if name != MANIFEST:
        entries = {file: manifest_entry((folder / file).read_bytes()) for file in FILES}
        (folder / MANIFEST).write_text(manifest_text(entries))


def test_the_trap_works(tmp_path, marker):
    pickle.loads(pickle.dumps(Trap(marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_nothing_in_a_checkpoint_is_unpickled(saved, marker, name):
    folder = saved / NEWEST
    replace_by_pickle(folder, name, marker)
    with pytest.raises(DataError, match=rf"^{re.escape(f'{folder}/{name}')}(:| is no) "):
        load_checkpoint(folder)
    assert not marker.exists()


def test_a_run_refuses_a_pickle_in_place_of_weights(start, saved, marker):
    for folder in (NEWEST, BEFORE, "checkpoints/step_00000003", "best"):
        replace_by_pickle(saved / folder, "weights.safetensors", marker)
    attempt = start("--resume", launcher=False)
    assert attempt.wait() == 2
    assert f"{NEWEST}/weights.safetensors is no safetensors file" in attempt.output
    assert "Traceback" not in attempt.output
    assert not marker.exists()


def test_a_run_goes_on_from_the_one_before_and_looks_at_no_pickle_beside_it(start, saved, assert_ended_as, marker):
    for name in ("optimizer.bin", "pytorch_model.bin", "random_states_0.pkl"):
        (saved / BEFORE / name).write_bytes(pickle.dumps(Trap(marker)))
        torch.save(Trap(marker), saved / name)
    assert_resumes_before(start, saved, assert_ended_as, "weights.safetensors", "flipped")
    assert not marker.exists()


CODE = """\
from pathlib import Path

from transformers import Qwen2Config, Qwen2Model

Path({marker!r}).mkdir()


class OwnConfig(Qwen2Config):
    model_type = "own"


class OwnModel(Qwen2Model):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("model_type", ["own", "qwen2"])
def test_a_model_s_own_code_and_pickles_are_not_run(start, tmp_path, marker, model_type):
    model = tmp_path / "model"
    model.mkdir()
    own = {name: f"modeling_own.Own{name.removeprefix('Auto')}" for name in ("AutoConfig", "AutoModel")}
    own["AutoModelForCausalLM"] = own["AutoModel"]
    (model / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": ["OwnModel"], "auto_map": own})
    )
    (model / "modeling_own.py").write_text(CODE.format(marker=str(marker)))
    torch.save({"weight": Trap(marker)}, model / "pytorch_model.bin")
    attempt = start("--qwen.model", str(model), launcher=False)
    assert attempt.wait() in (2, 3)
    (message,) = [line for line in attempt.output.splitlines() if line.startswith("train.py: ")]
    assert str(model) in message
    assert "Traceback" not in attempt.output
    assert not marker.exists()
