"""What one process finds by itself, and what the longest batch takes."""

import json
import os
import shutil
import warnings
from types import SimpleNamespace

import datasets
import huggingface_hub
import psutil
import pytest
import torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from arcdist import host
from arcdist.config import Config, DataConfig, OutputConfig, QwenConfig, TrainConfig, load_config
from arcdist.doctor import checks
from arcdist.doctor.checks import (
    GIB,
    Fit,
    check_cache,
    check_cores,
    check_device,
    check_memory,
    check_output,
    check_tasks,
    check_weights,
    judge_fit,
    try_longest_batch,
)
from arcdist.doctor.examination import Verdict, try_check
from arcdist.engine.platform import start_platform
from arcdist.errors import DataError, NotFiniteError, OutOfMemoryError
from arcdist.models.qwen_source import TINY, embedded_config
from arcdist.training.trial import Pace, longest_batch, run_steps

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def room(monkeypatch):
    def make(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=free))

    return make


def test_a_folder_that_can_be_made_is_in_order_and_is_not_made(tmp_path, room):
    room(5 * GIB)
    folder = tmp_path / "deep" / "run"
    finding = check_output(OutputConfig(dir=str(folder)))
    assert (finding.found, finding.verdict) == (f"{folder} can be written, 5 GiB free", Verdict.OK)
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_it_is_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output(OutputConfig()).found.startswith("runs can be written")
    (tmp_path / "runs").touch()
    finding = check_output(OutputConfig())
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert finding.found.startswith("runs cannot be written: Not a directory")
    assert "--output_dir" in finding.advice


def test_the_folder_of_another_run_is_refused_as_by_a_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    finding = check_output(OutputConfig(dir=str(tmp_path)))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert finding.found == f"{tmp_path} holds another run (checkpoints)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_leave_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    assert check_output(OutputConfig(dir=str(tmp_path / "run"))).verdict is Verdict.FAIL


def test_a_full_disk_is_worth_a_warning(tmp_path, room):
    room(GIB - 1)
    finding = check_output(OutputConfig(dir=str(tmp_path)))
    assert finding.verdict is Verdict.WARN
    assert finding.advice.startswith("Make room there.")


def test_a_cache_that_cannot_be_written_is_the_machines(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert check_cache().verdict is Verdict.OK
    (tmp_path / "cache").touch()
    finding = check_cache()
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "HF_HOME" in finding.advice


@pytest.mark.parametrize(
    ("cores", "limit", "processes", "threads", "found", "advice"),
    [
        (8, None, 2, 4, "8 cores for 2 processes of 4 threads", ""),
        (1, None, 1, 1, "1 core for 1 process of 1 thread", ""),
        (4, None, 2, 4, "4 cores for 2 processes of 4 threads", "--train.cpu_threads 2"),
        (2, None, 3, 1, "2 cores for 3 processes of 1 thread", "at most 2 processes"),
        (64, 2.5, 1, 64, "2 cores for 1 process of 64 threads (the machine has 64, ", "--train.cpu_threads 2"),
    ],
)
def test_every_thread_needs_a_core(monkeypatch, cores, limit, processes, threads, found, advice):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)))
    monkeypatch.setattr(host, "most_cores", lambda: limit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    finding = check_cores(TrainConfig(device="cpu"))
    assert finding.found.startswith(found)
    assert finding.verdict is (Verdict.WARN if advice else Verdict.OK)
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("available", "left", "processes", "found", "verdict"),
    [
        (12, None, 8, "12 of 16 GiB free", Verdict.OK),
        (12, 4, 2, "4 of 16 GiB free", Verdict.OK),
        (3, None, 4, "3 of 16 GiB free", Verdict.WARN),
    ],
)
def test_every_process_needs_memory(monkeypatch, available, left, processes, found, verdict):
    memory = SimpleNamespace(available=available * GIB, total=16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(checks, "memory_left", lambda: None if left is None else left * GIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    finding = check_memory()
    assert (finding.found, finding.verdict) == (found, verdict)


def config(device="cpu", precision="no", dtype="float32"):
    return Config(train=TrainConfig(device=device, precision=precision, cpu_threads=1), qwen=QwenConfig(dtype=dtype))


@pytest.fixture(autouse=True)
def visible(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(checks, "_DRIVER", tmp_path / "no driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs; what is computed there is computed here."""

    def make(number=8, *, free=78, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free * GIB, 80 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA X1")
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )
        monkeypatch.setattr(checks, "_compute", lambda _device, _precision: None)

    return make


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_cpu_computes(precision):
    finding = check_device(config(precision=precision))
    assert (finding.found, finding.verdict) == ("cpu; PyTorch sees no GPUs", Verdict.OK)


def test_wrong_products_are_found(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.matmul(a, b) + 1)
    finding = check_device(config())
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "does not compute: ArithmeticError: a product of ones" in finding.found


def test_a_build_that_does_not_fit_the_gpu_is_found(gpus, monkeypatch):
    def compute(_device, _precision):
        raise RuntimeError("no kernel image is available for execution on the device\nCompile with ...")

    gpus()
    monkeypatch.setattr(checks, "_compute", compute)
    finding = check_device(config("cuda"))
    assert finding.verdict is Verdict.FAIL
    assert finding.found.endswith(
        "does not compute: RuntimeError: no kernel image is available for execution on the device"
    )
    assert "https://pytorch.org" in finding.advice


def test_a_gpu_is_reported_with_its_memory(gpus, monkeypatch):
    gpus()
    for name, value in {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "11", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    finding = check_device(config("cuda", "bf16"))
    assert (finding.found, finding.verdict) == ("cuda:3 of 8: NVIDIA X1, 78 of 80 GiB free, bf16", Verdict.OK)


def test_a_gpu_that_others_use_is_worth_a_warning(gpus):
    gpus(1, free=60)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.advice) == (Verdict.WARN, "nvidia-smi shows which other programs use it.")


@pytest.mark.parametrize(
    ("precision", "dtype", "warns"), [("bf16", "float32", 1), ("no", "bfloat16", 1), ("no", "float32", 0)]
)
def test_bfloat16_by_emulation_is_worth_a_warning(gpus, precision, dtype, warns):
    gpus(1, bf16=False)
    finding = check_device(config("cuda", precision, dtype))
    assert "no bf16" in finding.found
    assert (finding.verdict is Verdict.WARN) == bool(warns)
    assert ("--train.precision fp16 --qwen.dtype float32" in finding.advice) == bool(warns)


def test_more_processes_than_gpus_is_a_mistake(gpus, monkeypatch):
    gpus(2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert "--num_processes 2" in finding.found


def test_why_there_is_no_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    finding = check_device(config("cuda"))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.advice.startswith("This PyTorch is built without CUDA.")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check_device(config("cuda")).advice.startswith("CUDA_VISIBLE_DEVICES is '-1'")


def test_what_pytorch_warns_of_is_reported(monkeypatch):
    def device_count():
        warnings.warn("The NVIDIA driver on your system is too old.\nUpdate it.", stacklevel=1)
        return 0

    monkeypatch.setattr(torch.cuda, "device_count", device_count)
    for device, verdict in (("cuda", Verdict.FAIL), ("cpu", Verdict.WARN)):
        finding = check_device(config(device))
        assert finding.verdict is verdict
        assert finding.advice == "PyTorch says: The NVIDIA driver on your system is too old."


def test_a_gpu_that_lies_idle_for_want_of_cuda_is_worth_a_warning(monkeypatch, tmp_path):
    (tmp_path / "no driver").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = check_device(config("auto"))
    assert finding.verdict is Verdict.WARN
    assert "there is an NVIDIA driver" in finding.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check_device(config("auto")).verdict is Verdict.OK


HUB = "Qwen/Qwen2.5-1.5B"


@pytest.fixture(scope="session")
def download(tmp_path_factory):
    """A whole small model with a byte-level tokenizer, as Qwen's, its weights in several files."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    Qwen2ForCausalLM(embedded_config(TINY)).save_pretrained(folder, max_shard_size="20KB")
    pieces = [*"0123456789", "Ċ", "I", "O", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture
def model(download, tmp_path):
    return shutil.copytree(download, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, and a Hub that has so many bytes of weights, or gives an error."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def has(answer, config=None):
        def model_info(_api, model, *, files_metadata, timeout):
            assert files_metadata
            assert timeout <= 10
            if isinstance(answer, Exception):
                raise answer
            files = {"model.safetensors": answer, "config.json": 7, "pytorch_model.bin": 10**9}
            return SimpleNamespace(
                siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()], config=config
            )

        monkeypatch.setattr(HfApi, "model_info", model_info)

    has(ConnectionError("no network\nat all"))
    return has


def check(model, init="pretrained"):
    return check_weights(QwenConfig(model=str(model), init=init))


@pytest.mark.parametrize(("model", "init"), [(TINY, "pretrained"), (TINY, "random"), (HUB, "random")])
def test_what_the_package_builds_needs_nothing(model, init):
    finding = check(model, init)
    assert (finding.found, finding.verdict) == (f"{model} is built with random weights", Verdict.OK)


def test_a_whole_folder_is_in_order(model):
    assert len(list(model.glob("*.safetensors"))) > 1
    finding = check(model)
    assert (finding.found, finding.verdict) == (f"0.00 GiB in {model}", Verdict.OK)


def test_random_weights_need_the_configuration_only(model):
    for file in (*model.glob("*.safetensors*"), *model.glob("tokenizer*")):
        file.unlink()
    assert check(model, "random").verdict is Verdict.OK
    (model / "config.json").unlink()
    finding = try_check(lambda: check(model, "random"))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)


def cut_short(folder):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-100])


def stood_in_for(folder):
    next(folder.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")


def one_lost(folder):
    next(folder.glob("*.safetensors")).unlink()


def all_lost(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()


@pytest.mark.parametrize("harm", [cut_short, stood_in_for, one_lost, all_lost])
def test_weights_that_are_not_whole_are_found(model, harm):
    harm(model)
    finding = try_check(lambda: check(model))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert str(model) in finding.found
    assert "ownload" in finding.found
    assert "--qwen.init random" in finding.found


def quantise(folder):
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def divide_by_no_heads(folder):
    change_config(folder, num_attention_heads=0)


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantise, "is quantised (gptq), which is not supported: take the unquantised model."),
        (divide_by_no_heads, "no model can be built from config.json"),
    ],
)
def test_a_model_that_no_run_could_take_is_a_mistake(model, change, message):
    change(model)
    finding = try_check(lambda: check(model))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert message in finding.found


@pytest.mark.parametrize("lost", ["config.json", "tokenizer*"])
def test_a_folder_that_is_no_models_is_a_mistake(model, lost):
    for file in model.glob(lost):
        file.unlink()
    finding = try_check(lambda: check(model))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)


def test_what_neither_the_package_nor_a_folder_has_is_a_mistake(tmp_path):
    for model, init in (("embedded:huge", "pretrained"), ("somebody/model", "random"), (tmp_path / "no", "pretrained")):
        finding = try_check(lambda model=model, init=init: check(model, init))
        assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
        assert TINY in finding.found


def test_a_hub_out_of_reach_fails_with_the_ways_out(hub):
    finding = check(HUB)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "ConnectionError: no network)" in finding.found
    for way in (f"hf download {HUB}", "--qwen.model PATH", TINY, "--qwen.init random"):
        assert way in finding.advice


def test_a_download_to_come_is_reported_with_its_size(hub):
    hub(3 * GIB)
    finding = check(HUB)
    assert finding.verdict is Verdict.WARN
    assert "a run downloads 3.0 GiB first" in finding.found
    assert f"`hf download {HUB}`" in finding.advice


def test_a_quantised_model_is_not_downloaded(hub):
    hub(3 * GIB, {"model_type": "qwen2", "quantization_config": {"quant_method": "awq"}})
    finding = try_check(lambda: check(HUB))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert "is quantised (awq)" in finding.found


def test_a_download_needs_room(hub, monkeypatch):
    hub(3 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=2 * GIB))
    finding = check(HUB)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.found.endswith("has 2.0 GiB free")


@pytest.mark.usefixtures("hub")
def test_the_cache_is_enough_while_it_is_whole(download, tmp_path):
    repository = tmp_path / "hub" / "models--Qwen--Qwen2.5-1.5B"
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(download, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    finding = check(HUB)
    assert (finding.found, finding.verdict) == (f"0.00 GiB in {snapshot}", Verdict.OK)

    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    (snapshot / next(iter(index["weight_map"].values()))).unlink()
    assert check(HUB).verdict is Verdict.FAIL


PAIR = {"input": [[1]], "output": [[2]]}


@pytest.fixture
def source(tmp_path):
    """A folder of three tasks, the first of which has a test pair that can be scored."""

    def make(name="tasks", *, scored=1):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(3):
            test = {"input": [[number]], "output": [[0]]} if number < scored else {"input": [[number]]}
            content = {"train": [PAIR, {"input": [[3, number]], "output": [[4]]}], "test": [test]}
            (folder / f"{number}.json").write_text(json.dumps(content))
        return str(folder)

    return make


def test_tasks_and_what_can_be_scored_are_counted(source):
    folder = source()
    finding = check_tasks(DataConfig(source=folder, max_tasks=2))
    assert finding.verdict is Verdict.OK
    assert (
        finding.found
        == f"{folder} (training): 2 tasks (left out: 1 by data.max_tasks 2); {folder} (training): 1 test pairs to score"
    )
    # Machines that read other tasks would train apart.
    assert finding.differing is Verdict.FAIL


def test_nothing_to_score_is_a_mistake(source):
    finding = check_tasks(DataConfig(source=source(scored=0)))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
    assert "--data.validation_source" in finding.advice


def test_what_a_run_refuses_is_refused(source, tmp_path):
    with pytest.raises(DataError, match="Unknown data source"):
        check_tasks(DataConfig(source=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="are trained on"):
        check_tasks(DataConfig(source=source("a"), validation_source=source("b")))


def fit(peak, capacity=80):
    return Fit(peak=int(peak * GIB), capacity=capacity * GIB, queries=16, tokens=6517)


def test_one_process_speaks_for_itself():
    finding = judge_fit({0: fit(41.25)})
    assert (finding.found, finding.verdict) == (
        "16 queries of up to 6,517 tokens: peak 41.25 of 80.0 GiB",
        Verdict.OK,
    )


def test_the_one_with_least_left_speaks_for_all():
    finding = judge_fit({0: fit(60.0), 1: fit(32.0, capacity=40), 3: fit(59.0)})
    assert finding.found.endswith("peak 32.00 of 40.0 GiB on rank 1, which has least left")


@pytest.mark.parametrize(("peak", "verdict"), [(71.9, Verdict.OK), (72.1, Verdict.WARN)])
def test_a_close_fit_is_worth_a_warning(peak, verdict):
    finding = judge_fit({0: fit(peak)})
    assert finding.verdict is verdict
    assert ("--batch_size" in finding.advice) == (verdict is Verdict.WARN)


@pytest.fixture
def tried(clean_process, tiny_flags):
    """Try the longest batch of a tiny run."""

    def run(*flags):
        config = load_config([*tiny_flags, *flags]).config
        return try_longest_batch(config, start_platform(config))

    return run


@pytest.mark.parametrize(("every", "reads"), [(1, 2), (3, 1)])
def test_the_longest_batch_is_trained_on_until_qwen_reads_it_with_moments(tried, monkeypatch, every, reads):
    sessions, calls = [], []

    def steps(session, batches, epoch):
        read = []
        hook = session.models.qwen.register_forward_hook(lambda *_: read.append(None))
        has_moments = bool(session.engines.qwen.gather_moments())
        pace = run_steps(session, batches, epoch)
        hook.remove()
        calls.append((len(batches), has_moments, len(read)))
        sessions.append(session)
        return pace

    monkeypatch.setattr(checks, "run_steps", steps)
    measured = tried(f"--qwen.every={every}")
    assert calls == [(1, False, 1), (every + 1, True, reads)]
    lengths = sessions[0].training.queries.lengths()
    assert measured.queries == 4
    longest = longest_batch(sessions[0])
    assert measured.tokens == max(lengths) == max(lengths[row] for row in longest.rows) == longest.tokens
    assert 0.1 * GIB < measured.peak < measured.capacity


def test_running_out_of_memory_names_the_knobs(tried):
    width = 2**50
    with pytest.raises(OutOfMemoryError, match="--batch_size"):
        tried(f"--qwen.prompt_dim={width}")


def test_steps_that_are_never_finite_are_told(tried, monkeypatch):
    calls = []

    def steps(_session, batches, _epoch):
        calls.append(batches)
        return Pace(steps=1, queries=4, tokens=9, seconds=1.0, qwen_flops=1.0, agent_flops=1.0, skipped=1)

    monkeypatch.setattr(checks, "run_steps", steps)
    with pytest.raises(NotFiniteError, match="in 10 steps in a row"):
        tried()
    assert len(calls) == 10
