"""DeepSpeed's configuration: what a file leaves open is filled in, what it contradicts is refused."""

import copy
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcdist.errors import ConfigError

_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "comms_logger",
        "dump_state",
        "flops_profiler",
        "memory_breakdown",
        "steps_per_print",
        "wall_clock_breakdown",
    }
)

_ZERO_KEYS = frozenset(
    {
        "stage",
        "allgather_bucket_size",
        "allgather_partitions",
        "contiguous_gradients",
        "log_trace_cache_warnings",
        "memory_efficient_linear",
        "offload_optimizer",
        "overlap_comm",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "sub_group_size",
        "use_multi_rank_bucket_allreduce",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
    }
)

_OFFLOAD_KEYS = frozenset({"device", "pin_memory"})

# Sections that do nothing once they are switched off, as templates often have them.
_SWITCHED = frozenset({"fp16", "bf16", "bfloat16", "torch_autocast"})

_PRECISION = "the precision belongs to train.precision (no, bf16 or fp16) and, for Qwen's frozen base, to qwen.dtype"
_SCALING = "arcdist adds gradients up over processes and passes itself"

_REASONS = {
    "optimizer": "the optimizer belongs to optim.*",
    "scheduler": "the schedule belongs to optim.warmup_steps and optim.final_lr_share",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "torch_autocast": _PRECISION,
    "amp": _PRECISION,
    "data_types": _PRECISION,
    "communication_data_type": "gradients travel in float32, as they are",
    "activation_checkpointing": "that belongs to qwen.gradient_checkpointing",
    "compile": "compiled models are not supported",
    "data_efficiency": "the order of the data belongs to data.* and train.seed",
    "elasticity": "train.batch_size is the same for any number of processes already",
    "expert_parallel": "Qwen has no experts to place",
    "gradient_allreduce_op": _SCALING,
    "gradient_predivide_factor": _SCALING,
    "managed_gradient_accumulation": _SCALING,
    "prescale_gradients": _SCALING,
    "tensor_parallel": "only ZeRO is supported",
    "zero_optimization.cpu_offload": "DeepSpeed has replaced it: see ds_configs/zero2_offload.json",
    "zero_optimization.offload_param": (
        "parameters stay on the GPUs: ds_configs/zero3.json splits them, and qwen.gradient_checkpointing saves more"
    ),
    "zero_optimization.zero_quantized_gradients": "gradients travel in float32, as they are",
}


def check_keys(raw: Mapping[str, Any], source: str) -> None:
    """Refuse what would have no effect, what belongs to the run configuration, and what has not been tried.

    Args:
        raw: the content of the file, with a ZeRO stage.
        source: the file's name, for messages.

    Raises:
        ConfigError: the first such key, with the reason.
    """
    zero = raw["zero_optimization"]
    _check(raw, "", _KEYS, source)
    _check(zero, "zero_optimization.", _ZERO_KEYS, source)
    offload = zero.get("offload_optimizer")
    if offload is not None:
        where = "zero_optimization.offload_optimizer"
        if not isinstance(offload, dict) or offload.get("device") not in ("cpu", "none"):
            raise ConfigError(
                f'{source}: {where} is {offload!r}: write {{"device": "cpu"}}, as ds_configs/zero2_offload.json does, '
                f"or take it out. Disks (nvme) are not supported."
            )
        _check(offload, f"{where}.", _OFFLOAD_KEYS, source)
    if raw.get("zero_force_ds_cpu_optimizer", False) is not False:
        raise ConfigError(
            f"{source}: zero_force_ds_cpu_optimizer asks for DeepSpeed's own CPU optimizer, but the optimizer belongs "
            f"to optim.*: write false, or take it out."
        )


def _check(section: Mapping[str, Any], prefix: str, supported: frozenset[str], source: str) -> None:
    for key, value in section.items():
        if key in supported or _is_off(prefix + key, value):
            continue
        if reason := _REASONS.get(prefix + key):
            raise ConfigError(f"{source} sets {prefix}{key}, but {reason}: take it out.")
        near = difflib.get_close_matches(key, supported, n=1)
        raise ConfigError(
            f"{source} sets {prefix}{key}, which arcdist does not support: "
            f"{f'did you mean {near[0]}?' if near else 'take it out.'}"
        )


def _is_off(key: str, value: Any) -> bool:
    if key in _SWITCHED:
        return isinstance(value, dict) and value.get("enabled", False) is False
    return key == "zero_optimization.offload_param" and isinstance(value, dict) and value.get("device") == "none"


AUTO = "auto"
"""What a file writes for a value that the run configuration gives."""

_CHECKOUT = Path(__file__).resolve().parents[2]


def read_deepspeed_config(path: str) -> dict[str, Any]:
    """Read a DeepSpeed configuration file.

    A relative path is looked for in the working directory first and then at the root of the checkout, so that the
    files of `accelerate_configs/` serve from any folder.

    Raises:
        ConfigError: a file that is missing or is no JSON object with a `zero_optimization.stage` of 1, 2 or 3.
    """
    places = [Path(path), _CHECKOUT / path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked_in = "" if Path(path).is_absolute() else f", neither in {Path.cwd()} nor in {_CHECKOUT}"
        raise ConfigError(
            f"deepspeed_config_file is {path}, and there is no such file{looked_in}: correct it in the launcher's "
            f"configuration, or take one of ds_configs/, such as ds_configs/zero2.json."
        )
    try:
        raw = json.loads(found.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Give a DeepSpeed configuration that can be read.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Give a JSON file.") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}. DeepSpeed's configuration is JSON, "
            f"without comments: see ds_configs/zero2.json."
        ) from error
    except _RepeatedKeyError as error:
        raise ConfigError(f"{path} sets {error} twice: take one of them out.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is no JSON object ({{...}}): see ds_configs/zero2.json.")
    _check_stage(raw, path)
    return raw


class _RepeatedKeyError(ValueError):
    pass


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return content


def _check_stage(raw: Mapping[str, Any], source: str) -> None:
    zero = raw.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if stage in (1, 2, 3) and type(stage) is int:
        return
    if stage == 0 and type(stage) is int:
        raise ConfigError(
            f"{source} sets zero_optimization.stage to 0, which splits nothing: launch with "
            f"accelerate_configs/multi_gpu.yaml, which needs no DeepSpeed, or write 1, 2 or 3."
        )
    raise ConfigError(f"{source} has no zero_optimization.stage of 1, 2 or 3: see ds_configs/zero2.json.")


def effective_deepspeed_config(
    raw: Mapping[str, Any],
    source: str,
    *,
    micro_batch_size: int,
    processes: int,
    accumulation: int,
    max_grad_norm: float,
    hidden_size: int,
    lora_r: int,
) -> dict[str, Any]:
    """The configuration that DeepSpeed is given: a file's, with the numbers of the run.

    Batch sizes, accumulation and clipping are the run configuration's: they are set whether the file says "auto" or
    nothing, and a number there must be the same. Bucket sizes of "auto" are those that Accelerate takes, in elements:
    the square of Qwen's width. The threshold below which ZeRO-3 leaves a parameter whole is Accelerate's 10 widths at
    the least, and enough for the adapters, so that only the frozen base is gathered layer by layer.

    Args:
        raw: what `read_deepspeed_config` gave.
        source: the file's name, for messages.
        micro_batch_size: queries of one pass of one process.
        processes: over all machines.
        accumulation: passes a process makes before a step.
        max_grad_norm: largest norm of the gradients of what is trained in Qwen.
        hidden_size: Qwen's width.
        lora_r: rank of the adapters.

    Returns:
        A new dictionary without any "auto", which JSON can hold.

    Raises:
        ConfigError: a number that contradicts the run's, an "auto" that cannot be filled in, or a key that no run can
            have (`check_keys`).
    """
    check_keys(raw, source)
    config = copy.deepcopy(dict(raw))
    for key, value, owner, mend in (
        (
            "train_micro_batch_size_per_gpu",
            micro_batch_size,
            f"train.batch_size over {processes} processes and train.accumulation {accumulation} make",
            "change train.batch_size",
        ),
        ("gradient_accumulation_steps", accumulation, "train.accumulation is", "change train.accumulation"),
        (
            "train_batch_size",
            micro_batch_size * accumulation * processes,
            f"{processes} processes with {accumulation} times {micro_batch_size} queries (train.batch_size, "
            f"train.accumulation) make",
            "change train.batch_size",
        ),
        ("gradient_clipping", max_grad_norm, "optim.max_grad_norm is", "change optim.max_grad_norm"),
    ):
        given = config.get(key, AUTO)
        if given != AUTO and (given != value or isinstance(given, bool)):
            raise ConfigError(
                f'{source} sets {key} to {json.dumps(given)}, but {owner} {value}: write "auto" there, or {mend}.'
            )
        config[key] = value
    config.setdefault("zero_allow_untested_optimizer", True)
    # Where the optimizer is offloaded, DeepSpeed would compile its own in place of torch's AdamW.
    config.setdefault("zero_force_ds_cpu_optimizer", False)

    sizes = {
        "reduce_bucket_size": hidden_size**2,
        "allgather_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": 9 * hidden_size**2 // 10,
        # An adapter's larger matrix is as long as Qwen's layers are wide inside, which is less than 6 widths.
        "stage3_param_persistence_threshold": max(10, 6 * lora_r) * hidden_size,
    }
    zero = config["zero_optimization"]
    config["zero_optimization"] = {
        key: sizes[key] if value == AUTO and key in sizes else value for key, value in zero.items()
    }
    _check_filled(config, "", source, [f"zero_optimization.{key}" for key in sizes])
    return config


def _check_filled(section: Mapping[str, Any], prefix: str, source: str, fillable: list[str]) -> None:
    for key, value in section.items():
        if isinstance(value, dict):
            _check_filled(value, f"{prefix}{key}.", source, fillable)
        elif value == AUTO:
            raise ConfigError(
                f'{source} sets {prefix}{key} to "auto", which nothing in the run configuration gives: write a value, '
                f'or take it out. "auto" may stand for sizes of the batch, clipping, {", ".join(fillable)}.'
            )
