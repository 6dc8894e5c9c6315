import json

import pytest

from arcdist.distributed.agreement import check_agreement
from arcdist.errors import ConfigError


def test_one_process_agrees_with_itself():
    check_agreement({"train.seed": "0"})


def first_says(monkeypatch, facts):
    monkeypatch.setattr("arcdist.distributed.agreement.hear_from_first", lambda text: json.dumps(facts))


def test_what_differs_is_named_with_both_values(monkeypatch):
    first_says(monkeypatch, {"train.seed": "0", "train.epochs": "3"})
    check_agreement({"train.epochs": "3", "train.seed": "0"})
    with pytest.raises(ConfigError, match=r"This process, on .*: train\.seed is 1, there 0\. Start every") as raised:
        check_agreement({"train.seed": "1", "train.epochs": "3"})
    assert raised.value.exit_code == 2


def test_a_few_of_many_differences_are_named(monkeypatch):
    first_says(monkeypatch, dict.fromkeys("abcde", "0"))
    with pytest.raises(ConfigError, match=r"rank 0 trains: a is 1, .*; b is 1, .*; c is 1, .*; and 2 more\."):
        check_agreement(dict.fromkeys("abcde", "1"))


def test_a_fact_that_one_of_them_lacks_differs(monkeypatch):
    first_says(monkeypatch, {"train.seed": "0"})
    with pytest.raises(ConfigError, match=r"train\.warmth is 1, there None"):
        check_agreement({"train.seed": "0", "train.warmth": "1"})
