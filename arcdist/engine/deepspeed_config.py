"""DeepSpeed's configuration: what a file leaves open is filled in, what it contradicts is refused."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcdist.engine.deepspeed_keys import check_keys
from arcdist.errors import ConfigError

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
