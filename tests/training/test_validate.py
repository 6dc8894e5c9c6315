import pytest
from shared.loops import read_metrics

from arcdist.evaluation import Answerer, score
from arcdist.tracking.validation import read_validations


def test_an_epoch_s_scores_are_those_of_the_models_it_ends_with(make_loop, tmp_path):
    loop = make_loop()
    loop.run()
    (record,) = read_metrics(tmp_path)["epochs"]
    models = loop.session.models
    answerer = Answerer(
        read=models.qwen,
        qwen=models.qwen,
        agent=models.averaged_agent.module,
        solver=models.solver,
        refiner=models.refiner,
    )
    batches = loop.session.validation.loader(0, loop.session.device)
    expected = score(answerer, ((batch.queries[0], True) for batch in batches))
    assert {name: record[name] for name in expected} == expected
    assert set(expected) == {
        *("val/exact", "val/cell", "val/size", "val/accuracy_delta", "floor/copy_exact", "floor/copy_cell"),
    }
    for name, value in expected.items():
        assert (-1.0 if name == "val/accuracy_delta" else 0.0) <= value <= 1.0


def test_a_validation_s_results_are_its_scores(undrawn, make_loop, tmp_path):
    make_loop("--data.max_tasks=9", "--data.max_side=8").run()
    (validation,), (record,) = read_validations(tmp_path), read_metrics(tmp_path)["epochs"]
    results = validation.results.values()
    for name in ("exact", "cell"):
        assert sum(getattr(result, name) for result in results) / len(results) == pytest.approx(record[f"val/{name}"])
    assert len(validation.shown) == min(16, len(results))
