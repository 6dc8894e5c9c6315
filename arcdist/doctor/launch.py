"""The launch as a run understands it, and its process group."""

from torch import distributed

from arcdist.config import Config
from arcdist.distributed import local_world_size, world_size
from arcdist.doctor.finding import Finding, Verdict, failure
from arcdist.doctor.installation import installed_version
from arcdist.engine.deepspeed_config import read_deepspeed_config
from arcdist.engine.launch_settings import check_launch_settings, deepspeed_config_file
from arcdist.engine.platform import Platform
from arcdist.errors import ConfigError


def check_launch(config: Config) -> Finding:
    """How many processes, on how many machines, and what runs Qwen.

    Raises:
        ConfigError: the launcher and the configuration contradict each other, or cannot go together.
    """
    check_launch_settings(config)
    processes = world_size()
    found = "one process"
    if processes > 1:
        machines = processes // local_world_size()
        found = f"{processes} processes on {machines} machine{'' if machines == 1 else 's'}"
    file = deepspeed_config_file()
    if file is not None:
        stage = read_deepspeed_config(file)["zero_optimization"]["stage"]
        found += f", DeepSpeed ZeRO-{stage} ({file})"
    elif processes > 1:
        found += ", each with the whole of Qwen (DDP)"
    return Finding(found=found, differing=Verdict.FAIL)


def check_deepspeed() -> Finding:
    """Whether DeepSpeed is there, if the launch asks for it."""
    version = installed_version("deepspeed")
    try:
        needed = deepspeed_config_file() is not None
    except ConfigError:
        needed = True
    if not needed:
        return Finding(found=f"{version or 'not installed'}; this launch does not need it")
    if version is None:
        return failure(
            "not installed, and the launch asks for it",
            "Install it with `pip install 'arcdist[deepspeed]'` (in a checkout `pip install '.[deepspeed]'`), or "
            "launch with accelerate_configs/multi_gpu.yaml, which needs none.",
        )
    return Finding(found=version, differing=Verdict.WARN)


def check_platform(platform: Platform, config: Config) -> Finding:
    """What was started.

    Raises:
        ConfigError: a number in DeepSpeed's file that is not the run configuration's.
    """
    # The width of the model only fills in sizes, of which nothing is made here.
    platform.zero_config(config, hidden_size=1)
    found = f"Accelerate on {platform.accelerator.device}, precision {config.train.precision}"
    if distributed.is_initialized():
        found += f"; process group of {distributed.get_world_size()}, {distributed.get_backend()}"
    return Finding(found=found)
