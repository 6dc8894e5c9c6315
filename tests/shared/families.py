"""Tiny models of today's Qwen, each built from its configuration, of which every layer has a kind of its family."""

from transformers import (
    PretrainedConfig,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

# Queries are wider than the model, as in Qwen3-0.6B.
_COMMON = {
    "vocab_size": 14,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
    # Larger than usual, so that what a layer adds can be seen.
    "initializer_range": 0.2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_SHARED = {"shared_expert_intermediate_size": 16}

FAMILIES: dict[str, PretrainedConfig] = {
    "qwen3": Qwen3Config(**_COMMON),
    "qwen3_moe": Qwen3MoeConfig(**_COMMON, **_EXPERTS),
    "qwen3_next": Qwen3NextConfig(**_COMMON, **_EXPERTS, **_LINEAR, **_SHARED),
    "qwen3_5": Qwen3_5TextConfig(**_COMMON, **_LINEAR),
    "qwen3_5_moe": Qwen3_5MoeTextConfig(**_COMMON, **_EXPERTS, **_LINEAR, **_SHARED),
}
