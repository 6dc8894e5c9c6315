import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from arcdist.config import QwenConfig
from arcdist.doctor.finding import Verdict, attempt
from arcdist.doctor.weights import check_weights
from arcdist.models.embedded import TINY, embedded_config

HUB = "Qwen/Qwen2.5-1.5B"
GIB = 2**30


@pytest.fixture(scope="session")
def download(tmp_path_factory):
    """A whole small model with a byte-level tokenizer, as Qwen's, its weights in several files."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    Qwen2ForCausalLM(embedded_config(TINY)).save_pretrained(folder, max_shard_size="20KB")
    pieces = [*"0123456789", "Ċ", "I", "O", "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


@pytest.fixture
def model(download, tmp_path):
    return shutil.copytree(download, tmp_path / "model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, and a Hub that has so many bytes of weights, or gives an error."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def has(answer):
        def model_info(_api, model, *, files_metadata, timeout):
            assert files_metadata
            assert timeout <= 10
            if isinstance(answer, Exception):
                raise answer
            files = {"model.safetensors": answer, "config.json": 7, "pytorch_model.bin": 10**9}
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

        monkeypatch.setattr(HfApi, "model_info", model_info)

    has(ConnectionError("no network\nat all"))
    return has


def check(model, init="pretrained"):
    return check_weights(QwenConfig(model=str(model), init=init))


@pytest.mark.parametrize(("model", "init"), [(TINY, "pretrained"), (TINY, "random"), (HUB, "random")])
def test_what_the_package_builds_needs_nothing(model, init):
    finding = check(model, init)
    assert (finding.found, finding.verdict) == (f"{model} is built with random weights", Verdict.OK)


def test_a_whole_folder_is_in_order(model):
    assert len(list(model.glob("*.safetensors"))) > 1
    finding = check(model)
    assert (finding.found, finding.verdict) == (f"0.00 GiB in {model}", Verdict.OK)


def test_random_weights_need_the_configuration_only(model):
    for file in (*model.glob("*.safetensors*"), *model.glob("tokenizer*")):
        file.unlink()
    assert check(model, "random").verdict is Verdict.OK
    (model / "config.json").unlink()
    finding = check(model, "random")
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)


def cut_short(folder):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-100])


def stood_in_for(folder):
    next(folder.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")


def one_lost(folder):
    next(folder.glob("*.safetensors")).unlink()


def all_lost(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()


@pytest.mark.parametrize("harm", [cut_short, stood_in_for, one_lost, all_lost])
def test_weights_that_are_not_whole_are_found(model, harm):
    harm(model)
    finding = check(model)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert str(model) in finding.found
    assert "Download them again." in finding.advice


@pytest.mark.parametrize("lost", ["config.json", "tokenizer*"])
def test_a_folder_that_is_no_models_is_a_mistake(model, lost):
    for file in model.glob(lost):
        file.unlink()
    finding = attempt(lambda: check(model))
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)


def test_what_neither_the_package_nor_a_folder_has_is_a_mistake(tmp_path):
    for model, init in (("embedded:huge", "pretrained"), ("somebody/model", "random"), (tmp_path / "no", "pretrained")):
        finding = check(model, init)
        assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 2)
        assert TINY in finding.advice


def test_a_hub_out_of_reach_fails_with_the_ways_out(hub):
    finding = check(HUB)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert "ConnectionError: no network)" in finding.found
    for way in (f"hf download {HUB}", "--qwen.model PATH", TINY, "--qwen.init random"):
        assert way in finding.advice


def test_a_download_to_come_is_told_with_its_size(hub):
    hub(3 * GIB)
    finding = check(HUB)
    assert finding.verdict is Verdict.WARN
    assert "a run downloads 3.0 GiB first" in finding.found
    assert f"`hf download {HUB}`" in finding.advice


def test_a_download_needs_room(hub, monkeypatch):
    hub(3 * GIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=2 * GIB))
    finding = check(HUB)
    assert (finding.verdict, finding.exit_code) == (Verdict.FAIL, 3)
    assert finding.found.endswith("has 2.0 GiB free")


@pytest.mark.usefixtures("hub")
def test_the_cache_is_enough_while_it_is_whole(download, tmp_path):
    repository = tmp_path / "hub" / "models--Qwen--Qwen2.5-1.5B"
    snapshot = repository / "snapshots" / "0123abcd"
    shutil.copytree(download, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    finding = check(HUB)
    assert (finding.found, finding.verdict) == (f"0.00 GiB in {snapshot}", Verdict.OK)

    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    (snapshot / next(iter(index["weight_map"].values()))).unlink()
    assert check(HUB).verdict is Verdict.FAIL
