"""A pretrained language model from its folder to a PEFT adapter, and Qwen's own tokenizer."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from shared.families import FAMILIES
from shared.ranks import environment_of_runs
from shared.real_models import qwen_tokenizer, smollm2
from transformers import AutoModel, AutoTokenizer

from arcdist.data.tasks import Pair
from arcdist.data.text import locate_qwen, read_tokenizer
from arcdist.models.qwen import QwenHybridPrompt

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def start(ranks, tmp_path, tiny_flags):
    """Call a program as a user does: what it printed. It must succeed."""

    def call(program, *argv):
        out, err = (tmp_path / f"{program}.{stream}" for stream in ("out", "err"))
        command = [str(LAUNCH / program), *argv]
        environment = environment_of_runs(tmp_path / "huggingface")
        assert ranks("python", 1).start(command, tmp_path, out, err, environment).wait() == [0], err.read_text()
        return out.read_text() + err.read_text()

    def train(*argv):
        return call("train.py", *tiny_flags, "--qwen.lora_r=2", "--output_dir=run", *argv)

    return call, train


# PEFT asks transformers by a name that is to be removed in its version 6.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_pretrained_model_from_its_folder_to_an_adapter_for_peft(start, tmp_path):
    call, train = start
    folder = smollm2()
    flags = ("--qwen.model", str(folder), "--max_batches=1", "--batch_size=2", "--output.validate_every=100")
    train(*flags, "--epochs=2")
    assert "Resumed" in train(*flags, "--epochs=3", "--resume")
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step["grad_norm/qwen"] > 0 for step in steps)
    call("checkpoint.py", "export", "run/checkpoints/step_00000003", "export")

    trained = load_file(tmp_path / "run" / "checkpoints" / "step_00000003" / "weights.safetensors")
    adapter = {name.removeprefix("qwen."): value for name, value in trained.items() if name.startswith("qwen.body.")}
    ours = QwenHybridPrompt(str(folder), lora_r=2, dtype="float32")
    assert adapter.keys() == {name for name, p in ours.named_parameters() if p.requires_grad and "body" in name}
    ours.load_state_dict(adapter, strict=False)
    theirs = PeftModel.from_pretrained(
        AutoModel.from_pretrained(folder, dtype=torch.float32), str(tmp_path / "export" / "adapter")
    )
    context = [Pair(np.eye(3, dtype=np.uint8), np.full((3, 2), 4, dtype=np.uint8))]
    tokens = torch.tensor(ours.tokenizer.encode(context, np.zeros((2, 2), dtype=np.uint8)))[None]
    with torch.no_grad():
        expected = ours.body(input_ids=tokens, use_cache=False).last_hidden_state
        torch.testing.assert_close(theirs(input_ids=tokens).last_hidden_state, expected, rtol=0, atol=1e-5)
        with theirs.disable_adapter():
            bare = theirs(input_ids=tokens).last_hidden_state
    assert (bare - expected).abs().max() > 1e-3


@pytest.fixture
def qwen_folder(tmp_path):
    """Make the folder of a small model of a family, without weights, with Qwen's tokenizer."""

    def make(family):
        folder = shutil.copytree(qwen_tokenizer(), tmp_path / family)
        config = type(FAMILIES[family])(**FAMILIES[family].to_dict() | {"vocab_size": 151_936})
        config.save_pretrained(folder)
        return folder

    return make


def test_qwen_s_own_tokenizer_gives_the_grids_back(qwen_folder):
    folder = qwen_folder("qwen3")
    ours, theirs = read_tokenizer(locate_qwen(str(folder), "random")), AutoTokenizer.from_pretrained(folder)
    assert ours.name == f"the tokenizer of {folder}"
    random = np.random.default_rng(0)
    for _ in range(200):
        sides = random.integers(1, 31, (2 * random.integers(1, 6) + 1, 2))
        grids = [random.integers(0, 10, size, dtype=np.uint8) for size in sides]
        tokens = ours.encode([Pair(*pair) for pair in zip(grids[:-1:2], grids[1::2], strict=True)], grids[-1])
        text = theirs.decode(tokens)
        assert theirs.encode(text, add_special_tokens=False) == tokens.tolist()
        *written, rest = re.findall(r"([IO])([^IO]*)", text)
        assert rest == ("O", "")
        assert "".join(letter for letter, _ in written) == "IO" * (len(grids) // 2) + "I"
        for (_, rows), grid in zip(written, grids, strict=True):
            assert [[*map(int, row)] for row in rows.splitlines()] == grid.tolist()


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_next", "qwen3_5"])
def test_two_steps_with_qwen_s_own_tokenizer(start, qwen_folder, tmp_path, family):
    _, train = start
    folder = qwen_folder(family)
    text = train("--qwen.model", str(folder), "--qwen.init=random", "--max_batches=2")
    assert f"reads the tokens of the tokenizer of {folder}" in text
    steps = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["grad_norm/qwen"] > 0 for step in steps)
