"""Whether Qwen's weights are at hand, found out without reading or downloading them."""

import json
import shutil
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer

from arcdist.config import QwenConfig
from arcdist.data import from_pretrained_tokenizer
from arcdist.doctor.finding import Finding, Verdict, failure, headline, warning
from arcdist.doctor.resources import GIB, existing
from arcdist.errors import ConfigError
from arcdist.models.embedded import EMBEDDED_MODELS, TINY
from arcdist.paths import expanded

_HUB_SECONDS = 5.0
_WAYS_OUT = (
    f"Give a folder with the model's files (--qwen.model PATH), a small untrained model (--qwen.model {TINY}), or "
    f"random weights for {' or '.join(EMBEDDED_MODELS[1:])} (--qwen.init random)."
)


def check_weights(qwen: QwenConfig) -> Finding:
    """Look for the model where a run would: in the package, in a local folder, in the cache and on the Hub.

    Raises:
        ConfigError: its tokenizer cannot write grids.
    """
    folder = expanded(qwen.model)
    if qwen.model == TINY or (qwen.init == "random" and qwen.model in EMBEDDED_MODELS):
        return Finding(found=f"{qwen.model} is built with random weights")
    if folder.is_dir():
        return _in_folder(folder, qwen)
    if qwen.init == "random" or qwen.model.startswith("embedded:"):
        return failure(f"{qwen.model} is neither in the package nor a local folder", _WAYS_OUT, ConfigError.exit_code)
    try:
        cached = _in_folder(Path(snapshot_download(qwen.model, local_files_only=True)), qwen)
    except HFValidationError:
        return failure(
            f"{qwen.model} is neither a local folder nor a name of the Hub", _WAYS_OUT, ConfigError.exit_code
        )
    except LocalEntryNotFoundError:
        return _on_hub(qwen.model)
    # What is there of an unfinished download is completed by the next.
    return cached if cached.verdict is Verdict.OK else _on_hub(qwen.model)


def _in_folder(folder: Path, qwen: QwenConfig) -> Finding:
    try:
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if qwen.init == "random":
            return Finding(found=f"the model of {folder} is built with random weights")
        from_pretrained_tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError) as error:
        return failure(
            f"{folder} is not the folder of a model: {headline(error)}",
            "Name one that has a config.json and a tokenizer.",
            ConfigError.exit_code,
        )
    mend = f"Download them again. {_WAYS_OUT}"
    sizes = []
    for file in _weight_files(folder):
        try:
            # A file that was cut short, or that git-lfs stands in for, has no header that fits it.
            with safe_open(file, framework="pt"):
                sizes.append(file.stat().st_size)
        except (OSError, SafetensorError) as error:
            return failure(f"{file} cannot be read: {headline(error)}", mend)
    if not sizes:
        return failure(f"{folder} holds no weights as safetensors", mend)
    return Finding(found=f"{sum(sizes) / GIB:.2f} GiB in {folder}")


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def _on_hub(model: str) -> Finding:
    try:
        files = HfApi().model_info(model, files_metadata=True, timeout=_HUB_SECONDS).siblings or []
    except Exception as error:  # names, routes, proxies, certificates, rights: each of a class of its own
        return failure(
            f"{model} is no local folder and not whole in the cache, and the Hugging Face Hub does not give it "
            f"({headline(error)})",
            f"Fill the cache with `hf download {model}` where there is a network. {_WAYS_OUT}",
        )
    size = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    found = f"{model} is on the Hugging Face Hub, not whole in the cache: a run downloads {size / GIB:.1f} GiB first"
    cache = Path(constants.HF_HUB_CACHE)
    room = shutil.disk_usage(existing(cache)).free
    if room < size:
        return failure(
            f"{found}, and {cache} has {room / GIB:.1f} GiB free", "Make room, or set HF_HOME to a folder with more."
        )
    return warning(found, f"`hf download {model}` does it beforehand, once on every machine.")
