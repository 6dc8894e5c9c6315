import pytest
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from arcdist.models import attention_share, training_flops
from arcdist.models.embedded import embedded_config
from arcdist.models.qwen_work import layer_weights

CONFIG = Qwen2Config(
    vocab_size=8,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=3,
    num_key_value_heads=1,
)


def test_weights_of_a_layer_are_those_of_its_linear_maps():
    layer = Qwen2Model(CONFIG).layers[0]
    counted = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    assert layer_weights(CONFIG) == counted == 2 * 12 * (12 + 4) + 3 * 12 * 20


def test_operations_by_hand():
    weights = layer_weights(CONFIG)
    token = 4 * 3 * weights + 6 * 7
    assert training_flops(CONFIG, 7, [2, 5]) == 7 * token + 6 * 12 * 3 * (4 + 25)
    assert attention_share(CONFIG) == pytest.approx(72 / (4 * weights))


def test_the_published_numbers_of_qwen_1_5b():
    config = embedded_config("Qwen/Qwen2.5-1.5B")
    assert 28 * layer_weights(config) == pytest.approx(1.310e9, rel=1e-3)
    # 5.7 GFLOP a token at 1.5 k tokens, adapters of rank 16 included.
    assert training_flops(config, 18_464_768, [1500]) / 1500 == pytest.approx(5.7e9, rel=0.02)
