"""The agent of both kinds: what its output is, what it depends on, what it must not depend on, who learns."""

from dataclasses import asdict, fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arcdist.config import AgentConfig
from arcdist.data import QueryInputs
from arcdist.models import AgentOutput, ARCPromptGuidedAgent, predicted_size
from arcdist.models.agent import RULES, SizeHead, size_candidates
from arcdist.models.cores import one_hot_colors, product_flops

CONDITIONING_DIM = 4


@pytest.fixture
def sized(mixed):
    """Queries of which only the sizes matter: `(query's size, [(input size, output size), ...])` each."""

    def make(*queries) -> QueryInputs:
        pairs = max(len(context) for _, context in queries)
        absent, rows = ((0, 0), (0, 0)), [0] * len(queries)
        return QueryInputs(
            **{
                field.name: getattr(mixed, field.name)[rows]
                for field in fields(mixed)
                if not field.name.startswith("context") and field.name != "query_size"
            },
            query_size=torch.tensor([size for size, _ in queries]),
            context_inputs=mixed.context_inputs[rows, :1].expand(-1, pairs, -1, -1),
            context_outputs=mixed.context_outputs[rows, :1].expand(-1, pairs, -1, -1),
            context_sizes=torch.tensor([[*context, *[absent] * (pairs - len(context))] for _, context in queries]),
        )

    return make


def candidates(inputs: QueryInputs, max_grid_size: int = 30) -> dict[str, list[list[int]]]:
    return dict(zip(RULES, size_candidates(inputs, max_grid_size).tolist(), strict=True))


def test_rules_by_hand(sized):
    doubled = ((4, 5), [((2, 3), (4, 6)), ((1, 1), (2, 2)), ((3, 2), (6, 4))])
    constant = ((9, 2), [((5, 5), (3, 1)), ((7, 4), (3, 1))])
    single = ((6, 6), [((3, 3), (1, 3))])
    assert candidates(sized(doubled, constant, single)) == {
        "as the query": [[4, 5], [9, 2], [6, 6]],
        "as the first context output": [[4, 6], [3, 1], [1, 3]],
        "as the last context output": [[6, 4], [3, 1], [1, 3]],
        # 9 (3/5 + 3/7) / 2 = 4.63, 2 (1/5 + 1/4) / 2 = 0.45 -> 1; 6/3 = 2.
        "by the context's mean ratio": [[8, 10], [5, 1], [2, 6]],
    }


def test_absent_pairs_are_neither_last_nor_averaged(sized):
    one = ((3, 3), [((1, 1), (2, 5))])
    three = ((3, 3), [((1, 1), (2, 5)), ((2, 2), (2, 2)), ((3, 3), (9, 3))])
    alone, padded = candidates(sized(one)), candidates(sized(one, three))
    assert all(padded[rule][0] == sizes[0] for rule, sizes in alone.items())
    assert alone["as the last context output"] == [[2, 5]]
    assert alone["by the context's mean ratio"] == [[6, 15]]


def test_a_third_of_a_side_is_whole(sized):
    assert candidates(sized(((9, 27), [((3, 3), (1, 1))] * 3)))["by the context's mean ratio"] == [[3, 9]]


def test_candidates_stay_on_the_canvas(sized):
    inputs = sized(((30, 1), [((1, 9), (3, 1))]))
    assert candidates(inputs)["by the context's mean ratio"] == [[30, 1]]
    assert candidates(inputs, 12)["as the query"] == [[12, 1]]


def size_head(max_grid_size: int = 30) -> SizeHead:
    torch.manual_seed(0)
    return SizeHead(conditioning_dim=CONDITIONING_DIM, max_grid_size=max_grid_size)


def conditioning(queries: int) -> Tensor:
    return torch.randn(queries, CONDITIONING_DIM, generator=torch.Generator().manual_seed(0))


def trust(head: SizeHead, rule: int) -> SizeHead:
    """Let all of the weight lie on one rule; the last is the free guess."""
    with torch.no_grad():
        head.gates.weight.zero_()
        head.gates.bias.copy_(20.0 * torch.eye(len(RULES) + 1)[rule].repeat(2))
    return head


def test_log_probabilities_of_every_side(mixed):
    logits = size_head()(conditioning(3), mixed)
    assert logits.shape == (3, 2, 30)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(3, 2))
    assert logits.isfinite().all()


def test_the_mixture_by_a_slow_loop(mixed):
    head = size_head()
    logits = head(conditioning(3), mixed)
    sizes = size_candidates(mixed, 30)
    numbers = torch.cat([sizes, mixed.working_area[None]]).movedim(0, 1).flatten(1) / 30
    hidden = torch.nn.functional.silu(head.hidden(torch.cat([conditioning(3), numbers], dim=-1)))
    for query in range(3):
        for axis in (0, 1):
            gates = head.gates(hidden)[query, 5 * axis : 5 * axis + 5].softmax(-1)
            slow = gates[4] * head.guess(hidden)[query, 30 * axis : 30 * axis + 30].softmax(-1) + 1e-6
            for rule in range(4):
                slow[sizes[rule, query, axis] - 1] += gates[rule]
            torch.testing.assert_close(logits[query, axis].exp(), slow / slow.sum())


@pytest.mark.parametrize("rule", range(len(RULES)))
def test_each_rule_can_be_trusted(rule, mixed):
    logits = trust(size_head(), rule)(conditioning(3), mixed)
    assert torch.equal(logits.argmax(-1) + 1, size_candidates(mixed, 30)[rule])
    assert logits.amax(-1).min() > -1e-3


def test_every_size_keeps_a_probability_and_a_gradient(mixed):
    head = trust(size_head(), 0)
    logits = head(conditioning(3), mixed)
    assert logits.min() > -20  # -ln of the floor is 14
    (-logits[:, :, 29].sum()).backward()  # nobody's rule
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_queries_and_padding_change_nothing(mixed, mixed_queries, collate, enlarged):
    head = size_head()
    expected = head(conditioning(3), mixed)
    torch.testing.assert_close(head(conditioning(3), enlarged(mixed, margin=4, pairs=3)), expected, rtol=0, atol=1e-6)
    for row, query in enumerate(mixed_queries):
        alone = head(conditioning(3)[row : row + 1], collate(query).inputs)
        torch.testing.assert_close(alone[0], expected[row], rtol=0, atol=1e-6)


def test_the_likeliest_size_that_fits():
    logits = torch.full((2, 2, 5), -9.0)
    logits[0, 0, 4] = -0.1  # height 5, over the working area
    logits[0, 0, 1] = -2.0
    logits[0, 1, 2] = -0.1
    logits[1, 0, 0] = -0.1
    logits[1, 1, 4] = -0.1
    area = torch.tensor([[4, 3], [1, 5]])
    assert predicted_size(logits, area).tolist() == [[2, 3], [1, 5]]
    assert predicted_size(logits, area.clamp(max=1)).tolist() == [[1, 1], [1, 1]]
    assert predicted_size(logits, torch.full((2, 2), 30)).tolist() == [[5, 3], [1, 5]]


def test_predicted_sizes_are_within_the_working_area(mixed):
    for seed in range(20):
        logits = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(seed)).log_softmax(-1)
        sizes = predicted_size(logits, mixed.working_area)
        assert (sizes >= 1).all()
        assert (sizes <= mixed.working_area).all()
        for query in range(3):
            for axis in (0, 1):
                allowed = logits[query, axis, : mixed.working_area[query, axis]]
                assert sizes[query, axis] == allowed.argmax() + 1


P, T = 8, 3
AREAS = [(3, 3), (4, 8), (7, 3)]
PER_CELL = ("forward_logits", "backward_logits", "reconstruction_logits", "state_logits")


@pytest.fixture(params=["recursive", "attention", "conv"])
def kind(request):
    return request.param


@pytest.fixture
def agent(kind, shaken):
    return shaken(build(kind))


def build(kind, **options):
    torch.manual_seed(0)
    settings = {"hidden_dim": 16, "prompt_dim": P, "max_steps": T, "num_tasks": 3, "attention": kind == "attention"}
    return ARCPromptGuidedAgent("conv" if kind == "conv" else "recursive", **settings | options)


def prompts(queries: int, seed: int = 0) -> Tensor:
    return torch.randn(queries, P, generator=torch.Generator().manual_seed(seed))


def of_query(output: AgentOutput, row: int, area: tuple[int, int]) -> dict[str, Tensor]:
    """What the output says about one query: its cells in its working area, and its size."""
    height, width = area
    cells = {name: getattr(output, name)[..., row, :height, :width, :] for name in PER_CELL}
    return {**cells, "size_logits": output.size_logits[row], "halting": output.halting[:, row]}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


def all_losses(output: AgentOutput) -> Tensor:
    """A number that depends on every cell of the working areas of every output."""
    total = output.size_logits.cos().sum() + output.obs_probs.sin().sum()
    for name in PER_CELL:
        total = total + getattr(output, name).cos()[..., output.area, :].sum()
    return total + output.halting.cos().sum()


def differs(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() > 1e-3)


def test_shapes_of_mixed_sizes(agent, mixed):
    output = agent(mixed, prompts(3))
    assert output.forward_logits.shape == (T, 3, 7, 8, 10)
    assert output.backward_logits.shape == (T, 3, 7, 8, 10)
    assert output.reconstruction_logits.shape == (3, 7, 8, 10)
    assert output.state_logits.shape == (T, 3, 7, 8, 10)
    assert output.obs_probs.shape == (10, 10)
    assert output.size_logits.shape == (3, 2, 30)
    assert output.halting.shape == (T, 3)
    for row, (height, width) in enumerate(AREAS):
        assert output.area[row, :height, :width].all()
        assert output.area[row].sum() == height * width


@pytest.mark.parametrize("colors", [10, 4])
def test_other_numbers_of_colours_steps_and_sides(kind, mixed, colors):
    few = replace(
        mixed,
        **{
            name: torch.where(getattr(mixed, name) >= 0, getattr(mixed, name) % colors, -1)
            for name in ("query", "context_inputs", "context_outputs")
        },
    )
    output = build(kind, num_colors=colors, max_steps=1, max_grid_size=9)(few, prompts(3))
    assert output.forward_logits.shape == (1, 3, 7, 8, colors)
    assert output.obs_probs.shape == (colors, colors)
    assert output.size_logits.shape == (3, 2, 9)


def test_logits_are_log_probabilities(agent, mixed):
    output = agent(mixed, prompts(3))
    for name in ("forward_logits", "backward_logits", "reconstruction_logits", "size_logits"):
        total = getattr(output, name).exp().sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.obs_probs.sum(-1), torch.ones(10))
    assert output.obs_probs.min() > 0


def test_colours_are_the_states_seen_through_the_observation_model(agent, mixed):
    output = agent(mixed, prompts(3))
    state_probs, slow = output.state_logits.softmax(-1), torch.zeros_like(output.forward_logits)
    for state in range(10):
        for color in range(10):
            slow[..., color] += state_probs[..., state] * output.obs_probs[state, color]
    torch.testing.assert_close(output.forward_logits.exp(), slow)


def test_colours_are_float32_log_probabilities_inside_autocast(agent, mixed):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = agent(mixed, prompts(3))
    for name in ("forward_logits", "backward_logits", "reconstruction_logits", "size_logits"):
        logits = getattr(output, name)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(logits.shape[:-1]), rtol=0, atol=1e-5)


def test_states_begin_as_colours(kind):
    assert torch.equal(build(kind).emission.observation.argmax(-1), torch.arange(10))


def test_a_query_alone_is_answered_as_in_a_batch(agent, mixed, mixed_queries, collate):
    together = agent(mixed, prompts(3))
    for row, (query, area) in enumerate(zip(mixed_queries, AREAS, strict=True)):
        alone = agent(collate(query).inputs, prompts(3)[row : row + 1])
        assert alone.area.shape == (1, *area)
        assert_same(of_query(alone, 0, area), of_query(together, row, area))


def test_padding_changes_nothing(agent, mixed, enlarged):
    small, large = agent(mixed, prompts(3)), agent(enlarged(mixed, margin=3, pairs=2), prompts(3))
    assert torch.equal(large.area[:, :7, :8], small.area)
    assert large.area.sum() == small.area.sum()
    for row, area in enumerate(AREAS):
        assert_same(of_query(large, row, area), of_query(small, row, area))


def test_padding_changes_no_gradient(kind, shaken, mixed, enlarged):
    agent = shaken(build(kind))

    def gradients(inputs: QueryInputs) -> dict[str, Tensor]:
        agent.zero_grad()
        all_losses(agent(inputs, prompts(3))).backward()
        return {name: parameter.grad.clone() for name, parameter in agent.named_parameters()}

    small = gradients(mixed)
    for name, gradient in gradients(enlarged(mixed, margin=3, pairs=2)).items():
        largest = small[name].abs().max().item()
        assert (gradient - small[name]).abs().max().item() <= 1e-5 * largest, name


def test_neighbours_change_nothing(agent, mixed, collate, make_query, mixed_queries):
    others = [make_query("c", [((7, 8), (7, 8))] * 3, (7, 8), index=index) for index in range(2)]
    first = agent(collate(mixed_queries[0], *others).inputs, torch.cat([prompts(1), prompts(2, seed=1)]))
    second = agent(collate(others[1], mixed_queries[0]).inputs, torch.cat([prompts(1, seed=2), prompts(1)]))
    assert_same(of_query(first, 0, AREAS[0]), of_query(second, 1, AREAS[0]))


@pytest.mark.parametrize("kind", ["recursive", "conv"])
def test_channels_are_dropped_by_view_while_it_learns_and_in_answers_never(kind, shaken, mixed):
    agent, whole = (shaken(build(kind, dropout=share)) for share in (0.5, 0.0))
    whole.load_state_dict(agent.state_dict())
    seeded = replace(mixed, dropout_seed=torch.tensor([5, 6, 7]))
    learned = agent(seeded, prompts(3))
    assert torch.equal(learned.forward_logits, agent(seeded, prompts(3)).forward_logits)
    # One view's seed is its own matter.
    other = agent(replace(seeded, dropout_seed=torch.tensor([5, 6, 8])), prompts(3))
    for way in ("forward_logits", "backward_logits"):
        before, after = getattr(learned, way), getattr(other, way)
        assert torch.equal(after[:, :2], before[:, :2])
        assert not torch.equal(after[:, 2], before[:, 2])
    one = agent(seeded.take(torch.tensor([1])), prompts(3)[1:2])
    torch.testing.assert_close(one.forward_logits[:, 0], learned.forward_logits[:, 1], rtol=1e-4, atol=1e-5)
    assert torch.equal(agent.eval()(seeded, prompts(3)).forward_logits, whole(seeded, prompts(3)).forward_logits)


def test_every_parameter_learns(agent, mixed):
    all_losses(agent(mixed, prompts(3))).backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_an_untrained_agent_learns_in_both_directions_and_sizes(kind, mixed):
    agent = build(kind)
    all_losses(agent(mixed, prompts(3))).backward()
    assert (agent.directions.grad.abs().sum(-1) > 0).all()
    for part in (agent.core, agent.emission, agent.origin, agent.size_head, agent.from_prompt):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0


def test_the_prompt_s_gradient_flows_query_by_query(agent, mixed):
    prompt = prompts(3).requires_grad_()
    output = agent(mixed, prompt)
    output.forward_logits[:, 1, :4, :8].cos().sum().backward()
    assert prompt.grad[1].abs().min() > 0
    assert not prompt.grad[[0, 2]].any()


@pytest.mark.parametrize("name", [*PER_CELL, "size_logits"])
def test_the_prompt_and_the_symmetry_matter(agent, mixed, name):
    first = getattr(agent(mixed, prompts(3)), name)
    assert differs(first, getattr(agent(mixed, prompts(3, seed=1)), name))
    turned = replace(mixed, dihedral=torch.tensor([0, 3, 7]))
    second = getattr(agent(turned, prompts(3)), name)
    dimension = -3 if name == "size_logits" else -4
    for row, is_turned in enumerate([False, True, True]):
        assert differs(first.select(dimension, row), second.select(dimension, row)) is is_turned


def test_each_task_has_a_vector_and_an_unknown_one_zeros(shaken, mixed):
    agent = shaken(build("recursive"))
    known = replace(mixed, task_index=torch.tensor([0, 1, 2]))
    swapped = replace(mixed, task_index=torch.tensor([1, 1, -1]))
    first, second = agent(known, prompts(3)), agent(swapped, prompts(3))
    for row, changes in enumerate([True, False, True]):
        assert differs(first.forward_logits[:, row], second.forward_logits[:, row]) is changes

    with torch.no_grad():
        agent.task_vectors.weight[3] = 0.0  # task 2; row 0 is the unknown one
    zeros = agent(known, prompts(3))
    assert torch.equal(zeros.forward_logits[:, 2], second.forward_logits[:, 2])


def test_an_unknown_task_teaches_no_task_vector(shaken, mixed):
    agent = shaken(build("recursive"))
    all_losses(agent(mixed, prompts(3))).backward()
    assert mixed.task_index.tolist() == [0, 1, -1]
    assert [bool(row.any()) for row in agent.task_vectors.weight.grad] == [False, True, True, False]
    torch.optim.AdamW(agent.parameters(), lr=0.1, weight_decay=0.1).step()
    assert not agent.task_vectors.weight[0].any()


@pytest.mark.parametrize(("kind", "options"), [("recursive", {"task_vectors": False}), ("conv", {})])
def test_without_task_vectors_tasks_are_alike(kind, options, shaken, mixed):
    agent = shaken(build(kind, **options))
    assert agent.task_vectors is None
    other = replace(mixed, task_index=torch.tensor([2, 0, 1]))
    assert torch.equal(agent(mixed, prompts(3)).forward_logits, agent(other, prompts(3)).forward_logits)


def test_one_reading_of_the_context_serves_several_prompts(agent, kind, mixed):
    context = agent.read_context(mixed)
    assert (context is None) is (kind == "conv")
    for seed in range(2):
        expected = agent(mixed, prompts(3, seed))
        given = agent(mixed, prompts(3, seed), context)
        for name in (*PER_CELL, "size_logits"):
            assert torch.equal(getattr(given, name), getattr(expected, name)), name


@pytest.fixture
def starts(agent, monkeypatch):
    """The grid and the size that each trajectory of `agent` starts from, as the core is given them."""
    seen = []
    start = agent.core.start

    def record(grid, size, *rest):
        seen.append((grid, size))
        return start(grid, size, *rest)

    monkeypatch.setattr(agent.core, "start", record)
    return seen


def test_the_way_back_starts_from_the_predicted_outcome(agent, starts, mixed):
    output = agent(mixed, prompts(3))
    (ahead, ahead_size), (back, back_size) = starts
    assert torch.equal(ahead, one_hot_colors(mixed.query, 10))
    assert torch.equal(ahead_size, mixed.query_size)
    assert torch.equal(back_size, predicted_size(output.size_logits, mixed.working_area))
    for row, (height, width) in enumerate(back_size.tolist()):
        inside = back[row, :height, :width]
        torch.testing.assert_close(inside[..., :10], output.final_logits[row, :height, :width].exp())
        assert not inside[..., 10].any()
        beyond = back[row].clone()
        beyond[:height, :width] = one_hot_colors(torch.tensor(-1), 10)
        assert torch.equal(beyond, one_hot_colors(torch.full((7, 8), -1), 10))


def test_the_way_back_sends_no_gradient_into_the_way_ahead(agent, starts, mixed):
    output = agent(mixed, prompts(3))
    assert not starts[1][0].requires_grad
    (output.backward_logits.cos().sum() + output.reconstruction_logits.cos().sum()).backward()
    ahead, back = agent.directions.grad
    assert not ahead.any()
    assert back.abs().min() > 0
    assert all(parameter.grad is None for parameter in agent.size_head.parameters())


def test_the_way_ahead_knows_nothing_of_the_way_back(agent, mixed):
    output = agent(mixed, prompts(3))
    (output.forward_logits.cos().sum() + output.size_logits.cos().sum()).backward()
    ahead, back = agent.directions.grad
    assert ahead.abs().min() > 0
    assert not back.any()
    assert all(parameter.grad is None for parameter in agent.origin.parameters())


def test_the_way_back_changes_with_the_predicted_outcome(agent, mixed):
    first = agent(mixed, prompts(3))
    with torch.no_grad():
        agent.directions[0] += 1.0  # seen by the way ahead only
    second = agent(mixed, prompts(3))
    assert differs(first.forward_logits, second.forward_logits)
    assert differs(first.reconstruction_logits, second.reconstruction_logits)


def test_the_way_back_is_aligned_with_the_way_ahead(agent, mixed):
    # With P(o | s) the identity and the same read-out for both, the input as reconstructed is where the way back ends.
    with torch.no_grad():
        agent.emission.observation.copy_(30.0 * torch.eye(10))
        agent.emission.to_states.weight.mul_(0.1)
        agent.origin.weight.copy_(agent.emission.to_states.weight)
        agent.origin.bias.copy_(agent.emission.to_states.bias)
    agent.emission.norm = torch.nn.Identity()
    output = agent(mixed, prompts(3))
    torch.testing.assert_close(output.backward_logits[0], output.reconstruction_logits, rtol=1e-4, atol=1e-4)
    assert all(differs(output.backward_logits[t], output.reconstruction_logits) for t in range(1, T))


def test_a_seed_gives_the_same_weights(kind):
    first, second = build(kind).state_dict(), build(kind).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_matrices_are_those_of_the_core_s_hidden_layers(agent, kind):
    names = {id(parameter): name for name, parameter in agent.named_parameters()}
    core = [name for name in names.values() if name.startswith("core.") and name.endswith(".weight")]
    outer = ("before", "after", "colors", "belief", "to_query", "from_context", "first", "fuse_prompt")
    layers = [name for name in core if name.split(".")[-2] not in outer]
    assert [names[id(matrix)] for matrix in agent.matrices()] == layers
    assert len(layers) == {"recursive": 7, "attention": 9, "conv": 1 + T}[kind]


def counted(run) -> int:
    """Operations of what `run` does, with attention as the two products that it is made of."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_operations_of_a_forward_pass_are_those_that_pytorch_counts(agent, mixed):
    views, pairs, height, width = mixed.context_inputs.shape
    flops, prompt = agent.flops(height, width, pairs), prompts(views)
    with torch.no_grad():
        context = agent.read_context(mixed)
        assert counted(lambda: agent.read_context(mixed)) == views * flops.context
        assert counted(lambda: agent.plan(mixed, prompt, context)) == views * flops.ahead
        assert counted(lambda: agent(mixed, prompt, context)) == views * (flops.ahead + flops.back)
        some = torch.tensor([2, 0])
        assert counted(lambda: agent(mixed, prompt, context, backward=some)) == views * flops.ahead + 2 * flops.back


def test_operations_of_training_are_three_forward_passes_but_for_gradients_of_data(agent, mixed):
    views, pairs, height, width = mixed.context_inputs.shape
    flops, some = agent.flops(height, width, pairs), torch.tensor([2, 0])
    of_training = views * flops.training(2 / 3, 0.0)

    def learn():
        output = agent(mixed, prompts(views).requires_grad_(), backward=some)
        sum(getattr(output, name).sum() for name in (*PER_CELL, "size_logits", "halting")).backward()

    # No gradient goes into what is known: grids, and the belief that a trajectory's first step starts from, which is
    # one; the signals that halting looks at.
    first = agent.core.colors if agent.context_encoder else agent.core.first
    known = product_flops((views + 2) * height * width, agent.core.belief, first)
    known += product_flops(views * T, agent.halting.hidden)
    if agent.context_encoder:
        known += product_flops(views * pairs * height * width, agent.context_encoder.cells)
    assert counted(learn) == pytest.approx(of_training - known, rel=1e-12)
    assert known < 0.25 * of_training  # Of this agent, which is 16 wide.
    assert flops.training(2 / 3, 0.5) == pytest.approx(of_training / 3 + 0.5 * (flops.ahead + flops.back))


def test_takes_the_keys_of_its_section():
    section = AgentConfig(kind="conv", max_grid_size=20, hidden_dim=16, max_steps=2, task_vectors=False, ema_decay=0.5)
    agent = ARCPromptGuidedAgent(**asdict(section), prompt_dim=8, num_tasks=3)
    assert agent.ema_decay == 0.5
    assert agent.max_steps == 2
    assert agent.from_prompt.weight.shape == (16, 8)


def stopping_at(agent: ARCPromptGuidedAgent, steps: list[int], monkeypatch) -> ARCPromptGuidedAgent:
    """The agent, whose queries stop after so many steps each; 0: after none before the last."""
    plans = torch.zeros(T, len(steps))
    for row, step in enumerate(steps):
        plans[step - 1, row] = 1.0
    rows = {}

    def halting(log_colors, before, area):
        if len(log_colors) == T:
            return plans
        taken = sum(len(each) > 0 for each in rows.values())
        left = [row for row, step in enumerate(steps) if step == 0 or step > taken]
        rows[taken] = left
        return plans[taken, left][None]

    monkeypatch.setattr(agent.halting, "forward", halting)
    return agent


@pytest.mark.parametrize(
    ("steps", "expected"), [([1, 2, 3], [1, 2, 3]), ([0, 1, 0], [3, 1, 3]), ([1, 1, 1], [1, 1, 1])]
)
def test_a_query_is_answered_after_the_step_at_which_it_stops(agent, mixed, monkeypatch, steps, expected):
    output = stopping_at(agent, steps, monkeypatch)(mixed, prompts(3))
    assert output.steps.tolist() == expected
    for row, step in enumerate(expected):
        assert torch.equal(output.final_logits[row], output.forward_logits[step - 1, row])


def test_it_stops_where_stopping_is_likelier_than_not(agent, mixed, monkeypatch):
    halting = torch.tensor([[0.4, 0.6, 0.1], [0.2, 0.0, 0.1], [0.0, 0.0, 0.0]])
    monkeypatch.setattr(agent.halting, "forward", lambda *_: halting)
    # 0.6 x 0.8 = 0.48 go on after the second step of the first query, 0.9 x 0.9 after that of the last.
    assert agent(mixed, prompts(3)).steps.tolist() == [2, 1, 3]


@pytest.mark.parametrize("steps", [[1, 2, 3], [0, 1, 0], [1, 1, 1]])
def test_steps_after_which_nothing_is_asked_are_not_taken(agent, mixed, monkeypatch, steps):
    expected = stopping_at(agent, steps, monkeypatch).plan(mixed, prompts(3))
    taken, emission = [], agent.emission.forward
    monkeypatch.setattr(agent.emission, "forward", lambda state: taken.append(len(state)) or emission(state))
    plan = agent.plan_until_stopped(mixed, prompts(3))
    assert sum(taken) == expected.steps.sum()
    assert torch.equal(plan.steps, expected.steps)
    torch.testing.assert_close(plan.final_logits, expected.final_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plan.size_logits, expected.size_logits)
    for row, step in enumerate(expected.steps):
        ahead = expected.forward_logits[:step, row], plan.forward_logits[:step, row]
        torch.testing.assert_close(*ahead, rtol=1e-5, atol=1e-5)
        repeated = plan.forward_logits[step - 1 :, row]
        assert torch.equal(repeated, repeated[:1].expand_as(repeated))


def test_an_agent_that_cannot_stop_takes_every_step(kind, shaken, mixed):
    agent = shaken(build(kind, halting=False))
    output = agent(mixed, prompts(3))
    assert output.halting is None
    assert output.steps.tolist() == [T] * 3
    assert torch.equal(output.final_logits, output.forward_logits[-1])
    assert torch.equal(agent.plan_until_stopped(mixed, prompts(3)).forward_logits, output.forward_logits)


def test_an_untrained_agent_may_stop_after_any_step(kind, mixed):
    torch.testing.assert_close(build(kind)(mixed, prompts(3)).halting, torch.full((T, 3), 1 / T))


def test_how_likely_it_stops_teaches_the_agent_nothing_else(agent, mixed):
    agent(mixed, prompts(3)).halting.sum().backward()
    learned = {name.split(".")[0] for name, parameter in agent.named_parameters() if parameter.grad is not None}
    assert learned == {"halting"}
