"""Versions of what arcdist stands on, and whether it can be imported. Nothing here needs any of it."""

import importlib
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from arcdist import __version__
from arcdist.doctor.finding import Finding, Verdict, attempt, failure, headline

_LIBRARIES = ("accelerate", "transformers", "peft", "datasets")
_DRIVER = Path("/sys/module/nvidia/version")


def check_installation() -> dict[str, Finding]:
    """Look at Python, PyTorch, the libraries and arcdist itself."""
    wanted = _wanted_versions()
    findings = {
        "Python": Finding(found=f"{platform.python_version()} ({sys.executable})", differing=Verdict.WARN),
        "PyTorch": _library("torch", wanted.get("torch", ""), imported=True),
    }
    # Without PyTorch the others cannot be imported either.
    imported = findings["PyTorch"].verdict is not Verdict.FAIL
    findings |= {name: _library(name, wanted.get(name, ""), imported=imported) for name in _LIBRARIES}
    others = {name: _library(name, wanted[name], imported=False) for name in wanted.keys() - {"torch", *_LIBRARIES}}
    findings |= {name: finding for name, finding in sorted(others.items()) if finding.verdict is Verdict.FAIL}
    if all(finding.verdict is not Verdict.FAIL for finding in findings.values()):
        findings["arcdist"] = attempt(_arcdist)
    return findings


def installed_version(distribution: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _wanted_versions() -> dict[str, str]:
    """The versions that arcdist's metadata ask for; none where it runs from a checkout that was never installed."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in metadata.requires("arcdist") or ()]
    except (ImportError, metadata.PackageNotFoundError):
        return {}
    return {
        requirement.name: str(requirement.specifier)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def _library(name: str, wanted: str, *, imported: bool) -> Finding:
    version = installed_version(name)
    install = f"Install it with `pip install '{name}{wanted}'`."
    if version is None:
        return failure("not installed", install)
    if not _fits(version, wanted):
        return failure(f"{version}, but arcdist needs {wanted}", install)
    if not imported:
        return Finding(found=version, differing=Verdict.WARN)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a library that is half there may raise anything
        anew = f"with `pip install --force-reinstall '{name}=={version}'`"
        if name == "torch":
            anew = "for this machine, as https://pytorch.org/get-started/locally says"
        return failure(f"{version}, which cannot be imported: {headline(error)}", f"Install it anew {anew}.")
    return Finding(found=_torch_build(module) if name == "torch" else version, differing=Verdict.WARN)


def _fits(version: str, wanted: str) -> bool:
    if not wanted:
        return True
    from packaging.specifiers import SpecifierSet  # It is there, or nothing would be wanted.

    return SpecifierSet(wanted).contains(version, prereleases=True)


def _torch_build(torch: Any) -> str:
    built_for = "without CUDA"
    if torch.version.cuda:
        built_for = f"for CUDA {torch.version.cuda}"
    elif torch.version.hip:
        built_for = f"for ROCm {torch.version.hip}"
    driver = f"NVIDIA driver {_DRIVER.read_text().strip()}" if _DRIVER.is_file() else "no NVIDIA driver"
    return f"{torch.__version__}, built {built_for}; {driver}"


def _arcdist() -> Finding:
    try:
        # It stands on all the others that pyproject.toml names.
        training = importlib.import_module("arcdist.training")
    except ImportError as error:
        return failure(
            f"{__version__}, of which a part cannot be imported: {headline(error)}",
            "Install what is missing: `pip install arcdist`, or `pip install .` in a checkout.",
        )
    folder = Path(training.__file__ or "").resolve().parents[1]
    return Finding(found=f"{__version__} in {folder}", differing=Verdict.WARN)
