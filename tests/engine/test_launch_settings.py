"""What Accelerate's own launcher puts into the environment, held against the run configuration."""

import importlib.util
import os
import subprocess
from collections.abc import Callable

import pytest
import torch.distributed.run
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser

from arcdist.config import load_config
from arcdist.engine.launch_settings import check_launch_settings, deepspeed_config_file
from arcdist.errors import ConfigError

Launch = Callable[..., None]

DDP = {"distributed_type": "MULTI_GPU"}
ZERO2 = {"deepspeed_config_file": "ds_configs/zero2.json"}

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="Accelerate's launcher itself asks for DeepSpeed"
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch) -> None:
    for name in os.environ:
        if name.startswith("ACCELERATE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def launch(monkeypatch, tmp_path) -> Launch:
    """Run `accelerate launch` up to the start of processes, and take over the environment that it has for them."""

    def launch_with(content: dict, *flags: str) -> None:
        environment: dict[str, str] = {}

        class Process:
            returncode = 0

            def __init__(self, command: list[str], env: dict[str, str]) -> None:
                environment.update(env)

            def wait(self) -> None:
                pass

        file = tmp_path / "launcher.yaml"
        file.write_text(yaml.safe_dump({"num_processes": 2, "main_process_port": 0} | content))
        with monkeypatch.context() as patched:
            patched.setattr(torch.distributed.run, "run", lambda arguments: environment.update(os.environ))
            patched.setattr(subprocess, "Popen", Process)
            launch_command(launch_command_parser().parse_args(["--config_file", str(file), *flags, "train.py"]))
        for name in [name for name in environment if name.startswith("ACCELERATE_")]:
            monkeypatch.setenv(name, environment[name])

    return launch_with


def zero(**fields: object) -> dict:
    return {"distributed_type": "DEEPSPEED", "deepspeed_config": fields}


def check(*flags: str) -> None:
    check_launch_settings(load_config(["--recipe", "quickstart", *flags]).config)


def refusal(*flags: str) -> str:
    with pytest.raises(ConfigError) as raised:
        check(*flags)
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_without_a_launcher_there_is_nothing_to_say():
    assert deepspeed_config_file() is None
    check("--train.precision", "bf16")


@pytest.mark.parametrize(
    "content",
    [
        {"distributed_type": "NO", "num_processes": 1, "mixed_precision": "no"},
        {"distributed_type": "NO", "num_processes": 1, "use_cpu": True},
        DDP,
        DDP | {"mixed_precision": "no", "dynamo_backend": "NO"},
    ],
)
def test_a_launch_that_sets_nothing_goes_with_any_run(launch, content, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch(content)
    check("--train.precision", "bf16", "--train.accumulation", "4", "--optim.max_grad_norm", "0.5")
    assert deepspeed_config_file() is None


@needs_deepspeed
def test_a_zero_launch_names_its_file(launch):
    launch(zero(**ZERO2))
    check("--train.precision", "bf16", "--train.accumulation", "4", "--optim.max_grad_norm", "0.5")
    assert deepspeed_config_file() == "ds_configs/zero2.json"


@needs_deepspeed
def test_a_flag_of_the_launcher_goes_over_its_file(launch):
    launch(zero(**ZERO2), "--deepspeed_config_file", "my.json")
    assert deepspeed_config_file() == "my.json"


@needs_deepspeed
@pytest.mark.parametrize("fields", [{"zero_stage": 2}, {"zero_stage": 3, "gradient_accumulation_steps": 1}])
def test_zero_without_a_file_is_refused_with_the_files_there_are(launch, fields):
    launch(zero(**fields))
    with pytest.raises(ConfigError) as raised:
        deepspeed_config_file()
    assert "without a deepspeed_config_file: launch with accelerate_configs/zero2.yaml" in str(raised.value)
    assert "without a deepspeed_config_file" in refusal()


@pytest.mark.parametrize("content", [{"distributed_type": "NO", "num_processes": 1}, DDP])
def test_the_launchers_precision_must_be_the_runs(launch, content):
    launch(content | {"mixed_precision": "bf16"})
    check("--train.precision", "bf16")
    assert refusal("--train.precision", "fp16") == (
        "The launcher's mixed_precision is bf16, but train.precision is fp16: take mixed_precision out of the "
        "launcher's file or flags, and choose with --train.precision."
    )
    assert refusal().startswith("The launcher's mixed_precision is bf16, but train.precision is no:")


@needs_deepspeed
def test_numbers_among_the_launchers_flags_must_be_the_runs(launch):
    launch(
        zero(**ZERO2),
        *("--gradient_accumulation_steps", "4", "--gradient_clipping", "0.5", "--mixed_precision", "fp16"),
    )
    same = ("--train.accumulation", "4", "--optim.max_grad_norm", "0.5", "--train.precision", "fp16")
    check(*same)
    message = refusal(*same, "--train.accumulation", "2")
    assert message.startswith("The launcher's gradient_accumulation_steps is 4, but train.accumulation is 2: take")
    message = refusal(*same, "--optim.max_grad_norm", "1")
    assert message.startswith("The launcher's gradient_clipping is 0.5, but optim.max_grad_norm is 1.0: take")
    message = refusal(*same, "--train.precision", "bf16")
    assert message.startswith("The launcher's mixed_precision is fp16, but train.precision is bf16: take")


@needs_deepspeed
def test_numbers_in_the_launchers_file_are_compared_first_and_refused_then(launch):
    launch(zero(**ZERO2, gradient_clipping=0.5))
    assert "gradient_clipping is 0.5, but optim.max_grad_norm is 1.0" in refusal("--optim.max_grad_norm", "1")
    assert refusal("--optim.max_grad_norm", "0.5") == (
        "The launcher's file has gradient_clipping, which Accelerate refuses beside the deepspeed_config_file "
        "ds_configs/zero2.json: take it out there. The run configuration has it as optim.max_grad_norm."
    )


@needs_deepspeed
def test_auto_contradicts_no_number_and_other_words_do(launch):
    launch(zero(**ZERO2, gradient_clipping="auto"))
    assert refusal("--optim.max_grad_norm", "0.5").startswith("The launcher's file has gradient_clipping, which")
    launch(zero(**ZERO2, gradient_clipping="many"))
    assert refusal().startswith("The launcher's gradient_clipping is many, but optim.max_grad_norm is 1.0: take")


@needs_deepspeed
@pytest.mark.parametrize(
    ("field", "value", "key"),
    [
        ("zero_stage", 3, "zero_optimization.stage"),
        ("offload_optimizer_device", "cpu", "zero_optimization.offload_optimizer.device"),
        ("offload_optimizer_nvme_path", "/disk", "zero_optimization.offload_optimizer.nvme_path"),
        ("offload_param_device", "none", "zero_optimization.offload_param.device"),
        ("offload_param_nvme_path", "/disk", "zero_optimization.offload_param.nvme_path"),
        ("zero3_save_16bit_model", True, "zero_optimization.stage3_gather_16bit_weights_on_model_save"),
    ],
)
def test_what_belongs_into_the_deepspeed_file_is_refused_beside_it(launch, field, value, key):
    launch(zero(**ZERO2, **{field: value}))
    assert refusal() == (
        f"The launcher has a {field} beside the deepspeed_config_file ds_configs/zero2.json: take it out of the "
        f"launcher's file or flags, and write {key} in ds_configs/zero2.json."
    )


@needs_deepspeed
def test_a_stage_among_the_flags_is_refused_as_well(launch):
    launch(zero(**ZERO2), "--zero_stage", "3")
    assert "The launcher has a zero_stage beside the deepspeed_config_file ds_configs/zero2.json" in refusal()


@needs_deepspeed
def test_a_precision_in_the_file_that_accelerate_would_refuse_is_told(launch):
    launch(zero(**ZERO2) | {"mixed_precision": "no"})
    assert "The launcher's file has mixed_precision, which Accelerate refuses beside" in refusal()


@pytest.mark.parametrize(
    ("content", "paradigm"),
    [
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "FSDP"),
        ({"distributed_type": "MEGATRON_LM"}, "Megatron-LM"),
    ],
)
def test_other_paradigms_are_refused_with_the_files_that_work(launch, content, paradigm):
    launch(content)
    assert refusal() == (
        f"The launcher asks for {paradigm}, which is not supported: launch with accelerate_configs/multi_gpu.yaml, or "
        f"with zero2.yaml there for DeepSpeed."
    )


def test_a_tpu_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_IN_TPU_POD", "1")
    assert "The launcher asks for TPUs, which is not supported" in refusal()


@pytest.mark.parametrize("content", [{"distributed_type": "NO", "num_processes": 1}, DDP])
def test_a_compiled_model_is_refused(launch, content):
    launch(content, "--dynamo_backend", "inductor")
    assert refusal() == (
        "The launcher's dynamo_backend is inductor, but compiled models are not supported: take it out of its file, "
        "or leave out --dynamo_backend."
    )


def test_the_launchers_cpu_must_be_the_runs(launch, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch({"distributed_type": "NO", "num_processes": 1, "use_cpu": True})
    check("--device", "cpu")
    check("--device", "auto")
    assert refusal("--device", "cuda").startswith("The launcher's use_cpu is true, but train.device is cuda: take")
