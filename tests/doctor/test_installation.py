import sys
from importlib import metadata

import pytest
import torch

from arcdist import __version__
from arcdist.doctor import installation
from arcdist.doctor.finding import Verdict
from arcdist.doctor.installation import check_installation


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions, or none."""

    def pretend(**others):
        real = metadata.version

        def version(name):
            if name in others and others[name] is None:
                raise metadata.PackageNotFoundError(name)
            return others.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def failed(findings):
    return {check: finding for check, finding in findings.items() if finding.verdict is Verdict.FAIL}


def test_what_these_tests_run_with_is_in_order():
    findings = check_installation()
    assert list(findings) == ["Python", "PyTorch", "accelerate", "transformers", "peft", "datasets", "arcdist"]
    assert {finding.verdict for finding in findings.values()} == {Verdict.OK}
    assert findings["Python"].found == f"{sys.version.split()[0]} ({sys.executable})"
    assert findings["PyTorch"].found.startswith(f"{torch.__version__}, built ")
    assert ("without CUDA" in findings["PyTorch"].found) == (torch.version.cuda is None)
    assert findings["peft"].found == metadata.version("peft")
    assert findings["arcdist"].found.startswith(f"{__version__} in ")
    # A difference between machines is worth a word.
    assert {finding.differing for finding in findings.values()} == {Verdict.WARN}


def test_what_is_missing_or_too_old_is_told_with_the_command(versions):
    versions(peft=None, accelerate="1.2.0", jsonargparse="4.1")
    findings = failed(check_installation())
    assert {check: (finding.found, finding.advice) for check, finding in findings.items()} == {
        "peft": ("not installed", "Install it with `pip install 'peft>=0.19'`."),
        "accelerate": ("1.2.0, but arcdist needs >=1.13", "Install it with `pip install 'accelerate>=1.13'`."),
        "jsonargparse": ("4.1, but arcdist needs >=4.40", "Install it with `pip install 'jsonargparse>=4.40'`."),
    }


def test_what_cannot_be_imported_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    findings = failed(check_installation())
    assert list(findings) == ["peft"]
    assert "which cannot be imported: ModuleNotFoundError" in findings["peft"].found
    assert f"'peft=={metadata.version('peft')}'" in findings["peft"].advice


def test_without_pytorch_nothing_else_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    findings = check_installation()
    assert list(failed(findings)) == ["PyTorch"]
    assert "https://pytorch.org" in findings["PyTorch"].advice
    assert findings["peft"].found == metadata.version("peft")


def test_a_checkout_that_was_never_installed_has_no_bounds(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    findings = check_installation()
    assert failed(findings) == {}
    assert "arcdist" in findings


def test_the_driver_is_told(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("570.86.15\n")
    monkeypatch.setattr(installation, "_DRIVER", driver)
    assert check_installation()["PyTorch"].found.endswith("; NVIDIA driver 570.86.15")
