"""DeepSpeed's configuration: what a file leaves open is filled in, what it contradicts is refused."""

import copy
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcdist.config import Config
from arcdist.errors import ConfigError, reason

AUTO = "auto"
"""What a file writes for a value that the run configuration gives."""

_CHECKOUT = Path(__file__).resolve().parents[2]

_SUPPORTED = {
    "": (
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"),
        *("comms_logger", "dump_state", "flops_profiler", "memory_breakdown", "steps_per_print"),
        "wall_clock_breakdown",
    ),
    "zero_optimization.": (
        *("stage", "allgather_bucket_size", "allgather_partitions", "contiguous_gradients"),
        *("log_trace_cache_warnings", "memory_efficient_linear", "offload_optimizer", "overlap_comm"),
        *("reduce_bucket_size", "reduce_scatter", "round_robin_gradients", "sub_group_size"),
        *("use_multi_rank_bucket_allreduce", "stage3_allgather_sequential"),
        *("stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
        *("stage3_model_persistence_threshold", "stage3_module_granularity_threshold"),
        *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"),
        "stage3_use_all_reduce_for_fetch_params",
    ),
    "zero_optimization.offload_optimizer.": ("device", "pin_memory"),
}
"""Keys that a file may set, by section."""

_PRECISION_SECTIONS = ("fp16", "bf16", "bfloat16", "torch_autocast")
"""Sections that do nothing once they are switched off, as templates often have them."""

_REASONS = {
    **dict.fromkeys(
        (*_PRECISION_SECTIONS, "amp", "data_types"),
        "the precision belongs to train.precision (no, bf16 or fp16) and, for Qwen's frozen base, to qwen.dtype",
    ),
    "optimizer": "the optimizer belongs to optim.*",
    "scheduler": "the schedule belongs to optim.warmup_steps and optim.final_lr_share",
    "activation_checkpointing": "that belongs to qwen.gradient_checkpointing",
    "zero_optimization.cpu_offload": "DeepSpeed has replaced it: see ds_configs/zero2_offload.json",
    "zero_optimization.offload_param": (
        "parameters stay on the GPUs: ds_configs/zero3.json splits them, and qwen.gradient_checkpointing saves more"
    ),
}
"""What has the place of a key that other projects may set."""


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration file.

    A relative path is looked for in the working directory first and then at the root of the checkout, so that the
    files of `accelerate_configs/` serve from any folder.

    Raises:
        ConfigError: a file that is missing or is no JSON object with a `zero_optimization.stage` of 1, 2 or 3.
    """
    found = next((place for place in (Path(path), _CHECKOUT / path) if place.is_file()), None)
    if found is None:
        raise ConfigError(
            f"deepspeed_config_file is {path}, and there is no such file, neither in {Path.cwd()} nor in {_CHECKOUT}: "
            f"correct it in the launcher's configuration, or take one of ds_configs/, such as ds_configs/zero2.json."
        )

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{path} sets {name} twice: take one of them out.")
        return dict(pairs)

    try:
        raw = json.loads(found.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({reason(error)}): DeepSpeed's configuration is JSON, without comments, as in "
            f"ds_configs/zero2.json."
        ) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is no JSON object ({{...}}): see ds_configs/zero2.json.")
    zero = raw.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if type(stage) is not int or stage not in (1, 2, 3):
        raise ConfigError(
            f"{path} has no zero_optimization.stage of 1, 2 or 3: see ds_configs/zero2.json, or launch with "
            f"accelerate_configs/multi_gpu.yaml, which needs no DeepSpeed."
        )
    return raw


def effective_deepspeed_config(
    raw: Mapping[str, Any], source: str, run: Config, *, processes: int, hidden_size: int
) -> dict[str, Any]:
    """The configuration that DeepSpeed is given: a file's, with the numbers of the run.

    Batch sizes, accumulation and clipping are the run configuration's: they are set whether the file says "auto" or
    nothing, and a number there must be the same. Bucket sizes of "auto" are those that Accelerate takes, in elements:
    the square of Qwen's width. The threshold below which ZeRO-3 leaves a parameter whole is Accelerate's 10 widths at
    the least, and enough for the adapters, so that only the frozen base is gathered layer by layer.

    Args:
        raw: what `read_deepspeed_config` gave.
        source: the file's name, for messages.
        run: the run configuration.
        processes: over all machines.
        hidden_size: Qwen's width.

    Returns:
        A new dictionary without any "auto", which JSON can hold.

    Raises:
        ConfigError: a number that contradicts the run's, an "auto" that cannot be filled in, or a key that would have
            no effect, belongs to the run configuration, or has not been tried.
    """
    _check_keys(raw, source)
    config = copy.deepcopy(dict(raw))
    accumulation = run.train.accumulation
    micro_batch_size = math.ceil(math.ceil(run.train.batch_size / processes) / accumulation)
    of_run = {
        "train_micro_batch_size_per_gpu": (
            micro_batch_size,
            f"train.batch_size over {processes} processes and train.accumulation {accumulation} make",
            "train.batch_size",
        ),
        "gradient_accumulation_steps": (accumulation, "train.accumulation is", "train.accumulation"),
        "train_batch_size": (
            micro_batch_size * accumulation * processes,
            f"{processes} processes with {accumulation} times {micro_batch_size} queries (train.batch_size, "
            f"train.accumulation) make",
            "train.batch_size",
        ),
        "gradient_clipping": (run.optim.max_grad_norm, "optim.max_grad_norm is", "optim.max_grad_norm"),
    }
    for key, (value, owner, flag) in of_run.items():
        given = config.get(key, AUTO)
        if given != AUTO and (given != value or isinstance(given, bool)):
            raise ConfigError(
                f'{source} sets {key} to {json.dumps(given)}, but {owner} {value}: write "auto" there, or change '
                f"{flag}."
            )
        config[key] = value
    config.setdefault("zero_allow_untested_optimizer", True)
    # With an offloaded optimizer, DeepSpeed would compile its own in place of torch's AdamW.
    config.setdefault("zero_force_ds_cpu_optimizer", False)

    sizes = {
        "reduce_bucket_size": hidden_size**2,
        "allgather_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": 9 * hidden_size**2 // 10,
        # An adapter's larger matrix is as long as Qwen's layers are wide inside, which is less than 6 widths.
        "stage3_param_persistence_threshold": max(10, 6 * run.qwen.lora_r) * hidden_size,
    }
    zero = config["zero_optimization"]
    zero.update({key: size for key, size in sizes.items() if zero.get(key) == AUTO})
    for key in _left_auto(config):
        raise ConfigError(
            f'{source} sets {key} to "auto", which nothing in the run configuration gives: write a value, or take it '
            f'out. "auto" is filled in for sizes of the batch, clipping, zero_optimization.'
            f"{', zero_optimization.'.join(sizes)}."
        )
    return config


def _left_auto(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _left_auto(value, f"{prefix}{key}.")
        elif value == AUTO:
            yield prefix + key


def _check_keys(raw: Mapping[str, Any], source: str) -> None:
    zero = raw["zero_optimization"]
    offload = zero.get("offload_optimizer") or {"device": "none"}
    if not isinstance(offload, dict) or offload.get("device") not in ("cpu", "none"):
        raise ConfigError(
            f'{source}: zero_optimization.offload_optimizer is {offload!r}: write {{"device": "cpu"}}, as '
            f"ds_configs/zero2_offload.json does, or take it out. Disks (nvme) are not supported."
        )
    if raw.get("zero_force_ds_cpu_optimizer", False) is not False:
        raise ConfigError(
            f"{source}: zero_force_ds_cpu_optimizer asks for DeepSpeed's own CPU optimizer, but the optimizer belongs "
            f"to optim.*: write false, or take it out."
        )
    _check_section(raw, "", source)
    _check_section(zero, "zero_optimization.", source)
    _check_section(offload, "zero_optimization.offload_optimizer.", source)


def _check_section(section: Mapping[str, Any], prefix: str, source: str) -> None:
    for key, value in section.items():
        name = prefix + key
        is_off = isinstance(value, dict) and (
            (name in _PRECISION_SECTIONS and value.get("enabled", False) is False)
            or (name == "zero_optimization.offload_param" and value.get("device") == "none")
        )
        if key in _SUPPORTED[prefix] or is_off:
            continue
        if reason := _REASONS.get(name):
            raise ConfigError(f"{source} sets {name}, but {reason}: take it out.")
        near = difflib.get_close_matches(key, _SUPPORTED[prefix], n=1)
        action = f"did you mean {near[0]}?" if near else "take it out."
        raise ConfigError(f"{source} sets {name}, which arcdist does not support: {action}")
