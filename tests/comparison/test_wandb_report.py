"""The W&B report as it would go over the network."""

import json
import sys
from types import SimpleNamespace

import pytest
from shared.made_records import answers, made_record

from arcdist.comparison import compare, wandb_report
from arcdist.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*Pydantic V1 style.*:DeprecationWarning")


@pytest.fixture
def server(monkeypatch, capsys):
    """W&B's server, as far as the library asks it; it keeps the view that it is sent."""
    pytest.importorskip("wandb_workspaces")
    from wandb_workspaces.reports.v2 import interface

    sent = {}

    def execute(api, query, variables):
        if "upsertView" in query:
            sent.update(variables)
            project = {"name": variables["projectName"], "entityName": variables["entityName"]}
            view = {"id": "Vm1", "name": "v", "displayName": variables["displayName"], "project": project}
            return {"upsertView": {"view": {**view, "description": "", "spec": variables["spec"]}}}
        return {"project": {"internalId": f"id of {variables['projectName']}"}}

    api = SimpleNamespace(
        projects=lambda entity: [SimpleNamespace(name="arcdist")], client=SimpleNamespace(app_url="https://wandb.test")
    )
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "_get_api", lambda: api)
    return sent


def compared():
    return compare(
        [
            made_record("team/arcdist/aaaa", exact=[answers("11")]),
            made_record("team/other/bbbb", exact=[answers("10")]),
        ]
    )


def test_the_report_holds_verdict_runs_and_panels(server):
    address = wandb_report.write(compared())
    assert address == "https://wandb.test/team/arcdist/reports/2-runs-compared--Vm1"
    assert (server["entityName"], server["projectName"]) == ("team", "arcdist")
    blocks = json.loads(server["spec"])["blocks"]
    text = json.dumps(blocks)
    assert compared().verdict[0] in text
    grid = next(block for block in blocks if block["type"] == "panel-grid")["metadata"]
    assert [run_set["project"]["name"] for run_set in grid["runSets"]] == ["arcdist", "other"]
    for run_set, run_id in zip(grid["runSets"], ("aaaa", "bbbb"), strict=True):
        assert run_id in json.dumps(run_set["filters"])
    panels = grid["panelBankSectionConfig"]["panels"]
    assert [panel["viewType"] for panel in panels] == ["Run History Line Plot"] * 5 + ["Bar Chart", "Run Comparer"]
    assert [panel["config"]["metrics"] for panel in panels[:5]] == [
        ["loss"], ["val/exact"], ["reward/mean"], ["grad_norm/qwen"], ["pairs_per_s"]
    ]  # fmt: skip


def test_a_server_that_does_not_answer_is_told(server, monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(interface, "execute_graphql", unreachable)
    with pytest.raises(DataError, match=r"The W&B report cannot be written \(no route\): see `wandb login`"):
        wandb_report.write(compared())


def test_runs_that_are_not_on_the_server_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    wandb_report.check(["team/arcdist/aaaa", "team/arcdist/bbbb"])
    with pytest.raises(ConfigError, match=r"not so run, run/x: send offline runs there with `wandb sync`"):
        wandb_report.check(["team/arcdist/aaaa", "run", "run/x"])


def test_without_the_library_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match="pip install wandb-workspaces"):
        wandb_report.check(["team/arcdist/aaaa"])
