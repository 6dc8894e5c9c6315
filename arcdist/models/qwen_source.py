"""Where Qwen's body and tokenizer come from: the package, a local folder or the Hugging Face Hub."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers import logging as transformers_logging

from arcdist.data.text import GridTokenizer, embedded_tokenizer, from_pretrained_tokenizer
from arcdist.errors import ConfigError, PlatformError
from arcdist.files import expanded

TINY = "embedded:tiny"
"""A Qwen2 small enough to train beside the agent on a laptop's CPU, with a vocabulary of grids only."""

_SIZES: dict[str, dict[str, int | bool]] = {
    TINY: {
        "vocab_size": embedded_tokenizer().vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
    },
    "Qwen/Qwen2.5-0.5B": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-1.5B": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "tie_word_embeddings": True,
    },
}
EMBEDDED_MODELS = tuple(_SIZES)
"""Names whose configuration is in the package."""


def embedded_config(name: str) -> Qwen2Config:
    """The configuration of one of `EMBEDDED_MODELS`."""
    return Qwen2Config(
        **_SIZES[name],
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        rms_norm_eps=1e-6,
        max_position_embeddings=32_768,
        use_cache=False,
    )


@runtime_checkable
class Sharding(Protocol):
    """How a model comes into being where no process may hold it whole."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """While it lasts, transformers builds and loads models in shards of this precision."""

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:
        """While it lasts, the parameter is whole; what process 0 writes into it is shared out at the end."""


class Unsharded:
    """Every process holds all of a model."""

    def building(self, dtype: torch.dtype) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing."""
        return nullcontext()

    def whole(self, parameter: nn.Parameter) -> AbstractContextManager[None]:  # noqa: ARG002
        """Change nothing: it is whole."""
        return nullcontext()


UNSHARDED = Unsharded()


def random_body(
    config: PretrainedConfig, dtype: torch.dtype, *, seed: int = 0, sharding: Sharding = UNSHARDED
) -> PreTrainedModel:
    """A model of that configuration without its LM head.

    Weights are drawn parameter by parameter, each from a stream of its own name: a model that is built in shards is the
    same one. Matrices are normal with the configuration's `initializer_range`, scales of norms 1, biases 0.
    """
    with sharding.building(dtype):
        body = AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)
    std = getattr(config, "initializer_range", 0.02)
    for path, module in body.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.is_meta:
                continue  # A shape without numbers.
            with sharding.whole(parameter), torch.no_grad():
                if name.endswith("bias"):
                    parameter.zero_()
                elif isinstance(module, nn.Linear | nn.Embedding):
                    # On the CPU, whatever holds the parameter: a GPU draws other numbers from the same seed.
                    drawn = torch.empty(parameter.shape, dtype=parameter.dtype)
                    parameter.copy_(drawn.normal_(0.0, std, generator=_stream(seed, name)))
                elif parameter.ndim == 1:
                    parameter.fill_(1.0)
    return body


def _stream(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


_log = logging.getLogger(__name__)

_HUB_FILES = ["*.json", "*.safetensors", "merges.txt", "tokenizer.model"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_HUB_TIMEOUT = 5.0
"""Seconds that the Hub may take to say that it is there."""


def load_body(
    model: str,
    init: Literal["pretrained", "random"],
    dtype: torch.dtype,
    *,
    seed: int = 0,
    sharding: Sharding = UNSHARDED,
) -> tuple[PreTrainedModel, GridTokenizer]:
    """Give a causal language model without its LM head, and the tokenizer that writes grids for it.

    No code of a model's repository is ever run, and weights are only read from safetensors.

    Args:
        model: a Hub name, a local folder, or one of `EMBEDDED_MODELS`.
        init: `random` builds the model from its configuration, without weights and without a download.
        dtype: precision of the weights.
        seed: of random weights.
        sharding: how the weights are shared out over processes.

    Raises:
        ConfigError: no such model, or one that cannot read grids.
        PlatformError: its weights are not at hand.
    """
    folder = expanded(model)
    if model == TINY or (init == "random" and model in EMBEDDED_MODELS):
        body = random_body(embedded_config(model), dtype, seed=seed, sharding=sharding)
        tokenizer = embedded_tokenizer()
        _log.info("%s has untrained, random weights: it reads grids, but knows no language.", model)
    elif folder.is_dir():
        body, tokenizer = _from_folder(folder, model, init, dtype, seed=seed, sharding=sharding)
    elif init == "random" or model.startswith("embedded:"):
        raise ConfigError(
            f"qwen.model is {model!r}, which has no configuration in the package and is no local folder: "
            f"choose {TINY}, a folder with config.json, or {' or '.join(EMBEDDED_MODELS[1:])} with --qwen.init random."
        )
    else:
        body, tokenizer = _from_folder(_hub_snapshot(model), model, init, dtype, seed=seed, sharding=sharding)

    if tokenizer.symbol_ids.max() >= body.config.vocab_size or tokenizer.pad_id >= body.config.vocab_size:
        raise ConfigError(
            f"qwen.model {model!r}: its tokenizer knows {tokenizer.vocab_size} tokens, but the model embeds only "
            f"{body.config.vocab_size}: take the model's own tokenizer."
        )
    # Prompts are independent of right padding only because no token sees a later one.
    if any(getattr(module, "is_causal", True) is False for module in body.modules()):
        raise ConfigError(
            f"qwen.model {model!r} ({body.config.model_type}) is no causal language model: "
            f"choose one that is, such as Qwen/Qwen2.5-1.5B."
        )
    return body, tokenizer


def _from_folder(
    folder: Path,
    model: str,
    init: Literal["pretrained", "random"],
    dtype: torch.dtype,
    *,
    seed: int,
    sharding: Sharding,
) -> tuple[PreTrainedModel, GridTokenizer]:
    has_tokenizer = any((folder / name).is_file() for name in _TOKENIZER_FILES)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"qwen.model {model!r}: {folder} has no config.json, so it is not a folder of a model.")
    if not has_tokenizer and init == "pretrained":
        raise ConfigError(
            f"qwen.model {model!r}: {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}): copy the model's there."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = embedded_tokenizer()
        if has_tokenizer:
            tokenizer = from_pretrained_tokenizer(
                AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            )
        if init == "random":
            _log.info(
                "%s has untrained, random weights and reads %s.",
                model,
                "its own tokens" if has_tokenizer else "arcdist's grid tokens, as it has no tokenizer",
            )
            return random_body(config, dtype, seed=seed, sharding=sharding), tokenizer
    except (OSError, ValueError) as error:
        raise ConfigError(f"qwen.model {model!r}: {folder} cannot be read: {error}") from error

    if not any(folder.glob("*.safetensors")):
        raise PlatformError(
            f"qwen.model {model!r}: {folder} holds no weights as safetensors, the only format that is read: "
            f"download or convert them, or build the model without weights by --qwen.init random."
        )
    try:
        with _quiet_transformers(), sharding.building(dtype):
            causal_lm, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # told by the report, with our own message
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise PlatformError(f"qwen.model {model!r}: the weights in {folder} cannot be read: {error}") from error
    absent = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if absent:
        raise PlatformError(
            f"qwen.model {model!r}: the weights in {folder} lack or misshape {len(absent)} parameters of the model "
            f"({', '.join(absent[:3])}, …): download them again."
        )
    return causal_lm.base_model, tokenizer


def _hub_snapshot(model: str) -> Path:
    """The local folder of a Hub model, brought up to date where the Hub can be reached."""
    unreachable: Exception | None = None
    try:
        # A download asks the same without a time limit, and would wait for a silent server for ever.
        HfApi().model_info(model, timeout=_HUB_TIMEOUT)
    except HFValidationError as error:
        raise ConfigError(f"qwen.model {model!r} is neither a folder that exists nor a name of the Hub.") from error
    except Exception as error:  # names, routes, proxies, certificates, rights: each of a class of its own
        unreachable = error
    try:
        folder = snapshot_download(
            model, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=unreachable is not None
        )
    except Exception as error:
        reason = str(unreachable or error).strip().partition("\n")[0]
        raise PlatformError(
            f"qwen.model {model!r} is no local folder, is not in the local cache, and the Hugging Face Hub does not "
            f"give it ({type(unreachable or error).__name__}: {reason}). Three ways out: --qwen.model PATH, a folder "
            f"with the model's files; --qwen.model {TINY}, a small untrained model without a download; or "
            f"--qwen.init random, random weights for {' or '.join(EMBEDDED_MODELS[1:])}. To fill the cache (HF_HOME), "
            f"run `hf download {model}` where there is a network; HF_HUB_OFFLINE=1 then reads it without one."
        ) from error
    if unreachable is not None:
        _log.info("The Hub was not reached (%s): %s is read from %s.", type(unreachable).__name__, model, folder)
    return Path(folder)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep the loading bar and the load report, which repeats what the caller checks, off the console."""
    verbosity, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
