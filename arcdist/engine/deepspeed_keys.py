"""Which keys of a DeepSpeed configuration file a run can have, and why not the others."""

import difflib
from collections.abc import Mapping
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
