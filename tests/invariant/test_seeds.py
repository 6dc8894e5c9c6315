"""The same seed gives the same run, bit for bit; another seed gives another one."""

import json
from itertools import pairwise

import pytest
import torch
from shared.measured import without_measured

from arcdist.checkpoint.state import gather_weights
from arcdist.distributed import Heartbeat
from arcdist.training.loop import Loop


@pytest.fixture
def run(build_tiny, tmp_path):
    """The logged steps, the last epoch's record and the weights of a tiny run."""

    def run(name, *flags):
        session = build_tiny("--max_batches=3", *flags)
        folder = tmp_path / name
        folder.mkdir()
        Loop(session, folder, Heartbeat(folder, 0)).run()
        steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        (epoch,) = json.loads((folder / "metrics.json").read_text())["epochs"]
        return without_measured(steps), without_measured(epoch), gather_weights(session)

    return run


@pytest.mark.parametrize("flags", [(), ("--agent.kind=conv",), ("--train.precision=bf16", "--qwen.lora_dropout=0.1")])
def test_the_same_seed_gives_the_same_numbers_and_weights(run, flags):
    steps, epoch, weights = run("first", "--seed=7", *flags)
    torch.manual_seed(123)  # the state that a process happens to be in plays no part
    steps_again, epoch_again, weights_again = run("second", "--seed=7", *flags)
    assert len(steps) == 3
    assert steps == steps_again
    assert epoch == epoch_again
    assert weights.keys() == weights_again.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, weights_again[name]), name


def test_another_seed_gives_other_losses_from_the_first_step(run):
    runs = [run(str(seed), f"--seed={seed}") for seed in (0, 1, 2)]
    for (steps, _, weights), (other_steps, _, other_weights) in pairwise(runs):
        for one, other in zip(steps, other_steps, strict=True):
            assert one["loss"] != other["loss"]
        assert not any(
            torch.equal(weights[name], other_weights[name])
            for name in weights
            if name.endswith("lora_A.default.weight") or name == "grid.agent.from_prompt.weight"
        )


def test_the_seed_reaches_weights_batches_augmentation_and_refinement_apart(build_tiny):
    one, other = build_tiny("--seed=0"), build_tiny("--seed=1")
    assert one.training.batches.batches(0) != other.training.batches.batches(0)
    assert not torch.equal(one.models.agent.from_prompt.weight, other.models.agent.from_prompt.weight)
    rows = list(range(8))
    seen = [next(session.training.load([rows], 0, session.device)) for session in (one, other)]
    assert seen[0].ids == seen[1].ids
    assert not torch.equal(*(batch.queries[0].inputs.dihedral for batch in seen))
    noise = [session.refinement_noise(batch, 0) for session, batch in zip((one, other), seen, strict=True)]
    assert not torch.equal(*(draws for (draws,) in noise))
    # The queries themselves, and what is scored, are the same for every seed.
    assert one.training.queries.ids == other.training.queries.ids
    assert one.validation.batches.batches(0) == other.validation.batches.batches(0)
