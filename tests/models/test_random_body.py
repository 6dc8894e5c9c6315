"""Random weights are a matter of the seed and the parameter's name, not of the order they are drawn in."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from transformers import Qwen2Config

from arcdist.models.random_body import UNSHARDED, Sharding, random_body


def small_config(layers=2):
    """A Qwen2 wide enough for statistics."""
    return Qwen2Config(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.05,
    )


@pytest.fixture(scope="module")
def config():
    return small_config()


def weights(body):
    return {name: parameter.detach().clone() for name, parameter in body.named_parameters()}


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(config):
    torch.manual_seed(3)
    first = weights(random_body(config, torch.float32, seed=5))
    torch.rand(7)
    second = weights(random_body(config, torch.float32, seed=5))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_another_seed_gives_other_matrices(config):
    first, second = (weights(random_body(config, torch.float32, seed=seed)) for seed in (0, 1))
    matrices = [name for name, value in first.items() if value.ndim == 2]
    assert len(matrices) == 1 + 2 * 7
    assert [name for name in matrices if torch.equal(first[name], second[name])] == []


def test_matrices_are_normal_scales_1_and_biases_0(config):
    body = random_body(config, torch.float32)
    kinds = {name: module for name, module in body.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    for name, value in weights(body).items():
        layer, _, field = name.rpartition(".")
        if field == "bias":
            assert not value.any(), name
        elif layer in kinds:
            assert abs(value.mean()) < 0.05 * 5 / value.numel() ** 0.5, name
            assert value.std().item() == pytest.approx(0.05, rel=5 / value.numel() ** 0.5), name
        else:
            assert (value == 1).all(), name
    assert any(name.endswith("bias") for name in weights(body))
    assert any(value.ndim == 1 and (value == 1).all() for value in weights(body).values())


def test_layers_of_one_shape_have_weights_of_their_own(config):
    first, second = random_body(config, torch.float32).layers
    assert not torch.equal(first.mlp.up_proj.weight, second.mlp.up_proj.weight)
    assert not torch.equal(first.mlp.up_proj.weight, first.mlp.gate_proj.weight)


def test_a_model_with_fewer_layers_is_the_beginning_of_a_larger_one(config):
    larger = weights(random_body(config, torch.float32))
    smaller = weights(random_body(small_config(layers=1), torch.float32))
    assert smaller.keys() < larger.keys()
    assert all(torch.equal(value, larger[name]) for name, value in smaller.items())


def test_the_weights_have_the_precision_that_is_asked_for(config):
    body = random_body(config, torch.bfloat16)
    assert {parameter.dtype for parameter in body.parameters()} == {torch.bfloat16}


def test_it_is_built_in_shards_of_which_one_parameter_at_a_time_is_whole(config):
    open_now, seen, building = [], [], []

    class Noting:
        @contextmanager
        def building(self, dtype):
            building.append(dtype)
            yield

        @contextmanager
        def whole(self, parameter):
            open_now.append(parameter)
            seen.append(parameter)
            yield
            assert open_now.pop() is parameter
            assert not open_now

    noting = Noting()
    assert isinstance(noting, Sharding)
    assert isinstance(UNSHARDED, Sharding)
    body = random_body(config, torch.float32, seed=5, sharding=noting)
    assert building == [torch.float32]
    assert [id(parameter) for parameter in seen] == [id(parameter) for parameter in body.parameters()]
    plain = weights(random_body(config, torch.float32, seed=5))
    assert all(torch.equal(value, plain[name]) for name, value in weights(body).items())
