from dataclasses import replace

import pytest
import torch
from torch import nn

from arcdist.training.models import EMA, keep_prompts, read_prompts


def linear(value: float) -> nn.Linear:
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.fill_(-value)
    return module


def set_weights(module: nn.Linear, value: float) -> None:
    with torch.no_grad():
        module.weight.fill_(value)
        module.bias.fill_(-value)


def test_by_hand_while_the_decay_grows():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.999)
    set_weights(trained, 12.0)
    ema.update()  # decay 2 / 11
    assert ema.module.weight.item() == pytest.approx(1 * 2 / 11 + 12 * 9 / 11)
    assert ema.module.bias.item() == pytest.approx(-10.0)
    set_weights(trained, 0.0)
    ema.update()  # decay 3 / 12
    assert ema.module.weight.item() == pytest.approx(2.5)
    assert ema.updates == 2
    assert trained.weight.item() == 0.0


def test_by_hand_once_the_decay_is_reached():
    trained = linear(8.0)
    ema = EMA(trained, decay=0.25)
    set_weights(trained, 0.0)
    values = []
    for _ in range(4):
        ema.update()
        values.append(ema.module.weight.item())
    # 2/11 < 0.25 only at the first update; then (1 + n) / (10 + n) >= 0.25 for n >= 2.
    assert values == pytest.approx([8 * 2 / 11, 8 * 2 / 11 / 4, 8 * 2 / 11 / 16, 8 * 2 / 11 / 64])


def test_the_decay_never_exceeds_its_bound():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.9)
    ema.updates = 10_000
    set_weights(trained, 0.0)
    ema.update()
    assert ema.module.weight.item() == pytest.approx(0.9)


def test_a_decay_of_0_is_the_trained_module_itself():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.0)
    assert ema.module is trained
    ema.update()
    assert trained.weight.item() == 1.0
    assert trained.weight.requires_grad


def test_the_average_is_a_module_of_its_own_that_is_not_trained():
    trained = nn.Sequential(nn.Dropout(0.5), linear(3.0))
    trained.train()
    ema = EMA(trained, decay=0.5)
    assert not ema.module.training
    assert trained.training
    assert all(not parameter.requires_grad for parameter in ema.module.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())
    ema.update()
    assert torch.equal(ema.module[1].weight, torch.tensor([[3.0]]))


def test_an_update_leaves_no_graph():
    trained = linear(1.0)
    ema = EMA(trained, decay=0.5)
    ema.update()
    assert not ema.module.weight.requires_grad
    assert ema.module.weight.grad_fn is None


def test_a_restart_begins_anew_with_the_present_weights():
    trained = linear(8.0)
    ema = EMA(trained, decay=0.999)
    for _ in range(5):
        ema.update()
    set_weights(trained, 3.0)
    ema.restart()
    assert (ema.updates, ema.module.weight.item(), ema.module.bias.item()) == (0, 3.0, -3.0)
    set_weights(trained, 14.0)
    assert ema.module.weight.item() == 3.0  # a copy
    ema.update()  # decay 2 / 11, as at first
    assert ema.module.weight.item() == pytest.approx(3 * 2 / 11 + 14 * 9 / 11)


def batch_of(session, rows):
    (batch,) = session.training.load([list(rows)], 0, session.device)
    return batch


def read(session, batch, number=0, *, index=0, seed=0, keep_graph=True):
    return read_prompts(
        session.models, session.engines.qwen, batch.queries[index], number, seed=seed, keep_graph=keep_graph
    )


def gradients(session, reading, *, is_last=True):
    """What a gradient gives the trained parameters on its way back through a reading."""
    gradient = torch.linspace(-1, 1, reading.prompt.numel()).view_as(reading.prompt)
    reading.backward(session.engines.qwen, gradient, is_last=is_last)
    parameters = {name: p for name, p in session.models.qwen.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture
def calls():
    """How many queries each forward pass of a session's Qwen had."""

    def count(session):
        seen = []
        session.models.qwen.register_forward_hook(lambda _module, given, _output: seen.append(len(given[0])))
        return seen

    return count


def trained(session):
    """Away from LoRA's first weights, which give nothing for what is dropped before them."""
    with torch.no_grad():
        for parameter in session.models.qwen.trainable_parameters()["lora"]:
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return session


@pytest.mark.parametrize("flags", [(), ("--qwen.gradient_checkpointing=true",), ("--train.precision=bf16",)])
def test_reading_twice_gives_the_gradient_of_the_kept_graph(build_tiny, calls, flags):
    session = trained(build_tiny("--qwen.lora_dropout=0.3", *flags))
    batch, forward = batch_of(session, range(4)), calls(session)
    kept = read(session, batch, 5)
    assert forward == [4]
    assert kept.graph is not None
    expected = gradients(session, kept)
    forward.clear()
    torch.rand(3)  # what else was drawn in between plays no part
    again = read(session, batch, 5, keep_graph=False)
    assert forward == [4]
    assert again.graph is None
    assert again.prompt.is_leaf
    assert torch.equal(again.prompt, kept.prompt)
    assert torch.equal(again.control, kept.control)
    torch.rand(3)
    found = gradients(session, again)
    assert forward[:2] == [4, 4]
    assert same(found, expected)
    assert all(gradient.abs().max() > 0 for gradient in expected.values())


@pytest.mark.parametrize("change", [{"seed": 1}, {"number": 6}, {"rows": (0, 1, 2)}])
def test_other_units_are_dropped_with_another_seed_step_or_share(build_tiny, change):
    session = trained(build_tiny("--qwen.lora_dropout=0.3"))
    options = {"number": 5, "seed": 0}
    expected = read(session, batch_of(session, range(4)), **options).prompt[:3]
    batch = batch_of(session, change.get("rows", range(4)))
    prompt = read(session, batch, **options | {k: v for k, v in change.items() if k != "rows"}).prompt[:3]
    assert (prompt - expected).abs().max() > 1e-3


def test_a_reading_leaves_the_random_state_as_it_was(build_tiny):
    session = build_tiny("--qwen.lora_dropout=0.3")
    batch = batch_of(session, range(4))
    state = torch.get_rng_state()
    gradients(session, read(session, batch, keep_graph=False))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_cache_every_query_is_read_and_nothing_is_kept(build_tiny, calls):
    session = build_tiny()
    batch, forward = batch_of(session, range(4)), calls(session)
    for number in range(2):
        reading = read(session, batch, number)
        assert reading.rows.tolist() == [0, 1, 2, 3]
        keep_prompts(session.models, batch, [reading], number)
    assert forward == [4, 4]
    assert session.models.prompts.lookup(batch.ids, 1).missing.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keep_graph", [True, False])
def test_only_what_is_not_kept_is_read_and_sent_back(build_tiny, calls, keep_graph):
    session = trained(build_tiny("--qwen.every=3"))
    forward = calls(session)
    first = batch_of(session, [0, 2])
    before = read(session, first, 0)
    keep_prompts(session.models, first, [before], 0)
    batch = batch_of(session, [0, 1, 2, 3])
    reading = read(session, batch, 2, keep_graph=keep_graph)
    assert forward == [2, 2]
    assert reading.rows.tolist() == [1, 3]
    assert torch.equal(reading.prompt[[0, 2]], before.prompt)
    assert torch.equal(reading.control[[0, 2]], before.control)

    found = gradients(session, reading)
    gradient = torch.linspace(-1, 1, reading.prompt.numel()).view_as(reading.prompt)
    inputs = batch.queries[0].inputs
    prompt, _ = session.models.qwen(inputs.tokens[[1, 3]], inputs.token_mask[[1, 3]], inputs.features[[1, 3]])
    prompt.backward(gradient[[1, 3]])
    for name, value in found.items():
        assert torch.equal(session.models.qwen.get_parameter(name).grad, value), name
    assert len(found) > 4


def test_a_share_that_is_all_kept_is_not_read_and_gives_no_gradient(build_tiny, calls):
    session = build_tiny("--qwen.every=3")
    batch = batch_of(session, range(4))
    first = read(session, batch, 0)
    keep_prompts(session.models, batch, [first], 0)
    forward = calls(session)
    reading = read(session, batch, 2)
    assert torch.equal(reading.prompt, first.prompt)
    assert reading.graph is None
    assert gradients(session, reading) == {}
    assert forward == []
    # In the third batch after it was computed it is no longer good.
    assert read(session, batch, 3).rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("keep_graph", [True, False])
def test_in_lockstep_a_share_that_is_all_kept_is_read_for_the_others_and_counts_nothing(build_tiny, calls, keep_graph):
    session = build_tiny("--qwen.every=3")
    session.engines.qwen.in_lockstep = True
    batch = batch_of(session, range(4))
    first = read(session, batch, 0)
    keep_prompts(session.models, batch, [first], 0)
    with torch.no_grad():  # so that what is read now is not what was kept
        session.models.qwen.prompt_projection.text[1].weight.mul_(-1.0)
    forward = calls(session)
    reading = read(session, batch, 1, keep_graph=keep_graph)
    assert forward == [1]
    assert torch.equal(reading.prompt, first.prompt)
    found = gradients(session, reading)
    assert forward == ([1] if keep_graph else [1, 1])
    # It took part in the backward pass, with nothing to say.
    assert found
    assert not any(gradient.any() for gradient in found.values())


def test_prompts_of_all_shares_are_kept_under_their_own_names_but_not_of_padding(build_tiny):
    session = build_tiny("--qwen.every=3", "--train.accumulation=3")
    batch = batch_of(session, [4, 0, 7])
    other = batch_of(session, [1, 2, 3])
    readings = [read(session, batch, 0, index=index, keep_graph=False) for index in range(3)]
    prompts = {
        ids: reading.prompt for queries, reading in zip(batch.queries, readings, strict=True) for ids in queries.ids
    }
    # The last share is made one of padding.
    *real, last = batch.shares
    shares = (*real, replace(last, is_padding=True))
    padded = replace(batch, shares=shares, partition=replace(batch.partition, shares=(shares,)))
    keep_prompts(session.models, padded, readings, 0)
    cached = session.models.prompts.lookup(batch.ids, 1)
    (missing,) = batch.queries[2].ids
    assert [batch.ids[row] for row in cached.missing.tolist()] == [missing]
    for row, query_id in enumerate(batch.ids):
        if query_id != missing:
            assert torch.equal(cached.output.prompt[row], prompts[query_id][0])
    assert session.models.prompts.lookup(other.ids, 1).missing.tolist() == [0, 1, 2]


def test_a_prompt_that_is_still_good_keeps_its_age(build_tiny):
    session = build_tiny("--qwen.every=2")
    batch = batch_of(session, [0])
    for number, missing in ((0, 1), (1, 0), (2, 1), (3, 0)):
        reading = read(session, batch, number)
        assert len(reading.rows) == missing
        keep_prompts(session.models, batch, [reading], number)
