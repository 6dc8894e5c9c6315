"""Qwen2.5 configurations kept in the package, so that a model can be built from random weights without a download."""

from transformers import Qwen2Config

from arcdist.data.text import embedded_tokenizer

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
