"""The solver: what its memory holds, what it proposes from it, how far it is trusted, who learns."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from arcdist.data import OUTSIDE
from arcdist.models import PermanentSolver, Proposal, SolvedQueries
from arcdist.models.solver import SolvedMemory, color_map, query_keys

FEATURE_DIM, SIDE = 4, 3


def build_memory(capacity=4):
    return SolvedMemory(capacity=capacity, feature_dim=FEATURE_DIM, max_grid_size=SIDE, num_colors=10)


def feature(query_id):
    """A direction of each query's own."""
    return torch.randn(FEATURE_DIM, generator=torch.Generator().manual_seed(sum(query_id.encode())))


def outcome(query_id):
    return torch.full((2, 2), ord(query_id[0]) % 10)


def add(memory, ids, *, exact=True, step=0):
    """Remember queries, whose features and outcomes follow from their names; `exact` for all or for each."""
    solved = [exact] * len(ids) if isinstance(exact, bool) else list(exact)
    memory.add(
        ids=ids,
        features=torch.stack([feature(each) for each in ids]),
        queries=torch.zeros(len(ids), 2, 2, dtype=torch.long),
        outcomes=torch.stack([outcome(each) for each in ids]),
        exact=torch.tensor(solved),
        step=step,
    )


def held(memory, names):
    """Those of `names` that the memory holds, each with its whole entry right."""
    found = set()
    for name in names:
        slots = torch.nonzero(memory.keys[: len(memory)] == query_keys([name])[0]).flatten().tolist()
        if not slots:
            continue
        (slot,) = slots
        torch.testing.assert_close(memory.features[slot], F.normalize(feature(name), dim=-1))
        assert memory.outcomes[slot, :2, :2].tolist() == outcome(name).tolist()
        assert memory.color_maps[slot, 0].argmax() == outcome(name)[0, 0]
        found.add(name)
    return found


def recall(memory, ids, *, k=2, height=SIDE, width=SIDE):
    features = torch.stack([feature(each) for each in ids])
    return memory.recall(features, ids, k=k, height=height, width=width)


def test_colour_map_by_hand():
    query = torch.tensor([[[1, 1, 2], [1, 0, -1]], [[5, 5, 5], [5, 5, 5]]])
    answer = torch.tensor([[[3, 3, 2], [4, -1, 7]], [[-1] * 3] * 2])
    shares = color_map(query, answer, 6)
    expected = torch.zeros(2, 6, 6)
    expected[0, 1, 3], expected[0, 1, 4], expected[0, 2, 2] = 2 / 3, 1 / 3, 1.0
    torch.testing.assert_close(shares, expected)


def test_keys_are_stable_distinct_and_positive():
    assert query_keys(["007bbfb7:train:0"]).tolist() == [7742454625538715367]
    keys = query_keys([f"{task:08x}:train:{pair}" for task in range(500) for pair in range(4)])
    assert len(keys.unique()) == 2000
    assert keys.min() >= 0


def test_an_entry_is_kept_whole():
    memory = build_memory()
    memory.add(
        ids=["x"],
        features=torch.tensor([[3.0, 0.0, 4.0, 0.0]], requires_grad=True),
        queries=torch.tensor([[[1, 1]]]),
        outcomes=torch.tensor([[[2, 7]]]),
        exact=torch.tensor([True]),
        step=17,
    )
    assert len(memory) == 1
    torch.testing.assert_close(memory.features[0], torch.tensor([0.6, 0.0, 0.8, 0.0]))
    assert not memory.features.requires_grad
    assert memory.outcomes[0].tolist() == [[2, 7, -1], [-1, -1, -1], [-1, -1, -1]]
    assert memory.color_maps[0, 1].nonzero().flatten().tolist() == [2, 7]
    assert memory.color_maps[0].sum() == 1.0
    assert (memory.exact[0].item(), memory.age[0].item()) == (True, 17)


def test_no_more_than_the_largest_side_is_kept():
    memory = build_memory()
    grid = torch.arange(20).reshape(1, 4, 5) % 10
    memory.add(
        ids=["x"],
        features=torch.ones(1, FEATURE_DIM),
        queries=grid,
        outcomes=grid,
        exact=torch.tensor([True]),
        step=0,
    )
    assert memory.outcomes[0].tolist() == grid[0, :3, :3].tolist()


def test_nothing_to_add():
    memory = build_memory()
    memory.add(
        ids=[],
        features=torch.zeros(0, FEATURE_DIM),
        queries=torch.zeros(0, 2, 2, dtype=torch.long),
        outcomes=torch.zeros(0, 2, 2, dtype=torch.long),
        exact=torch.zeros(0, dtype=torch.bool),
        step=0,
    )
    assert len(memory) == 0


def test_a_query_solved_again_replaces_its_own_entry():
    memory = build_memory()
    add(memory, ["a", "b"], step=1)
    memory.add(
        ids=["a"],
        features=torch.tensor([[0.0, 0.0, 0.0, 2.0]]),
        queries=torch.tensor([[[4]]]),
        outcomes=torch.tensor([[[8]]]),
        exact=torch.tensor([False]),
        step=5,
    )
    assert len(memory) == 2
    assert memory.features[0].tolist() == [0, 0, 0, 1]
    assert memory.outcomes[0].tolist() == [[8, -1, -1], [-1] * 3, [-1] * 3]  # nothing of the larger grid before
    assert (memory.exact[0].item(), memory.age[0].item()) == (True, 5)  # solved once is solved
    assert held(memory, "b") == {"b"}


def test_the_oldest_unsolved_goes_first_then_for_a_success_the_oldest():
    memory = build_memory(capacity=3)
    add(memory, ["a"], exact=True, step=1)
    add(memory, ["b"], exact=False, step=2)
    add(memory, ["c"], exact=False, step=3)
    add(memory, ["d"], exact=True, step=4)
    assert held(memory, "abcd") == {"a", "c", "d"}
    add(memory, ["e"], exact=True, step=5)
    assert held(memory, "abcde") == {"a", "d", "e"}
    add(memory, ["f"], exact=True, step=6)
    assert held(memory, "abcdef") == {"d", "e", "f"}
    add(memory, ["g"], exact=False, step=7)
    assert held(memory, "abcdefg") == {"d", "e", "f"}
    assert len(memory) == 3


def test_solving_again_makes_an_entry_recent():
    memory = build_memory(capacity=2)
    add(memory, ["a"], step=1)
    add(memory, ["b"], step=2)
    add(memory, ["a"], step=3)
    add(memory, ["c"], step=4)
    assert held(memory, "abc") == {"a", "c"}


def test_a_memory_may_fill_up_in_the_middle_of_a_batch():
    memory = build_memory(capacity=3)
    add(memory, ["a", "b"], exact=False, step=1)
    add(memory, ["c", "d", "e"], step=2)
    assert held(memory, "abcde") == {"c", "d", "e"}


def test_a_batch_larger_than_the_memory_leaves_its_last_queries():
    memory = build_memory(capacity=2)
    add(memory, ["a", "b", "c"], exact=False, step=1)
    assert len(memory) == 2
    assert held(memory, "abc") == {"b", "c"}


def test_successes_of_one_batch_do_not_push_out_each_other():
    memory = build_memory(capacity=2)
    add(memory, ["a", "b"], exact=[True, False], step=1)
    add(memory, ["c", "d"], step=2)
    assert held(memory, "abcd") == {"c", "d"}


def test_failures_do_not_push_out_successes_older_than_a_failure_that_is_held():
    memory = build_memory(capacity=2)
    add(memory, ["a", "b"], exact=[True, False], step=1)
    add(memory, ["c", "d"], exact=False, step=2)
    assert held(memory, "abcd") == {"a", "d"}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4),
    st.lists(
        st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=5, unique_by=lambda each: each[0]),
        max_size=6,
    ),
)
def test_against_a_slow_memory(capacity, batches):
    memory, slow = build_memory(capacity), {}
    for step, batch in enumerate(batches):
        if batch:
            add(memory, [name for name, _ in batch], exact=[exact for _, exact in batch], step=step)
        for name, exact in batch:
            slot = slow[name][2] if name in slow else len(slow)
            if slot == capacity:
                gone = min(slow, key=lambda each: slow[each])
                if slow[gone][0] and not exact:
                    continue
                slot = slow.pop(gone)[2]
            slow[name] = (exact or slow.get(name, (False,))[0], step, slot)
    assert len(memory) == len(slow)
    assert held(memory, "abcdefgh") == set(slow)
    for name, (exact, step, slot) in slow.items():
        assert memory.keys[slot] == query_keys([name])[0]
        assert (memory.exact[slot].item(), memory.age[slot].item()) == (exact, step)


def test_recall_is_the_cosine_s_top_k_by_a_slow_loop():
    memory = build_memory(capacity=8)
    names = list("abcdef")
    add(memory, names)
    recalled = recall(memory, ["a", "new", "f"], k=3, height=2, width=3)
    assert recalled.outcomes.shape == (3, 3, 2, 3)
    for row, name in enumerate(["a", "new", "f"]):
        cosines = {
            other: F.cosine_similarity(feature(name), feature(other), dim=0).item() for other in names if other != name
        }
        nearest = sorted(cosines, key=cosines.get, reverse=True)[:3]
        assert recalled.found[row].all()
        assert recalled.similarity[row].tolist() == pytest.approx([cosines[other] for other in nearest], abs=1e-6)
        for place, other in enumerate(nearest):
            torch.testing.assert_close(recalled.features[row, place], F.normalize(feature(other), dim=-1))
            assert recalled.outcomes[row, place, :2, :2].tolist() == outcome(other).tolist()
            assert recalled.outcomes[row, place, :, 2].tolist() == [-1, -1]
            assert recalled.color_maps[row, place, 0].argmax() == outcome(other)[0, 0]


def test_a_query_never_recalls_itself():
    memory = build_memory()
    add(memory, ["a"])
    alone = recall(memory, ["a"], k=1)
    assert not alone.found.any()
    assert not alone.similarity.any()
    add(memory, ["b"])
    both = recall(memory, ["a", "b"], k=2)
    assert both.found.tolist() == [[True, False], [True, False]]
    assert both.outcomes[0, 0, :2, :2].tolist() == outcome("b").tolist()
    assert both.outcomes[1, 0, :2, :2].tolist() == outcome("a").tolist()


def test_an_empty_memory_finds_nothing():
    recalled = recall(build_memory(), ["a", "b"], k=3)
    assert not recalled.found.any()
    assert not recalled.similarity.any()
    assert recalled.outcomes.shape == (2, 3, SIDE, SIDE)


def test_a_canvas_beyond_the_largest_side_is_cut():
    memory = build_memory()
    add(memory, ["a"])
    assert recall(memory, ["b"], k=1, height=9, width=2).outcomes.shape == (1, 1, SIDE, 2)


def test_a_checkpoint_holds_the_slots_in_use_and_no_pickled_object(tmp_path):
    memory = build_memory(capacity=1000)
    assert all(len(value) == 0 for value in memory.state_dict().values())
    add(memory, ["a", "b", "c"], exact=[True, False, True], step=4)
    state = memory.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "features": (3, FEATURE_DIM),
        "outcomes": (3, SIDE, SIDE),
        "color_maps": (3, 10, 10),
        "keys": (3,),
        "exact": (3,),
        "age": (3,),
    }
    assert state["outcomes"].dtype == torch.int8
    path = tmp_path / "memory.safetensors"  # a format that knows tensors only
    save_file({name: value.contiguous() for name, value in state.items()}, path)

    loaded = build_memory(capacity=3)
    loaded.load_state_dict(load_file(path))
    assert len(loaded) == 3
    assert held(loaded, "abc") == {"a", "b", "c"}
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in state.items())
    first, second = recall(memory, ["b", "x"]), recall(loaded, ["b", "x"])
    assert torch.equal(first.similarity, second.similarity)
    assert torch.equal(first.outcomes, second.outcomes)

    # It continues as the one that was saved: "b" is the one that was not solved.
    add(loaded, ["d"], step=5)
    assert held(loaded, "abcd") == {"a", "c", "d"}


def test_loading_replaces_what_was_held():
    memory, other = build_memory(), build_memory()
    add(memory, ["a", "b", "c"])
    add(other, ["d"])
    memory.load_state_dict(other.state_dict())
    assert len(memory) == 1
    assert held(memory, "abcd") == {"d"}
    assert recall(memory, ["a"], k=2).found.tolist() == [[True, False]]
    add(memory, ["a"], step=1)
    assert held(memory, "abcd") == {"a", "d"}


def test_a_memory_that_is_too_large_is_refused():
    large, small = build_memory(capacity=4), build_memory(capacity=2)
    add(large, ["a", "b", "c"])
    add(small, ["d"])
    with pytest.raises(RuntimeError, match=r"keys holds 3 solved problems, over solver\.capacity = 2"):
        small.load_state_dict(large.state_dict())
    assert held(small, "abcd") == {"d"}


def test_missing_and_unknown_tensors_are_named():
    memory = build_memory()
    state = build_memory().state_dict()
    del state["age"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "age"'):
        memory.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "color"'):
        memory.load_state_dict(build_memory().state_dict() | {"color": torch.zeros(1)})


SOLVER_DIM = 8
IDS = ("a:train:0", "b:train:0", "unknown:train:0")


def build_solver(shaken=None, **options):
    torch.manual_seed(0)
    solver = PermanentSolver(**{"capacity": 16, "feature_dim": SOLVER_DIM, "top_k": 3} | options)
    return solver if shaken is None else shaken(solver)


def features(queries: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(queries, SOLVER_DIM, generator=torch.Generator().manual_seed(seed))


def fill(solver: PermanentSolver, count: int = 5, *, side: int = 4) -> None:
    """Solved problems m0, m1, ... with random features, queries and outcomes."""
    generator = torch.Generator().manual_seed(3)
    solver.memory.add(
        ids=[f"m{index}" for index in range(count)],
        features=features(count, seed=7),
        queries=torch.randint(0, 10, (count, side, side), generator=generator),
        outcomes=torch.randint(0, 10, (count, side, side), generator=generator),
        exact=torch.arange(count) % 2 == 0,
        step=1,
    )


def trust_null(solver: PermanentSolver, weight: float) -> None:
    """Take all attention to the null entry, or none of it."""
    with torch.no_grad():
        solver.to_key.weight.zero_()
        solver.to_key.bias.zero_()
        solver.sharpness.fill_(weight)


def test_candidates_are_log_probabilities(shaken, mixed):
    solver = build_solver(shaken)
    for count in (0, 1, 5):
        fill(solver, count)
        proposal = solver(features(), mixed, IDS)
        assert proposal.candidate.shape == (3, 7, 8, 10)
        assert proposal.confidence_logit.shape == (3,)
        torch.testing.assert_close(proposal.candidate.exp().sum(-1), torch.ones(3, 7, 8))


def test_an_empty_memory_proposes_the_query(shaken, mixed):
    proposal = build_solver(shaken)(features(), mixed, IDS)
    inside = mixed.query >= 0
    assert torch.equal(proposal.candidate.argmax(-1)[inside], mixed.query[inside])
    assert proposal.candidate.amax(-1)[inside].exp().min() > 0.998
    torch.testing.assert_close(proposal.candidate[~inside].exp(), torch.full((int((~inside).sum()), 10), 0.1))


def test_an_empty_memory_still_teaches_whom_to_trust(mixed):
    solver = build_solver()
    agent = torch.randn(3, 7, 8, 10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weighed = solver(features(), mixed, IDS).weigh(agent)
    weighed[mixed.query >= 0].gather(-1, mixed.query[mixed.query >= 0][:, None]).sum().backward()
    for name, parameter in solver.confidence.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert agent.grad.abs().sum() > 0


def test_every_parameter_learns_from_a_filled_memory(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver)
    proposal = solver(features(), mixed, IDS)
    (proposal.candidate[mixed.query >= 0].cos().sum() + proposal.confidence_logit.sum()).backward()
    for name, parameter in solver.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_an_untrained_solver_is_hardly_trusted(mixed):
    solver = build_solver()
    assert 0.02 < solver(features(), mixed, IDS).confidence_logit.sigmoid().mean() < 0.1


def test_the_candidate_by_a_slow_loop(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver)
    proposal = solver(features(), mixed, IDS)
    own, memory = torch.nn.functional.normalize(features(), dim=-1), solver.memory
    for row in range(3):
        cosines = torch.cosine_similarity(own[row][None], memory.features[:5])
        slots = cosines.argsort(descending=True)[:3].tolist()
        query = solver.to_query(own[row])
        matches = [
            query @ solver.to_key(memory.features[slot]) / 8 + solver.sharpness * cosines[slot] for slot in slots
        ]
        matches.append(query @ solver.null_key / 8)
        attention = torch.stack(matches).softmax(-1)
        as_is, by_map = solver.suggestion(own[row]).softmax(-1)
        for r in range(7):
            for c in range(8):
                votes = torch.full((10,), 1e-4)
                color = int(mixed.query[row, r, c])
                for weight, slot in zip(attention, slots, strict=False):
                    if r < 4 and c < 4:
                        votes[memory.outcomes[slot, r, c].long()] += weight * as_is
                    if color >= 0:
                        votes += weight * by_map * memory.color_maps[slot, color]
                if color >= 0:
                    votes[color] += attention[-1]
                torch.testing.assert_close(
                    proposal.candidate[row, r, c].exp(), votes / votes.sum(), rtol=1e-4, atol=1e-6
                )
        evidence = torch.cat([own[row], cosines[slots], attention[-1:]])
        torch.testing.assert_close(proposal.confidence_logit[row], solver.confidence(evidence)[0], rtol=1e-4, atol=1e-5)


def test_a_like_problem_s_outcome_is_proposed(mixed):
    solver = build_solver(top_k=1)
    fill(solver)
    trust_null(solver, 50.0)
    with torch.no_grad():
        solver.suggestion.weight.zero_()
        solver.suggestion.bias.copy_(torch.tensor([20.0, -20.0]))
    proposal = solver(solver.memory.features[2:3].expand(3, -1), mixed, IDS)
    for row in range(3):
        assert torch.equal(proposal.candidate[row, :4, :4].argmax(-1), solver.memory.outcomes[2, :4, :4].long())


def test_a_like_problem_s_colour_map_is_applied_to_the_query(mixed):
    solver = build_solver(top_k=1)
    recolor = torch.tensor([0, 5, 1, 2, 9, 4, 3, 8, 7, 6])
    colors = torch.arange(10).reshape(1, 2, 5)
    solver.memory.add(
        ids=["m"], features=features(1), queries=colors, outcomes=recolor[colors], exact=torch.tensor([True]), step=0
    )
    trust_null(solver, 50.0)
    with torch.no_grad():
        solver.suggestion.weight.zero_()
        solver.suggestion.bias.copy_(torch.tensor([-20.0, 20.0]))
    proposal = solver(features(1).expand(3, -1), mixed, IDS)
    inside = mixed.query >= 0
    assert torch.equal(proposal.candidate.argmax(-1)[inside], recolor[mixed.query[inside]])


def test_what_a_query_left_itself_changes_no_bit_of_its_proposal(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver, 2)
    first = solver(features(), mixed, IDS)
    for outcome in (3, 8):
        knowing = copy.deepcopy(solver)
        knowing.memory.add(
            ids=IDS[:1],
            features=features()[:1],
            queries=mixed.query[:1],
            outcomes=torch.full((1, 7, 8), outcome),
            exact=torch.tensor([True]),
            step=2,
        )
        second = knowing(features(), mixed, IDS)
        assert torch.equal(second.candidate[0], first.candidate[0])
        assert torch.equal(second.confidence_logit[0], first.confidence_logit[0])
        assert not torch.equal(second.candidate[1:], first.candidate[1:])


def test_the_length_of_the_features_does_not_matter(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver)
    first, second = solver(features(), mixed, IDS), solver(16.0 * features(), mixed, IDS)
    torch.testing.assert_close(second.candidate, first.candidate)
    torch.testing.assert_close(second.confidence_logit, first.confidence_logit)


def test_batch_and_padding_change_nothing(shaken, mixed, mixed_queries, collate, enlarged):
    solver = build_solver(shaken)
    fill(solver)
    expected = solver(features(), mixed, IDS)
    large = solver(features(), enlarged(mixed, margin=2, pairs=1), IDS)
    torch.testing.assert_close(large.candidate[:, :7, :8], expected.candidate, rtol=1e-5, atol=1e-5)
    for row, query in enumerate(mixed_queries):
        inputs = collate(query).inputs
        _, height, width = inputs.query.shape
        alone = solver(features()[row : row + 1], inputs, IDS[row : row + 1])
        torch.testing.assert_close(alone.candidate[0], expected.candidate[row, :height, :width], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.confidence_logit[0], expected.confidence_logit[row], rtol=1e-5, atol=1e-5)


def test_weighing_by_hand():
    agent = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]).reshape(2, 1, 1, 3)
    candidate = torch.tensor([[0.1, 0.1, 0.8], [0.1, 0.1, 0.8]]).reshape(2, 1, 1, 3)
    confidence = torch.tensor([0.25, 0.9])
    proposal = Proposal(candidate=candidate.log(), confidence_logit=confidence.logit())
    weighed = proposal.weigh(agent.log() + 5.0)  # unnormalised logits of the same probabilities
    expected = torch.tensor([[0.55, 0.175, 0.275], [0.16, 0.11, 0.73]]).reshape(2, 1, 1, 3)
    torch.testing.assert_close(weighed.exp(), expected)


@pytest.mark.parametrize(("logit", "trusted"), [(200.0, "candidate"), (-200.0, "agent")])
def test_weighing_is_finite_where_the_confidence_is_certain(logit, trusted):
    sides = {
        "agent": torch.tensor([0.7, 0.3]).log().reshape(1, 1, 1, 2),
        "candidate": torch.tensor([0.4, 0.6]).log().reshape(1, 1, 1, 2),
    }
    confidence = torch.tensor([logit]).requires_grad_()
    weighed = Proposal(candidate=sides["candidate"], confidence_logit=confidence).weigh(sides["agent"])
    torch.testing.assert_close(weighed, sides[trusted])
    weighed.sum().backward()
    assert confidence.grad.isfinite().all()


def test_float32_inside_autocast(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver)
    agent = torch.randn(3, 7, 8, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = solver(features(), mixed, IDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        proposal = solver(features(), mixed, IDS)
        weighed = proposal.weigh(agent)
    assert torch.equal(proposal.candidate, expected.candidate)
    assert torch.equal(proposal.confidence_logit, expected.confidence_logit)
    assert weighed.dtype == torch.float32
    torch.testing.assert_close(weighed.exp().sum(-1), torch.ones(3, 7, 8))


def test_statistics_of_an_empty_memory():
    assert build_solver().statistics() == {"problems": 0.0, "exact": 0.0, "clusters": 0.0}


def test_statistics_count_clusters_of_like_problems():
    solver = build_solver()
    # Two bundles of directions and one on its own, which is no cluster.
    east, north, west = torch.eye(SOLVER_DIM)[0], torch.eye(SOLVER_DIM)[1], -torch.eye(SOLVER_DIM)[0]
    nudge = 0.05 * torch.eye(SOLVER_DIM)[2]
    directions = torch.stack([east, east + nudge, 3.0 * east, north, north - nudge, west])
    grid = torch.zeros(6, 1, 1, dtype=torch.long)
    solver.memory.add(
        ids=list("uvwxyz"),
        features=directions,
        queries=grid,
        outcomes=grid,
        exact=torch.tensor([True, True, True, False, False, False]),
        step=0,
    )
    assert solver.statistics() == {"problems": 6.0, "exact": 0.5, "clusters": 2.0}


def test_a_state_dict_takes_parameters_and_memory_along(shaken, mixed):
    solver = build_solver(shaken)
    fill(solver)
    other = build_solver()
    other.load_state_dict(solver.state_dict())
    first, second = (each(features(), mixed, IDS) for each in (solver, other))
    assert torch.equal(first.candidate, second.candidate)
    assert torch.equal(first.confidence_logit, second.confidence_logit)


# Solved queries on their way from one process to the memories of all.
PROMPT_DIM, CANVAS, BATCH = 8, 6, 7
BATCH_IDS = tuple(f"task{index}:train:0" for index in range(BATCH))


def make_small_solver(capacity=16):
    return PermanentSolver(capacity=capacity, feature_dim=PROMPT_DIM, top_k=2, max_grid_size=CANVAS)


def grids(height, width, seed):
    """Grids of all colours, the last row outside."""
    grid = torch.randint(0, 10, (BATCH, height, width), generator=torch.Generator().manual_seed(seed))
    grid[:, -1] = OUTSIDE
    return grid


PROMPTS = torch.randn(BATCH, PROMPT_DIM, generator=torch.Generator().manual_seed(0))
ASKED, OUTCOMES = grids(4, 5, seed=1), grids(4, 5, seed=2)
EXACT = torch.tensor([True, False, True, False, False, True, False])


def share(positions, admitted):
    rows = torch.tensor(positions)
    return SolvedQueries(
        admitted=torch.tensor([place in admitted for place in positions]),
        positions=tuple(positions),
        features=PROMPTS[rows],
        queries=ASKED[rows],
        outcomes=OUTCOMES[rows],
        exact=EXACT[rows],
    )


def memory_of(shares, admitted, solver=None, step=3):
    solver = solver or make_small_solver()
    packed = torch.cat([share(positions, admitted).packed(CANVAS) for positions in shares])
    if len(packed):
        solver.remember_packed(packed, BATCH_IDS, step)
    return solver


def memory_state(solver):
    return {name: value.clone() for name, value in solver.memory.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_processes_remember_what_one_would_of_the_whole_batch():
    admitted = [0, 2, 3, 6]
    ours = memory_of([(1, 3, 5), (0, 2, 4, 6)], admitted)
    expected = make_small_solver()
    expected.memory.add(
        ids=[BATCH_IDS[place] for place in admitted],
        features=PROMPTS[admitted],
        queries=ASKED[admitted],
        outcomes=OUTCOMES[admitted],
        exact=EXACT[admitted],
        step=3,
    )
    assert_same(memory_state(ours), memory_state(expected))
    assert len(ours.memory) == 4
    assert ours.memory.exact[:4].tolist() == [True, True, False, False]
    assert (ours.memory.age[:4] == 3).all()


@settings(max_examples=30, deadline=None)
@given(
    st.permutations(range(BATCH)),
    st.lists(st.integers(1, BATCH - 1), max_size=3, unique=True).map(sorted),
    st.sets(st.integers(0, BATCH - 1)),
)
def test_however_a_batch_is_partitioned_its_memory_is_the_same(order, cuts, admitted):
    ends = [0, *cuts, BATCH]
    shares = [sorted(order[start:end]) for start, end in pairwise(ends)]
    # A memory of four has to push out some.
    ours = memory_of(shares, admitted, make_small_solver(capacity=4))
    assert_same(memory_state(ours), memory_state(memory_of([range(BATCH)], admitted, make_small_solver(capacity=4))))


@pytest.mark.parametrize("admitted", [[], [1]])
def test_what_is_not_admitted_leaves_no_trace(admitted):
    solver = memory_of([(0, 1, 2)], admitted)
    assert len(solver.memory) == len(admitted)


def test_a_row_of_bytes_holds_everything():
    packed = share((2, 5, 6), [2, 6]).packed(CANVAS)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 8 + 4 * PROMPT_DIM + 2 * CANVAS * CANVAS + 1)
    place, features, query, _, exact = packed.split([8, 4 * PROMPT_DIM, CANVAS * CANVAS, CANVAS * CANVAS, 1], dim=1)
    assert place.contiguous().view(torch.int64).flatten().tolist() == [2, 6]
    assert torch.equal(features.contiguous().view(torch.float32), PROMPTS[[2, 6]])
    assert torch.equal(query.contiguous().view(torch.int8).view(2, CANVAS, CANVAS)[:, :4, :5].long(), ASKED[[2, 6]])
    assert (query.contiguous().view(torch.int8).view(2, CANVAS, CANVAS)[:, 4:] == OUTSIDE).all()
    assert exact.tolist() == [[1], [0]]


def test_shares_may_have_different_canvases():
    wide, low = share((0, 1), [0, 1]), share((2,), [2])
    low = SolvedQueries(
        admitted=low.admitted,
        positions=low.positions,
        features=low.features,
        queries=low.queries[:, :3, :2],
        outcomes=low.outcomes[:, :3, :2],
        exact=low.exact,
    )
    solver = make_small_solver()
    solver.remember_packed(torch.cat([low.packed(CANVAS), wide.packed(CANVAS)]), BATCH_IDS, 0)
    assert solver.memory.outcomes[2, :3, :2].tolist() == OUTCOMES[2, :3, :2].tolist()
    assert (solver.memory.outcomes[2, 3:] == OUTSIDE).all()
    assert (solver.memory.outcomes[2, :, 2:] == OUTSIDE).all()
    assert solver.memory.outcomes[1, :4, :5].tolist() == OUTCOMES[1].tolist()
