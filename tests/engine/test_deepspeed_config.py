"""DeepSpeed's file: what is read, what is filled in, and every contradiction with both of its places."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import Config, OptimConfig, QwenConfig, TrainConfig
from arcdist.engine.deepspeed_config import effective_deepspeed_config, read_deepspeed_config
from arcdist.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((CHECKOUT / "ds_configs").glob("*.json"))
RUN: dict[str, Any] = {
    "micro_batch_size": 8,
    "processes": 2,
    "accumulation": 3,
    "hidden_size": 100,
    "lora_r": 16,
}


def effective(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    run = RUN | changes
    batch_size = run["micro_batch_size"] * run["processes"] * run["accumulation"]
    config = Config(
        train=TrainConfig(batch_size=batch_size, accumulation=run["accumulation"]),
        optim=OptimConfig(max_grad_norm=1.0),
        qwen=QwenConfig(lora_r=run["lora_r"]),
    )
    return effective_deepspeed_config(
        raw, "my.json", config, processes=run["processes"], hidden_size=run["hidden_size"]
    )


def refusal(raw: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        effective(raw, **changes)
    assert raised.value.exit_code == 2
    return str(raised.value)


def zero(**fields: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 2, **fields}}


class TestReading:
    def read(self, folder: Path, text: str) -> dict[str, Any]:
        (folder / "my.json").write_text(text)
        return read_deepspeed_config(str(folder / "my.json"))

    def test_a_relative_path_is_found_in_the_checkout_from_any_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert read_deepspeed_config("ds_configs/zero3.json")["zero_optimization"]["stage"] == 3

    def test_a_file_in_the_working_directory_goes_first(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("ds_configs").mkdir()
        Path("ds_configs/zero3.json").write_text('{"zero_optimization": {"stage": 1}}')
        assert read_deepspeed_config("ds_configs/zero3.json") == {"zero_optimization": {"stage": 1}}

    def test_a_missing_file_is_named_with_the_places_looked_in(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError) as raised:
            read_deepspeed_config("ds_configs/zero4.json")
        assert str(raised.value) == (
            f"deepspeed_config_file is ds_configs/zero4.json, and there is no such file, neither in {tmp_path} nor in "
            f"{CHECKOUT}: correct it in the launcher's configuration, or take one of ds_configs/, such as "
            f"ds_configs/zero2.json."
        )
        assert raised.value.exit_code == 2

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                '{"zero_optimization":\n {"stage" 2}}',
                "(Expecting ':' delimiter: line 2 column 11 (char 32)): DeepSpeed's",
            ),
            (
                "// a comment\n{}",
                "(Expecting value: line 1 column 1 (char 0)): DeepSpeed's configuration is JSON, without",
            ),
            ("[]", "my.json is no JSON object"),
            ('{"zero_optimization": {"stage": 2, "stage": 3}}', "my.json sets stage twice"),
            ("{}", "my.json has no zero_optimization.stage of 1, 2 or 3"),
            ('{"zero_optimization": true}', "my.json has no zero_optimization.stage of 1, 2 or 3"),
            ('{"zero_optimization": {"stage": "auto"}}', "my.json has no zero_optimization.stage of 1, 2 or 3"),
            ('{"zero_optimization": {"stage": true}}', "my.json has no zero_optimization.stage of 1, 2 or 3"),
            ('{"zero_optimization": {"stage": 4}}', "my.json has no zero_optimization.stage of 1, 2 or 3"),
            ('{"zero_optimization": {"stage": 0}}', "launch with accelerate_configs/multi_gpu.yaml"),
        ],
    )
    def test_what_is_no_configuration_is_refused(self, tmp_path, text, message):
        with pytest.raises(ConfigError) as raised:
            self.read(tmp_path, text)
        assert message in str(raised.value)
        assert str(tmp_path / "my.json") in str(raised.value)

    def test_a_file_that_is_no_text_is_refused(self, tmp_path):
        (tmp_path / "my.json").write_bytes(b"{\xff}")
        with pytest.raises(
            ConfigError, match=r"my\.json cannot be read \('utf-8' codec can't decode byte 0xff in position 1"
        ):
            read_deepspeed_config(str(tmp_path / "my.json"))


class TestFilling:
    def test_auto_becomes_the_numbers_of_the_run(self):
        raw = {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": "auto",
                "allgather_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "overlap_comm": True,
            },
        }
        before = copy.deepcopy(raw)
        assert effective(raw) == {
            "train_batch_size": 48,
            "train_micro_batch_size_per_gpu": 8,
            "gradient_accumulation_steps": 3,
            "gradient_clipping": 1.0,
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": 10_000,
                "allgather_bucket_size": 10_000,
                "stage3_prefetch_bucket_size": 9_000,
                "stage3_param_persistence_threshold": 9_600,
                "overlap_comm": True,
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        assert raw == before

    def test_numbers_of_the_run_are_set_where_the_file_is_silent(self):
        filled = effective(zero())
        assert (filled["train_batch_size"], filled["gradient_clipping"]) == (48, 1.0)
        assert filled["zero_optimization"] == {"stage": 2}

    def test_what_the_file_sets_itself_stays(self):
        raw = zero(reduce_bucket_size=5, offload_optimizer={"device": "cpu", "pin_memory": False})
        raw |= {"zero_allow_untested_optimizer": False, "steps_per_print": 7}
        filled = effective(raw)
        assert filled["zero_optimization"] == raw["zero_optimization"]
        assert filled["zero_allow_untested_optimizer"] is False
        assert filled["steps_per_print"] == 7

    def test_small_adapters_leave_the_threshold_where_accelerate_has_it(self):
        raw = zero(stage3_param_persistence_threshold="auto")
        assert effective(raw, lora_r=1)["zero_optimization"]["stage3_param_persistence_threshold"] == 1_000

    # Widths of Qwen2.5, from 0.5B to 72B: hidden_size, intermediate_size, narrowest matrix of the base.
    @pytest.mark.parametrize(
        ("width", "inner", "key_width"),
        [(896, 4864, 128), (1536, 8960, 256), (2048, 11008, 256), (3584, 18944, 512), (8192, 29568, 1024)],
    )
    def test_adapters_stay_whole_and_the_base_does_not(self, width, inner, key_width):
        raw = zero(stage3_param_persistence_threshold="auto")
        threshold = effective(raw, hidden_size=width)["zero_optimization"]["stage3_param_persistence_threshold"]
        assert 16 * inner <= threshold < width * key_width

    @given(
        micro_batch_size=st.integers(1, 1000),
        processes=st.integers(1, 64),
        accumulation=st.integers(1, 64),
        path=st.sampled_from(SHIPPED),
    )
    def test_the_batch_is_the_product_that_deepspeed_demands(self, micro_batch_size, processes, accumulation, path):
        filled = effective(
            read_deepspeed_config(str(path)),
            micro_batch_size=micro_batch_size,
            processes=processes,
            accumulation=accumulation,
        )
        assert filled["train_batch_size"] == micro_batch_size * processes * accumulation
        assert "auto" not in json.dumps(filled)
        assert effective(filled, micro_batch_size=micro_batch_size, processes=processes, accumulation=accumulation) == (
            filled
        )


class TestContradictions:
    @pytest.mark.parametrize(
        ("key", "value", "told"),
        [
            ("gradient_clipping", 0.5, "but optim.max_grad_norm is 1.0"),
            ("gradient_accumulation_steps", 4, "but train.accumulation is 3"),
            ("train_micro_batch_size_per_gpu", 9, "but train.batch_size over 2 processes and train.accumulation 3"),
            ("train_batch_size", 47, "but 2 processes with 3 times 8 queries (train.batch_size, train.accumulation)"),
            ("gradient_clipping", True, "but optim.max_grad_norm is 1.0"),
            ("gradient_clipping", None, "but optim.max_grad_norm is 1.0"),
            ("train_batch_size", "48", "but 2 processes"),
        ],
    )
    def test_another_number_is_refused_with_both_places(self, key, value, told):
        message = refusal(zero() | {key: value})
        assert message.startswith(f"my.json sets {key} to {json.dumps(value)}, {told}")
        assert 'write "auto" there, or change ' in message

    def test_the_whole_message(self):
        assert refusal(zero() | {"gradient_clipping": 0.5}) == (
            'my.json sets gradient_clipping to 0.5, but optim.max_grad_norm is 1.0: write "auto" there, or change '
            "optim.max_grad_norm."
        )

    def test_the_same_number_is_accepted(self):
        raw = zero() | {"gradient_clipping": 1, "train_batch_size": 48, "gradient_accumulation_steps": 3}
        assert effective(raw)["gradient_clipping"] == 1.0

    def test_an_auto_that_nothing_fills_is_named(self):
        message = refusal(zero(sub_group_size="auto"))
        assert 'my.json sets zero_optimization.sub_group_size to "auto"' in message
        assert "zero_optimization.reduce_bucket_size" in message
        message = refusal(zero(offload_optimizer={"device": "cpu", "pin_memory": "auto"}))
        assert 'zero_optimization.offload_optimizer.pin_memory to "auto"' in message

    @pytest.mark.parametrize(
        ("section", "told"),
        [
            ({"optimizer": {"type": "AdamW"}}, "sets optimizer, but the optimizer belongs to optim.*: take it out."),
            ({"scheduler": {"type": "WarmupLR"}}, "sets scheduler, but the schedule belongs to optim.warmup_steps"),
            ({"fp16": {"enabled": True}}, "sets fp16, but the precision belongs to train.precision"),
            ({"bf16": {"enabled": "auto"}}, "sets bf16, but the precision belongs to train.precision"),
            ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "sets torch_autocast, but the precision"),
            ({"data_types": {"grad_accum_dtype": "bf16"}}, "sets data_types, but the precision belongs to"),
            ({"prescale_gradients": True}, "sets prescale_gradients, which arcdist does not support: take it out."),
            ({"activation_checkpointing": {}}, "but that belongs to qwen.gradient_checkpointing"),
            ({"elasticity": {"enabled": True}}, "sets elasticity, which arcdist does not support: take it out."),
            ({"gradient_cliping": 1.0}, "which arcdist does not support: did you mean gradient_clipping?"),
            ({"wandb": {"enabled": True}}, "sets wandb, which arcdist does not support: take it out."),
            ({"zero_force_ds_cpu_optimizer": True}, "asks for DeepSpeed's own CPU optimizer"),
        ],
    )
    def test_what_no_run_can_have_is_refused_with_the_reason(self, section, told):
        assert told in refusal(zero() | section)

    @pytest.mark.parametrize(
        ("field", "told"),
        [
            ({"offload_param": {"device": "cpu"}}, "sets zero_optimization.offload_param, but parameters stay"),
            ({"offload_optimizer": {"device": "nvme"}}, "Disks (nvme) are not supported"),
            ({"offload_optimizer": "cpu"}, "zero_optimization.offload_optimizer is 'cpu': write"),
            ({"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, "sets zero_optimization.offload_optimizer.ratio"),
            ({"reduce_bucket": 5}, "sets zero_optimization.reduce_bucket, which arcdist does not support: did you"),
            ({"zero_quantized_gradients": True}, "sets zero_optimization.zero_quantized_gradients, which arcdist does"),
        ],
    )
    def test_what_zero_cannot_have_is_refused(self, field, told):
        assert told in refusal(zero(**field))

    @pytest.mark.parametrize(
        "section",
        [
            {"fp16": {"enabled": False, "loss_scale": 0}},
            {"bf16": {}},
            zero(offload_param={"device": "none"}, offload_optimizer={"device": "none"}),
            {"wall_clock_breakdown": True, "zero_force_ds_cpu_optimizer": False},
        ],
    )
    def test_what_is_switched_off_or_only_reports_is_left_alone(self, section):
        raw = zero() | section
        assert effective(raw).items() >= raw.items()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_deepspeed_accepts_what_comes_out(path):
    runtime = pytest.importorskip("deepspeed.runtime.config")
    filled = effective(read_deepspeed_config(str(path)), processes=1)
    accepted = runtime.DeepSpeedConfig(filled)
    assert accepted.train_batch_size == 24
    assert accepted.gradient_clipping == 1.0
    assert accepted.zero_optimization_stage == filled["zero_optimization"]["stage"]
    assert accepted.zero_config.reduce_bucket_size == 10_000
    assert accepted.zero_force_ds_cpu_optimizer is False
    assert accepted.steps_per_print is None
    assert not accepted.float16_config.enabled
    assert not accepted.bfloat16_config.enabled
    offload = accepted.zero_config.offload_optimizer
    assert (offload is not None and offload.device == "cpu") == (path.stem == "zero2_offload")
