"""All checks in their order, on every process."""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import psutil  # type: ignore[import-untyped]
import torch
from huggingface_hub import HfApi, constants

from arcdist.config import Config, DataConfig, OutputConfig, QwenConfig, TrainConfig
from arcdist.config.loader import DEFAULT_ROOT
from arcdist.data import read_task_sets
from arcdist.data.text import QwenSource, has_random_weights, locate_qwen, ways_out
from arcdist.distributed import is_main, local_rank, local_world_size, world_size
from arcdist.distributed.collectives import shutdown
from arcdist.doctor.examination import (
    Finding,
    Row,
    Verdict,
    conclude,
    failure,
    from_text,
    merge,
    name_ranks,
    to_text,
    try_check,
    warning,
)
from arcdist.doctor.network import TextExchange, check_all_reduce, check_deepspeed, check_launch, check_platform
from arcdist.engine import Precision
from arcdist.engine.platform import Platform, choose_device, start_platform
from arcdist.errors import ArcdistError, ConfigError, DataError, NotFiniteError, PlatformError, kind_and_reason
from arcdist.files import expanded
from arcdist.formatting import counted
from arcdist.host import available_cores, memory_left, usable_cores
from arcdist.models.qwen_source import (
    HUB_SECONDS,
    read_config,
    read_parts,
    require_unquantised,
    weight_files,
)
from arcdist.tracking import no_log
from arcdist.tracking.run_folder import taken_by
from arcdist.training.health import LOSS_NOT_FINITE
from arcdist.training.loop import MOST_SKIPPED_STEPS
from arcdist.training.out_of_memory import explained_out_of_memory
from arcdist.training.session import build_session
from arcdist.training.trial import longest_batch, peak_bytes, run_steps

GIB = 2**30
_LITTLE_MEMORY = 1 * GIB
"""What a process needs before it has read anything: its libraries."""
_LITTLE_ROOM = 1 * GIB
_USED_BY_OTHERS = 2 * GIB
"""Memory in use on a GPU before a run, beyond what CUDA itself takes for a process."""
_CLOSE = 0.9
"""Share of the memory beyond which there is little left for fragments, and for other programs."""
_DRIVER = Path("/proc/driver/nvidia/version")
_INSTALL = "Install a build of PyTorch for the device and its driver: https://pytorch.org/get-started/locally."
_SIDE = 64
_NEEDED_TO_START = ("launch", "DeepSpeed", "device", "processes")
_FIT = "longest batch"


def run_checks(config: Config, installation: Mapping[str, Finding], *, fit: bool) -> None:
    """See `examine`; `installation` is what this process has found already.

    Processes begin to exchange numbers only once all are known to be able to, so that none waits in vain for another.
    What they have found they exchange as texts, which works even if that does not.
    """
    timeout = float(config.distributed.timeout)
    texts = TextExchange(timeout)
    hosts = {rank: host or "" for rank, host in enumerate(texts.gather("host", socket.gethostname()))}
    reports: dict[int, dict[str, Finding]] = {}

    def gathered(topic: str) -> list[Row]:
        answers = texts.gather(topic, to_text(findings))
        # Of a process that no longer answers, what it has said before is kept.
        reports.update({rank: from_text(text) for rank, text in enumerate(answers) if text is not None})
        rows = merge(dict(sorted(reports.items())), hosts)
        if silent := [rank for rank, text in enumerate(answers) if text is None]:
            found = f"{name_ranks(silent)} of {world_size()} did not answer in time"
            rows.append(Row(check="processes", finding=failure(found, "What they printed themselves may say why.")))
        return rows

    findings = {**installation, **_check_alone(config)}
    rows = gathered("alone")
    platform: Platform | Finding | None = None
    if not any(row.finding.verdict is Verdict.FAIL and row.check in _NEEDED_TO_START for row in rows):
        platform = try_check(lambda: start_platform(config))
        if isinstance(platform, Finding):
            findings["start"] = platform
        else:
            started, device = platform, platform.accelerator.device
            findings["start"] = try_check(lambda: check_platform(started, config))
            findings["all-reduce"] = try_check(lambda: check_all_reduce(device, timeout))
        rows = gathered("together")
    if fit and any(row.finding.verdict is Verdict.FAIL for row in rows):
        rows.append(Row(check=_FIT, finding=warning("not tried", "First repair what has failed.")))
    conclude(rows)
    if fit and isinstance(platform, Platform):
        answers = texts.gather("fit", json.dumps(asdict(try_longest_batch(config, platform))))
        fits = {rank: Fit(**json.loads(text)) for rank, text in enumerate(answers) if text is not None}
        conclude([Row(check=_FIT, finding=judge_fit(fits))])
    shutdown()


def _check_alone(config: Config) -> dict[str, Finding]:
    """What a process finds by itself."""
    findings = {
        "configuration": _describe(config),
        "launch": try_check(lambda: check_launch(config)),
        "DeepSpeed": try_check(check_deepspeed),
        "device": try_check(lambda: check_device(config)),
        "cores": try_check(lambda: check_cores(config.train), broken=Verdict.WARN),
    }
    if local_rank() == 0:
        # Of the machine, and never twice the same.
        findings["memory"] = try_check(check_memory, broken=Verdict.WARN)
    return findings | {
        "output": try_check(lambda: check_output(config.output), broken=Verdict.WARN),
        "cache": try_check(check_cache, broken=Verdict.WARN),
        "weights": try_check(lambda: check_weights(config.qwen)),
        "tasks": try_check(lambda: check_tasks(config.data)),
    }


def _describe(config: Config) -> Finding:
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    return Finding(
        found=f"batches of {config.train.batch_size}, accumulation {config.train.accumulation}; fingerprint {digest}",
        differing=Verdict.WARN,
    )


def check_device(config: Config) -> Finding:
    """What this process sees and takes, with a product and its gradient computed there in the run's precision."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # PyTorch warns if it cannot use a GPU that is there.
        try:
            device = choose_device(config.train)
        except ArcdistError as error:
            return failure(str(error), _why_no_gpu(said), error.exit_code)
        finding = _gpu(device, config) if device.type == "cuda" else _no_gpu(device, said)
    try:
        _compute(device, Precision(config.train.precision, device))
    except Exception as error:  # of the driver, of CUDA's libraries, of the compiler: each of a class of its own
        return failure(f"{finding.found}. It does not compute: {kind_and_reason(error)}", _INSTALL)
    return finding


def _gpu(device: torch.device, config: Config) -> Finding:
    free, total = torch.cuda.mem_get_info(device)
    # With emulation PyTorch says yes for any GPU.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    found = (
        f"{device} of {torch.cuda.device_count()}: {torch.cuda.get_device_name(device)}, {free / GIB:.0f} of "
        f"{total / GIB:.0f} GiB free, {'bf16' if has_bf16 else 'no bf16'}"
    )
    if not has_bf16 and (config.train.precision == "bf16" or config.qwen.dtype == "bfloat16"):
        return warning(found, "It emulates bfloat16, slowly: take --train.precision fp16 --qwen.dtype float32.")
    if total - free > _USED_BY_OTHERS:
        return warning(found, "nvidia-smi shows which other programs use it.")
    return Finding(found=found)


def _no_gpu(device: torch.device, said: Sequence[warnings.WarningMessage]) -> Finding:
    seen = torch.cuda.device_count()
    found = f"{device}; PyTorch sees {seen or 'no'} GPU{'' if seen == 1 else 's'}"
    # If no GPU was asked for, only one that is there and cannot be used is worth a word.
    unused = not seen and "CUDA_VISIBLE_DEVICES" not in os.environ and (said or _DRIVER.exists())
    return warning(f"{found}, but there is an NVIDIA driver", _why_no_gpu(said)) if unused else Finding(found=found)


def _why_no_gpu(said: Sequence[warnings.WarningMessage]) -> str:
    """What keeps PyTorch from the GPUs of this machine, as far as that is known."""
    if said:
        return f"PyTorch says: {str(said[0].message).partition(chr(10))[0]}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which may hide GPUs; launcher files set it as gpu_ids."
    if torch.version.cuda is None and torch.version.hip is None:
        return f"This PyTorch is built without CUDA. {_INSTALL}"
    return ""


def _compute(device: torch.device, precision: Precision) -> None:
    ones = torch.ones(_SIDE, _SIDE, device=device, requires_grad=True)
    with precision.autocast():
        product = ones @ ones
    product.float().sum().backward()
    assert ones.grad is not None
    expected = torch.full((_SIDE, _SIDE), float(_SIDE))
    for what, values in (("a product", product.detach()), ("its gradient", ones.grad / 2)):
        if not torch.equal(values.float().cpu(), expected):
            raise ArithmeticError(f"{what} of ones has wrong values")


def check_cores(train: TrainConfig) -> Finding:
    """Whether the processes of this machine have a core for each of their threads."""
    of_machine, cores, processes = available_cores(), usable_cores(), local_world_size()
    # Beside a GPU a process keeps one busy.
    threads = 1 if torch.cuda.is_available() and train.device != "cpu" else torch.get_num_threads()
    found = f"{counted(cores, 'core')} for {counted(processes, 'process')} of {counted(threads, 'thread')}"
    if cores < of_machine:
        found += f" (the machine has {of_machine}, a container or batch system leaves fewer)"
    if processes > cores:
        return warning(found, f"Start at most {counted(cores, 'process')} a machine, or ask for more cores.")
    if processes * threads > cores:
        return warning(found, f"Give each process as many threads as cores: --train.cpu_threads {cores // processes}.")
    return Finding(found=found)


def check_memory() -> Finding:
    """Whether the processes of this machine find room in its memory at all; `--fit` measures what they need."""
    memory = psutil.virtual_memory()
    limit = memory_left()
    free = memory.available if limit is None else min(memory.available, limit)
    found = f"{free / GIB:.0f} of {memory.total / GIB:.0f} GiB free"
    if free < local_world_size() * _LITTLE_MEMORY:
        return warning(
            found, "A process needs 1 GiB and more: close other programs, start fewer processes, or ask for more."
        )
    return Finding(found=found)


def check_output(output: OutputConfig) -> Finding:
    """Whether the run folder can be made and written; it is not made."""
    folder = DEFAULT_ROOT if output.dir is None else expanded(output.dir)
    advice = "Choose another with --output_dir FOLDER."
    taken = [] if output.dir is None else taken_by(folder)
    if taken:
        return failure(f"{folder} holds another run ({', '.join(taken)})", advice, ConfigError.exit_code)
    return _check_folder(folder, advice, ConfigError.exit_code)


def check_cache() -> Finding:
    """Whether queries can be prepared where `datasets` keeps its files."""
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    advice = "Set HF_HOME or HF_DATASETS_CACHE to a folder that can be written, with room in it."
    return _check_folder(folder, advice, PlatformError.exit_code)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _check_folder(folder: Path, advice: str, exit_code: int) -> Finding:
    there = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"arcdist")
        room = shutil.disk_usage(there).free
    except OSError as error:
        return failure(f"{folder} cannot be written: {error.strerror} ({there})", advice, exit_code)
    found = f"{folder} can be written, {room / GIB:.0f} GiB free"
    return warning(found, f"Make room there. {advice}") if room < _LITTLE_ROOM else Finding(found=found)


def check_weights(qwen: QwenConfig) -> Finding:
    """Look for the model where a run would: in the package, in a local folder, in the cache and on the Hub.

    Raises:
        ConfigError: there is no such model, it is quantised or does not read text, or its tokenizer cannot write grids.
        PlatformError: the weights of a folder are not whole.
    """
    source = locate_qwen(qwen.model, qwen.init)
    if source.kind == "embedded":
        return Finding(found=f"{qwen.model} is built with random weights")
    if source.kind == "folder":
        return _check_files(source)
    if source.folder is not None:
        cached = try_check(lambda: _check_files(source))
        if cached.verdict is Verdict.OK:
            return cached
        if (source.folder / "config.json").is_file():
            read_config(source)  # What that says of the model is not mended by a download.
    # What is there of an unfinished download is completed by the next.
    return _check_hub(qwen.model)


def _check_files(source: QwenSource) -> Finding:
    folder = source.folder
    assert folder is not None
    read_parts(source)
    if has_random_weights(source.model, source.init):
        return Finding(found=f"the model of {folder} is built with random weights")
    size = sum(file.stat().st_size for file in weight_files(source))
    return Finding(found=f"{size / GIB:.2f} GiB in {folder}")


def _check_hub(model: str) -> Finding:
    try:
        about = HfApi().model_info(model, files_metadata=True, timeout=HUB_SECONDS)
    except Exception as error:  # names, routes, proxies, certificates, rights: each of a class of its own
        return failure(
            f"{model} is no local folder and not whole in the cache, and the Hugging Face Hub does not give it "
            f"({kind_and_reason(error)})",
            ways_out(model),
        )
    require_unquantised(model, about.config or {})
    size = sum(file.size or 0 for file in about.siblings or [] if file.rfilename.endswith(".safetensors"))
    found = f"{model} is on the Hugging Face Hub, not whole in the cache: a run downloads {size / GIB:.1f} GiB first"
    cache = Path(constants.HF_HUB_CACHE)
    room = shutil.disk_usage(_existing(cache)).free
    if room < size:
        return failure(
            f"{found}, and {cache} has {room / GIB:.1f} GiB free", "Make room, or set HF_HOME to a folder with more."
        )
    return warning(found, f"`hf download {model}` does it beforehand, once on every machine.")


def check_tasks(data: DataConfig) -> Finding:
    """Read what a run would train on and score.

    Raises:
        DataError: a source cannot be read, or what is scored is trained on.
    """
    sets = read_task_sets(data)
    sets.check_leaks(data.allow_overlap)
    trained, scored, outputs = sets.training, sets.validation, sets.scored_pairs
    found = f"{trained.summary(data)}; {scored.origin}: {outputs:,} test pairs to score"
    if not outputs:
        return failure(
            found, "Give test pairs their outputs, or score others: --data.validation_source.", DataError.exit_code
        )
    return Finding(found=found, differing=Verdict.FAIL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What the longest batch took on one process."""

    peak: int
    """Most bytes held: of the GPU's allocator, or by the whole process on a CPU."""
    capacity: int
    """Bytes of the GPU, or of the machine's memory for each of its processes."""
    queries: int
    """Of the batch, over all processes."""
    tokens: int
    """Of its longest query."""


def try_longest_batch(config: Config, platform: Platform) -> Fit:
    """Build the run and train on its longest batch.

    Raises:
        OutOfMemoryError: it does not fit; the message names the knobs.
        NotFiniteError: its losses or gradients are not finite.
        ArcdistError: as for a run.
    """
    with nullcontext() if is_main() else no_log(), explained_out_of_memory(config):
        session = build_session(config, platform)
        longest = longest_batch(session)
        # The scale that float16's gradients begin with may be too large a few times.
        if all(run_steps(session, [longest.rows], longest.epoch).skipped for _ in range(MOST_SKIPPED_STEPS)):
            raise NotFiniteError(
                f"Losses or gradients of the longest batch were not finite in {MOST_SKIPPED_STEPS} steps in a row. "
                f"{LOSS_NOT_FINITE.fix}"
            )
        # Now that the optimizers have their moments. A prompt kept from the first step serves `every` steps.
        run_steps(session, [longest.rows] * (config.qwen.every + 1), longest.epoch)
    if session.device.type == "cuda":
        capacity = torch.cuda.mem_get_info(session.device)[1]
    else:
        capacity = psutil.virtual_memory().total // local_world_size()
    return Fit(
        peak=peak_bytes(session.device),
        capacity=capacity,
        queries=len(longest.rows),
        tokens=longest.tokens,
    )


def judge_fit(fits: Mapping[int, Fit]) -> Finding:
    """One finding of what each rank measured: the one with least left speaks for all."""
    worst = max(fits, key=lambda rank: fits[rank].peak / fits[rank].capacity)
    fit = fits[worst]
    batch = f"{fit.queries} queries of up to {fit.tokens:,} tokens"
    found = f"{batch}: peak {fit.peak / GIB:.2f} of {fit.capacity / GIB:.1f} GiB"
    if len(fits) > 1:
        found += f" on rank {worst}, which has least left"
    if fit.peak > _CLOSE * fit.capacity:
        return warning(
            found,
            "That is close: lower --batch_size, raise --train.accumulation, or --qwen.gradient_checkpointing true.",
        )
    return Finding(found=found)
