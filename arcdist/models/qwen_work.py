"""How many operations Qwen takes, by the length of what it reads."""

# d width, L layers, N weights of their linear maps, P weights of the adapters.
from collections.abc import Iterable

from transformers import PretrainedConfig


def layer_weights(config: PretrainedConfig) -> int:
    """Weights of the linear maps of one layer: attention's four and the gated MLP's three."""
    width, heads = config.hidden_size, config.num_attention_heads
    key_width = width * (getattr(config, "num_key_value_heads", None) or heads) // heads
    inner = getattr(config, "intermediate_size", None) or 4 * width
    return 2 * width * (width + key_width) + 3 * width * inner


def attention_share(config: PretrainedConfig) -> float:
    """Operations of attention a token and position over those of the linear maps a token: 6 d / (4 N / L)."""
    return 6.0 * config.hidden_size / (4.0 * layer_weights(config))


def training_flops(config: PretrainedConfig, adapter_weights: int, lengths: Iterable[int]) -> float:
    """Operations of reading texts of these lengths (in tokens) and training the adapters on them.

    A token of a text of s tokens takes 4 N + 6 P + 6 s d L: frozen weights have a forward pass and the gradient of
    their inputs, 2 N each; adapters have that of their own too; attention looks back on half of the text on average.
    What is computed twice to save memory counts once, and neither embeddings nor an LM head count.
    """
    layers: int = config.num_hidden_layers
    linear = 4.0 * layers * layer_weights(config) + 6.0 * adapter_weights
    attention = 6.0 * config.hidden_size * layers
    return sum(length * (linear + attention * length) for length in lengths)
