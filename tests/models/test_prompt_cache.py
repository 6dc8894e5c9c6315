"""A prompt serves `every` batches, without gradient, and is then computed anew."""

import torch
from torch import Tensor

from arcdist.models.prompt_cache import PromptCache
from arcdist.models.qwen_prompt import PromptOutput

CPU = torch.device("cpu")


def output(*values: float, requires_grad: bool = False) -> PromptOutput:
    prompt = torch.tensor([[value, value] for value in values], requires_grad=requires_grad)
    return PromptOutput(prompt, -prompt)


def first(prompts: Tensor) -> list[float]:
    return prompts[:, 0].tolist()


def test_prompt_serves_every_batches() -> None:
    cache = PromptCache(every=3, prompt_dim=2, device=CPU)
    assert cache.lookup(["a", "b"], 5).missing.tolist() == [0, 1]
    cache.store(["a", "b"], output(1.0, 2.0), 5)
    for batch_number in (6, 7):
        cached = cache.lookup(["b", "a", "c"], batch_number)
        assert cached.missing.tolist() == [2]
        assert first(cached.output.prompt) == [2.0, 1.0, 0.0]
        assert first(cached.output.control) == [-2.0, -1.0, 0.0]
    cached = cache.lookup(["b", "a"], 8)
    assert cached.missing.tolist() == [0, 1]
    assert first(cached.output.prompt) == [0.0, 0.0]


def test_every_batch_computes_its_own_prompts_by_default() -> None:
    cache = PromptCache(every=1, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    assert cache.lookup(["a"], 1).missing.tolist() == [0]


def test_a_task_named_twice_keeps_its_last_prompt() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    cache.store(["a", "a"], output(1.0, 2.0), 0)
    assert first(cache.lookup(["a"], 1).output.prompt) == [2.0]


def test_gradient_reaches_computed_rows_only() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    stored = output(1.0, requires_grad=True)
    cache.store(["a"], stored, 0)
    cached = cache.lookup(["b", "a"], 1)
    assert not cached.output.prompt.requires_grad
    computed = output(7.0, requires_grad=True)
    whole = cached.fill(computed)
    assert first(whole.prompt) == [7.0, 1.0]
    assert first(whole.control) == [-7.0, -1.0]
    whole.prompt.sum().backward()
    assert computed.prompt.grad is not None
    assert computed.prompt.grad.tolist() == [[1.0, 1.0]]
    assert stored.prompt.grad is None


def test_a_batch_without_missing_prompts() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    assert cache.lookup(["a"], 1).missing.shape == (0,)


def test_a_prompt_that_is_still_good_is_not_replaced() -> None:
    cache = PromptCache(every=3, prompt_dim=2, device=CPU)
    cache.store(["a"], output(1.0), 0)
    cache.store(["a", "b"], output(7.0, 8.0), 2)
    assert first(cache.lookup(["a", "b"], 2).output.prompt) == [1.0, 8.0]
    cached = cache.lookup(["a", "b"], 3)
    assert cached.missing.tolist() == [0]  # three batches old, and so is its age
    cache.store(["a"], output(9.0), 3)
    assert first(cache.lookup(["a"], 5).output.prompt) == [9.0]


def test_a_cache_that_goes_on_from_a_state_gives_the_same_prompts_for_as_long() -> None:
    cache, other = (PromptCache(every=3, prompt_dim=2, device=CPU) for _ in range(2))
    cache.store(["a", "b"], output(0.1, 2.0), 4)
    cache.store(["c"], output(3.0), 5)
    other.store(["d"], output(9.0), 5)
    batches, rows = cache.state()
    assert batches == {"a": 4, "b": 4, "c": 5}
    assert {query: row.tolist() for query, row in rows.items()} == {
        "a": [[torch.tensor(0.1).item()] * 2, [torch.tensor(-0.1).item()] * 2],
        "b": [[2.0, 2.0], [-2.0, -2.0]],
        "c": [[3.0, 3.0], [-3.0, -3.0]],
    }
    other.load_state(batches, rows)
    for batch_number in (5, 6, 7, 8):
        mine, its = (each.lookup(["a", "b", "c", "d"], batch_number) for each in (cache, other))
        assert torch.equal(mine.missing, its.missing)
        assert torch.equal(mine.output.prompt, its.output.prompt)
        assert torch.equal(mine.output.control, its.output.control)
    assert other.lookup(["d"], 5).missing.tolist() == [0]  # nothing but what the state holds


def test_a_state_is_a_copy_and_empty_where_nothing_is_kept() -> None:
    cache = PromptCache(every=2, prompt_dim=2, device=CPU)
    assert cache.state() == ({}, {})
    cache.store(["a"], output(1.0), 0)
    _, rows = cache.state()
    rows["a"].zero_()
    assert first(cache.lookup(["a"], 1).output.prompt) == [1.0]
