"""What `accelerate launch` was told, as far as it bears on a run, and whether the run configuration agrees.

The launcher passes its file and its flags on in environment variables, which do not say which of the two it was.
"""

import os

from arcdist.config import Config
from arcdist.errors import ConfigError

_OTHER_PARADIGMS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
    "ACCELERATE_IN_TPU_POD": "TPUs",
}

# What a DeepSpeed file says, given to the launcher beside it. Accelerate refuses these in its own file, and takes no
# notice of most of them as flags.
_ZERO_FIELDS = {
    "zero_stage": "zero_optimization.stage",
    "offload_optimizer_device": "zero_optimization.offload_optimizer.device",
    "offload_optimizer_nvme_path": "zero_optimization.offload_optimizer.nvme_path",
    "offload_param_device": "zero_optimization.offload_param.device",
    "offload_param_nvme_path": "zero_optimization.offload_param.nvme_path",
    "zero3_save_16bit_model": "zero_optimization.stage3_gather_16bit_weights_on_model_save",
}

# These Accelerate refuses in its file as well, whatever their values.
_RUN_FIELDS = {
    "mixed_precision": "train.precision",
    "gradient_accumulation_steps": "train.accumulation",
    "gradient_clipping": "optim.max_grad_norm",
}


def deepspeed_config_file() -> str | None:
    """The DeepSpeed configuration file that the launcher names; none where it was not told to use DeepSpeed.

    Raises:
        ConfigError: DeepSpeed without such a file.
    """
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return None
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        raise ConfigError(
            "The launcher asks for DeepSpeed (distributed_type DEEPSPEED, or --use_deepspeed) without a "
            "deepspeed_config_file: launch with accelerate_configs/zero2.yaml, whose file is ds_configs/zero2.json, or "
            "name one of ds_configs/ in yours. Its fields (zero_stage, ...) are read from such a file only."
        )
    return file


def check_launch_settings(config: Config) -> None:
    """Refuse a launch that says something else than the run configuration, or that no run can have.

    Raises:
        ConfigError: the first such setting; the message names both places and both values.
    """
    for variable, paradigm in _OTHER_PARADIGMS.items():
        if _is_set(variable):
            raise ConfigError(
                f"The launcher asks for {paradigm}, which is not supported: launch with "
                f"accelerate_configs/multi_gpu.yaml, or with zero2.yaml there for DeepSpeed."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.train.precision):
        raise _contradiction("mixed_precision", precision, "train.precision", config.train.precision)
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if steps != "auto" and _number(steps) != config.train.accumulation:
        raise _contradiction("gradient_accumulation_steps", steps, "train.accumulation", config.train.accumulation)
    norm = os.environ.get("ACCELERATE_GRADIENT_CLIPPING", "auto")
    if norm != "auto" and _number(norm) != config.optim.max_grad_norm:
        raise _contradiction("gradient_clipping", norm, "optim.max_grad_norm", config.optim.max_grad_norm)
    if _is_set("ACCELERATE_USE_CPU") and config.train.device not in ("auto", "cpu"):
        raise _contradiction("use_cpu", "true", "train.device", config.train.device)
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend != "no":
        raise ConfigError(
            f"The launcher's dynamo_backend is {backend}, but compiled models are not supported: take it out of its "
            f"file, or leave out --dynamo_backend."
        )
    file = deepspeed_config_file()
    if file is not None:
        _check_fields_beside(file)


def _check_fields_beside(file: str) -> None:
    in_launcher_file = os.environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
    for field, key in _ZERO_FIELDS.items():
        if field in in_launcher_file or f"ACCELERATE_DEEPSPEED_{field.upper()}" in os.environ:
            raise ConfigError(
                f"The launcher has a {field} beside the deepspeed_config_file {file}: take it out of the launcher's "
                f"file or flags, and write {key} in {file}."
            )
    for field, key in _RUN_FIELDS.items():
        if field in in_launcher_file:
            raise ConfigError(
                f"The launcher's file has {field}, which Accelerate refuses beside the deepspeed_config_file {file}: "
                f"take it out there. The run configuration has it as {key}."
            )


def _contradiction(field: str, told: str, key: str, value: object) -> ConfigError:
    return ConfigError(
        f"The launcher's {field} is {told}, but {key} is {value}: take {field} out of the launcher's file or flags, "
        f"and choose with --{key}."
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
