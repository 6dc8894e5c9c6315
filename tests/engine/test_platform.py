"""What a run is started on, and which launches are refused. Several processes are tested through their launchers."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed.run
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser

from arcdist.config import TrainConfig, load_config
from arcdist.engine.platform import check_launch_settings, choose_device, deepspeed_config_file, start_platform
from arcdist.errors import ConfigError, PlatformError
from arcdist.models import UNSHARDED

pytestmark = pytest.mark.usefixtures("clean_process")


def train(**keywords):
    return TrainConfig(**{"device": "cpu", "cpu_threads": 1, **keywords})


@pytest.fixture
def processes(monkeypatch):
    """Be one of several processes, as a launcher says it."""

    def start(world_size, *, on_this_machine=None, local_rank=0):
        here = on_this_machine or world_size
        names = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": here, "LOCAL_RANK": local_rank, "RANK": local_rank}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return start


@pytest.fixture
def gpus(monkeypatch):
    """Be a machine with so many GPUs, as far as PyTorch is asked."""

    def install(count, *, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)

    return install


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "meta"])
def test_an_unknown_device_is_a_mistake_in_the_configuration(name):
    with pytest.raises(ConfigError, match="choose auto, cpu, cuda, cuda:N or mps") as raised:
        choose_device(train(device=name))
    assert repr(name) in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_gpu_that_the_machine_lacks_is_a_matter_of_the_platform():
    with pytest.raises(PlatformError, match=r"train\.device is 'cuda:99'") as raised:
        choose_device(train(device="cuda:99"))
    assert f"sees {torch.cuda.device_count()} CUDA devices" in str(raised.value)
    assert raised.value.exit_code == 3


def test_fp16_needs_a_gpu(gpus):
    with pytest.raises(PlatformError, match="fp16 needs a CUDA GPU, and the device is cpu: use bf16 or no"):
        choose_device(train(precision="fp16"))
    gpus(1)
    assert choose_device(train(precision="fp16", device="cuda")) == torch.device("cuda", 0)


def test_bf16_on_a_gpu_that_lacks_it_names_what_to_use(gpus):
    gpus(1, bf16=False)
    with pytest.raises(PlatformError, match=r"no bfloat16: use --train\.precision fp16 --qwen\.dtype float32"):
        choose_device(train(device="cuda", precision="bf16"))
    assert choose_device(train(device="cpu", precision="bf16")) == torch.device("cpu")


@pytest.mark.parametrize("world_size", [None, "1"])
def test_one_process_on_the_cpu(monkeypatch, world_size):
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    assert choose_device(train()) == torch.device("cpu")


def test_auto_takes_a_gpu_where_there_is_one(gpus):
    gpus(2)
    assert choose_device(train(device="auto")) == torch.device("cuda", 0)
    assert choose_device(train(device="cuda:1")) == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_of_several_processes_each_takes_the_gpu_of_its_number(processes, gpus, name):
    gpus(2)
    for local_rank in range(2):
        # The second of two machines: the number among all is no number of a GPU.
        processes(4, on_this_machine=2, local_rank=local_rank)
        assert choose_device(train(device=name)) == torch.device("cuda", local_rank)


@pytest.mark.parametrize(("found", "text"), [(1, "sees 1 GPU: start one"), (2, "sees 2 GPUs: start one")])
def test_more_processes_than_gpus_are_refused(processes, gpus, found, text):
    gpus(found)
    processes(3)
    with pytest.raises(ConfigError, match="3 processes were started on a machine where PyTorch") as raised:
        choose_device(train(device="auto"))
    assert text in str(raised.value)
    assert f"--num_processes {found}, or use --device cpu." in str(raised.value)
    assert choose_device(train(device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:1", "cuda:0"])
def test_several_processes_cannot_share_a_named_gpu(processes, gpus, name):
    gpus(4)
    processes(2)
    with pytest.raises(ConfigError, match="the run has 2 processes, which cannot share it: choose cuda") as raised:
        choose_device(train(device=name))
    assert repr(name) in str(raised.value)


def test_threads_are_as_configured_or_one_a_core_whatever_the_launcher_set():
    torch.set_num_threads(1)
    choose_device(train(cpu_threads=2))
    assert torch.get_num_threads() == 2
    choose_device(train(cpu_threads=None))
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))


def test_processes_of_a_machine_share_its_cores(processes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))
    for here, threads in ((2, 4), (3, 2), (16, 1)):
        processes(16, on_this_machine=here)
        choose_device(train(cpu_threads=None))
        assert torch.get_num_threads() == threads
    choose_device(train(cpu_threads=2))  # of each process
    assert torch.get_num_threads() == 2


def test_denormal_numbers_are_zero_on_the_cpu():
    choose_device(train())
    assert (torch.tensor(1e-38) * torch.tensor(1e-3)).item() == 0.0


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


@pytest.fixture
def config(tiny_flags):
    return lambda *flags: load_config([*tiny_flags, *flags]).config


@pytest.fixture
def zero_file(tmp_path, monkeypatch):
    """A DeepSpeed configuration that the launcher names."""
    path = tmp_path / "zero.json"
    path.write_text(
        json.dumps(
            {
                "zero_optimization": {"stage": 2},
                "train_batch_size": "auto",
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
            }
        )
    )
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    return path


def test_one_process_is_plain_accelerate_on_the_configured_device(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # of a run before
    platform = start_platform(config())
    accelerator = platform.accelerator
    assert torch.device(accelerator.device) == torch.device("cpu")
    assert accelerator.num_processes == 1
    assert not torch.distributed.is_initialized()
    assert platform.sharding is UNSHARDED
    assert platform.zero is None
    assert platform.zero_config(config(), 32) is None
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu"


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_precision_of_forward_passes_is_the_engines_affair(config, monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    accelerator = start_platform(config(f"--train.precision={precision}")).accelerator
    assert accelerator.mixed_precision == "no"
    assert accelerator.scaler is None


def test_deepspeed_computes_on_the_cpu_or_on_the_gpu_of_its_number(config, zero_file, monkeypatch):
    monkeypatch.setattr("arcdist.engine.platform.choose_device", lambda train: torch.device("cuda", 1))
    with pytest.raises(ConfigError, match=r"train\.device is cuda:1, but under DeepSpeed \(.*zero\.json\)") as raised:
        start_platform(config())
    assert "here cuda:0: hide the other GPUs with CUDA_VISIBLE_DEVICES" in str(raised.value)


@pytest.mark.parametrize(
    ("world_size", "accumulation", "batch_size", "needed"),
    [(1, 5, 4, 5), (2, 1, 1, 2), (3, 2, 5, 6)],
)
def test_a_batch_needs_a_query_for_every_process_and_pass(
    config, monkeypatch, world_size, accumulation, batch_size, needed
):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    chosen = config(f"--batch_size={batch_size}", f"--train.accumulation={accumulation}")
    with pytest.raises(ConfigError, match=rf"train\.batch_size is {batch_size}, less than {world_size} proc") as raised:
        start_platform(chosen)
    assert f"train.accumulation = {accumulation} passes" in str(raised.value)
    assert f"raise --batch_size to {needed}," in str(raised.value)
    assert raised.value.exit_code == 2


def test_as_many_queries_as_passes_are_enough(config):
    assert start_platform(config("--train.accumulation=4")).accelerator.num_processes == 1


def test_a_launch_that_says_something_else_is_refused_before_anything_starts(config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps is 8, but train\.accumulation is 1"):
        start_platform(config())


def test_deepspeed_that_is_not_there_says_what_to_install(config, zero_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "arcdist.engine.deepspeed", None)
    with pytest.raises(PlatformError, match="asks for DeepSpeed, which cannot be imported") as raised:
        start_platform(config())
    message = str(raised.value)
    assert str(zero_file) in message
    assert "pip install 'arcdist[deepspeed]'" in message
    assert "accelerate_configs/multi_gpu.yaml" in message
    assert raised.value.exit_code == 3


def test_a_deepspeed_file_that_is_not_there_is_named(config, zero_file):
    zero_file.unlink()
    with pytest.raises(ConfigError, match="zero") as raised:
        start_platform(config())
    assert str(zero_file) in str(raised.value)


def test_without_a_zero_config_deepspeed_is_not_imported(config):
    def imported():
        return {name for name in sys.modules if name.startswith("deepspeed") or name == "arcdist.engine.deepspeed"}

    before = imported()
    start_platform(config())
    assert imported() == before
