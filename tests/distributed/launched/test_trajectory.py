"""One trajectory, whatever shares the work: every launcher file on CPU ranks against a single process.

Also in passes that add up to a batch, from two launchers as on two machines, and in bfloat16.
"""

import json
import math

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from arcdist.checkpoint.store import FILES, MANIFEST
from arcdist.models.qwen_source import TINY, embedded_config

pytestmark = pytest.mark.slow

SINGLE = ("cpu", 1)
SEVERAL = [("cpu_2proc", 2), ("cpu_2proc", 3), ("zero1", 2), ("zero2", 2), ("zero2_offload", 2), ("zero3", 2)]

LARGER = {"hidden_size": 48, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
"""The embedding and every linear layer have more elements than what ZeRO-3 leaves whole at `qwen.lora_r` = 2."""


@pytest.fixture(params=SEVERAL, ids=lambda launch: f"{launch[0]}-{launch[1]}")
def several(request, launched):
    """20 steps of batches of 7, the last of each epoch of 1, on several processes."""
    return launched(*request.param, program="noting")


@pytest.fixture
def single(launched):
    return launched(*SINGLE, program="noting")


def test_the_reference_is_worth_following(single):
    steps = single.steps()
    assert [record["step"] for record in steps] == list(range(1, 21))
    assert sorted({len(note["batch"]) for note in single.noted()[0]}) == [1, 7]
    assert any(record["reward/mean"] > 0.1 for record in steps)
    assert any(record["reward/mean"] < -0.1 for record in steps)
    assert {len({record[f"reward/{part}"] for record in steps}) > 2 for part in ("d_acc", "d_color", "d_rev")} == {True}
    assert any(record["grad_norm/agent"] > 1.0 for record in steps)  # clipped
    assert single.epochs()[-1]["solver/problems"] == 12


def test_20_steps_are_those_of_a_single_process(several, single, assert_same_trajectory):
    assert_same_trajectory(several, single)


@pytest.mark.parametrize(("config", "processes"), [("cpu_2proc", 3), ("zero2", 2)])
@pytest.mark.parametrize(
    "more",
    [("--qwen.every=3",), ("--refiner.draws=3", "--agent.task_vector_dropout=0.5", "--agent.dropout=0.2")],
    ids=["kept", "draws"],
)
def test_several_views_of_a_query_are_those_of_a_single_process(
    launched, assert_same_trajectory, config, processes, more
):
    flags = (
        *("--agent.views_per_reading=2", "--agent.backward_share=0.5", "--refiner.rewarded_share=0.25"),
        *more,
    )
    one, several = (launched(*launch, *flags, program="noting") for launch in (SINGLE, (config, processes)))
    assert len({record["reward/d_acc"] for record in one.steps()}) > 2
    assert_same_trajectory(several, one)


@pytest.mark.parametrize(("config", "processes"), [("cpu_2proc", 3), ("zero2", 2)])
def test_steps_of_muon_are_those_of_a_single_process(launched, assert_same_trajectory, config, processes):
    flags = ("--optim.matrix_optimizer=muon", "--optim.muon_lr=0.001", "--max_batches=3", "--epochs=2")
    one, several = (launched(*launch, *flags, program="noting") for launch in (SINGLE, (config, processes)))
    assert one.steps()[0]["grad_norm/agent_matrices"] > 0.0
    # Muon computes in bfloat16, which may round what differs in float32's last bit to different numbers.
    assert_same_trajectory(several, one, tolerance=5e-4, of_weights=5e-4)


@pytest.mark.parametrize(("config", "processes"), [("cpu_2proc", 2), ("zero2", 2)])
def test_with_a_budget_all_processes_end_with_the_same_step(launched, config, processes):
    # Weights are compared after each step, bit for bit, so the learning rates were the same.
    flags = ("--budget_minutes=0.07", "--qwen.lora_dropout=0.1", "--train.accumulation=2")
    run = launched(config, processes, *flags, program="noting")
    assert set(run.codes) == {0}, run.err
    steps, epochs, (first, second) = run.steps(), run.epochs(), run.noted()
    assert [note["batch"] for note in first] == [note["batch"] for note in second]
    assert [record["step"] for record in steps] == list(range(1, len(first) + 1))
    assert [epoch["epoch"] for epoch in epochs] == list(range(len(epochs)))
    assert (epochs[-1]["step"], "val/exact" in epochs[-1]) == (steps[-1]["step"], True)
    assert steps[-1]["lr/agent"] == 0.0 < steps[-2]["lr/agent"]
    state = run.checkpoint(steps[-1]["step"])[1]
    # The last step began when the time was used, and the one before it did not.
    assert 4.2 <= state["seconds"] <= steps[-1]["time/elapsed_s"]
    assert all(record["time/elapsed_s"] < 4.2 for record in steps[:-2])


def test_every_query_is_computed_once_by_someone(several, single):
    for *ranks, alone in zip(*several.noted(), *single.noted(), strict=True):
        assert {tuple(note["batch"]) for note in ranks} == {tuple(alone["batch"])}
        computed = [query for note in ranks for query in note["own"]]
        assert sorted(computed) == sorted(alone["own"]) == sorted(alone["batch"])
        counts = [len(note["own"]) for note in ranks]
        assert max(counts) - min(counts) <= 1


def test_rank_0_alone_writes_and_speaks(several):
    ranks = len(several.noted())
    files = {str(path.relative_to(several.folder)) for path in several.folder.rglob("*") if path.is_file()}
    zero = {"deepspeed.json"} if (several.folder / "deepspeed.json").exists() else set()
    assert files == zero | {
        *("config.yaml", "run.json", "training.log", "steps.jsonl", "metrics.json", "metrics_plot.png"),
        "validation/epoch_00003.json",
        *(f"heartbeats/rank_{rank:05d}.json" for rank in range(ranks)),
        *(f"{place}/{name}" for place in ("checkpoints/step_00000020", "best") for name in (*FILES, MANIFEST)),
    }
    assert [record["step"] for record in several.steps()] == list(range(1, 21))
    # DeepSpeed prints one line of its own, of an extension that it has built.
    assert [line for line in several.out.splitlines() if not line.startswith("DeepSpeed ")] == []
    assert several.messages == []
    for text in (several.err, (several.folder / "training.log").read_text()):
        assert text.count(" step 7: ") == text.count(" epoch 3: ") == text.count("Run folder") == 1
        assert "Traceback" not in text
        assert "Warning" not in text


@pytest.mark.parametrize("config", ["zero3"])
def test_deepspeed_s_whole_configuration_is_printed_and_saved(launched, config):
    run = launched(config, 2, program="noting")
    saved = json.loads((run.folder / "deepspeed.json").read_text())
    assert "auto" not in str(saved)
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert [saved[size] for size in sizes] == [8, 4, 1, 1.0]
    assert saved["zero_optimization"]["stage"] == 3
    assert '"stage": 3' in run.err


@pytest.mark.parametrize(("config", "processes"), [("cpu_2proc", 2), ("zero2", 3)])
def test_kept_prompts_are_those_of_a_single_process(launched, assert_same_trajectory, config, processes):
    flags = (
        *("--qwen.every=3", "--qwen.lm_weight=0.5"),
        *("--data.max_tasks=4", "--epochs=7", "--output.validate_every=7"),
    )
    single, several = (launched(*launch, *flags, program="noting") for launch in (SINGLE, (config, processes)))
    # What is taught adds to what is rounded.
    assert_same_trajectory(several, single, tolerance=2e-5)
    read = [[note["read"] for note in ranks] for ranks in zip(*several.noted(), strict=True)]
    assert [sum(counts) for counts in read] == [note["read"] for note in single.noted()[0]]
    # Some steps read all, some none; and in some a process has nothing to read while the other has.
    assert any(sum(counts) == 0 for counts in read)
    assert any(min(counts) == 0 < max(counts) for counts in read)
    assert any(min(counts) > 0 for counts in read)


@pytest.fixture(scope="session")
def model_folder(shared_folder):
    """A small model with its tokenizer, as a download leaves it."""
    folder = shared_folder / "model"
    with FileLock(shared_folder / "model.lock"):
        if not folder.exists():
            torch.manual_seed(0)
            Qwen2ForCausalLM(Qwen2Config(**embedded_config(TINY).to_dict() | LARGER)).save_pretrained(folder)
            symbols = [*"0123456789", "Ċ", "I", "O", "<|endoftext|>"]
            tokenizer = Tokenizer(BPE({symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
            tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
            PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("config", ["zero3"])
def test_under_zero_3_no_process_holds_a_pretrained_matrix_whole(
    launched, model_folder, assert_same_trajectory, config
):
    flags = ("--qwen.model", str(model_folder), "--qwen.lm_weight=0.5", "--max_batches=3", "--epochs=2")
    single = launched("cpu", 1, *flags)
    run = launched(config, 2, *flags, program="sharded", environment=(("MODEL", str(model_folder)),))
    assert_same_trajectory(run, single)
    threshold = json.loads((run.folder / "deepspeed.json").read_text())["zero_optimization"][
        "stage3_param_persistence_threshold"
    ]
    for notes in run.noted():
        assert len(notes) == 6
        for note in notes:
            assert note["different"] == []
            matrices = [sizes for sizes in note["held"].values() if sizes[0] > threshold]
            assert len(matrices) == 1 + 2 * 7  # the embedding, and seven in each of two layers
            assert all((held, shard) == (0, -(-whole // 2)) for whole, held, shard in matrices)
            assert all(shard == -(-whole // 2) for whole, _, shard in note["held"].values())


# 29 queries make batches of 8 and of 7: in some steps a process has a pass without a query of its own.
BATCHES_OF_8 = ("--batch_size=8", "--epochs=2", "--qwen.lm_weight=0.5")


@pytest.mark.parametrize(
    ("config", "processes", "passes"),
    [
        ("single_gpu", 1, 8),
        ("multi_gpu", 2, 4),
        ("zero1", 2, 4),
        ("zero2", 1, 8),
        ("zero2", 2, 4),
        ("zero2_offload", 2, 4),
        ("zero3", 2, 4),
    ],
)
def test_passes_add_up_to_the_batch(launched, assert_same_trajectory, config, processes, passes):
    whole = launched("cpu", 1, *BATCHES_OF_8)
    parts = launched(config, processes, *BATCHES_OF_8, f"--train.accumulation={passes}")
    assert [record["step"] for record in whole.steps()] == list(range(1, 9))
    losses = [record["lm_loss"] for record in whole.steps()]
    assert losses[-1] < losses[0] - 0.01
    assert_same_trajectory(parts, whole)


@pytest.mark.parametrize(("config", "alone"), [("cpu_2proc", "cpu_2proc"), ("multi_node_zero2", "zero2")])
def test_two_launchers_are_one_run(launched, assert_same_trajectory, config, alone):
    one, two = launched(alone, 2, program="noting"), launched(config, 2, program="noting", machines=2)
    assert two.codes == [0, 0]
    assert_same_trajectory(two, one, tolerance=1e-6, of_weights=1e-6)
    assert two.noted() == one.noted()
    assert len(list((two.folder / "heartbeats").iterdir())) == 2
    assert two.err.count(" step 7: ") == 1


BF16 = ("--train.precision=bf16", "--qwen.dtype=bfloat16", "--qwen.gradient_checkpointing=true")
# A refiner that changes no answer: one cell that rounding turns would make a reward, and a reward another gradient.
CALM = ("--refiner.rl_delta_scale=0.01", "--max_batches=3")


@pytest.fixture
def single_bf16(launched):
    return launched("cpu", 1, *BF16, *CALM)


@pytest.mark.parametrize("config", ["cpu_2proc", "zero1", "zero2", "zero2_offload", "zero3"])
def test_bf16_on_several_processes_is_that_of_one(launched, single_bf16, config):
    several = launched(config, 2, *BF16, *CALM)
    assert {*several.codes, *single_bf16.codes} == {0}, several.err
    for record, other in zip(several.steps(), single_bf16.steps(), strict=True):
        assert all(math.isfinite(value) for name, value in record.items() if name != "flags")
        for name in ("loss", "efe/total", "size_loss", "solver_loss", "grad_norm/agent", "grad_norm/qwen"):
            rel = 0.05 if name.startswith("grad_norm") else 0.03
            assert record[name] == pytest.approx(other[name], rel=rel), (name, record["step"])


def test_bf16_is_near_float32_and_is_not_float32(launched, single_bf16):
    whole = launched("cpu", 1, *CALM)
    losses = [(record["loss"], other["loss"]) for record, other in zip(single_bf16.steps(), whole.steps(), strict=True)]
    assert all(loss == pytest.approx(other, rel=0.02) for loss, other in losses)
    assert any(loss != pytest.approx(other, rel=1e-4) for loss, other in losses)
