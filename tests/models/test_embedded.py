"""The packaged configurations are Qwen2.5's."""

import pytest
import torch

from arcdist.models.embedded import TINY, embedded_config
from arcdist.models.random_body import random_body


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen/Qwen2.5-0.5B", 494_032_768), ("Qwen/Qwen2.5-1.5B", 1_543_714_304)],
)
def test_parameters_without_lm_head(name: str, parameters: int) -> None:
    with torch.device("meta"):
        body = random_body(embedded_config(name), torch.bfloat16)
    assert sum(parameter.numel() for parameter in body.parameters()) == parameters
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}
    assert not any("lm_head" in name for name, _ in body.named_parameters())


def test_tiny_has_a_vocabulary_of_grids() -> None:
    body = random_body(embedded_config(TINY), torch.float32)
    assert body.get_input_embeddings().weight.shape == (14, 32)
    assert body.config._attn_implementation == "sdpa"
