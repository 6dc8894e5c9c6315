"""All checks in their order, on every process."""

import hashlib
import socket
from collections.abc import Mapping, Sequence

from arcdist.config import Config
from arcdist.distributed import local_rank, world_size
from arcdist.distributed.exchange import part
from arcdist.distributed.texts import TextExchange
from arcdist.doctor.all_reduce import check_all_reduce
from arcdist.doctor.device import check_device
from arcdist.doctor.finding import Finding, Verdict, attempt, failure, from_text, to_text, warning
from arcdist.doctor.fit import judge_fit, try_longest_batch
from arcdist.doctor.launch import check_deepspeed, check_launch, check_platform
from arcdist.doctor.report import Row, conclude, merge, name_ranks
from arcdist.doctor.resources import check_cache, check_cores, check_memory, check_output
from arcdist.doctor.tasks import check_tasks
from arcdist.doctor.weights import check_weights
from arcdist.engine.platform import Platform, start_platform

_NEEDED_TO_START = ("launch", "DeepSpeed", "device")
_FIT = "longest batch"


def run_checks(config: Config, installation: Mapping[str, Finding], *, fit: bool) -> None:
    """See `examine`; `installation` is what this process has found already.

    Processes begin to exchange numbers only once all are known to be able to, so that none waits in vain for another.
    What they have found they tell each other in another way, which works where that does not.
    """
    texts = TextExchange(float(config.distributed.timeout))
    hosts = {number: host or "" for number, host in enumerate(texts.gather("host", socket.gethostname()))}
    findings = {**installation, **_alone(config)}
    told: dict[int, str] = {}
    rows = _rows(texts.gather("alone", to_text(findings)), told, hosts)
    platform: Platform | Finding | None = None
    if not any(row.finding.verdict is Verdict.FAIL and row.check in (*_NEEDED_TO_START, "processes") for row in rows):
        platform = attempt(lambda: start_platform(config))
        findings |= _together(config, platform)
        rows = _rows(texts.gather("together", to_text(findings)), told, hosts)
    fails = any(row.finding.verdict is Verdict.FAIL for row in rows)
    if fit and fails:
        rows.append(Row(check=_FIT, who="", finding=warning("not tried", "Mend first what has failed.")))
    conclude(rows)
    if fit and isinstance(platform, Platform):
        measured = try_longest_batch(config, platform)
        conclude([Row(check=_FIT, who="", finding=judge_fit(texts.gather("fit", measured.to_text())))])
    part()


def _alone(config: Config) -> dict[str, Finding]:
    """What a process finds by itself."""
    findings = {
        "configuration": _configuration(config),
        "launch": attempt(lambda: check_launch(config)),
        "DeepSpeed": attempt(check_deepspeed),
        "device": attempt(lambda: check_device(config)),
        "cores": attempt(lambda: check_cores(config.train), broken=Verdict.WARN),
    }
    if local_rank() == 0:
        # Of the machine, and never twice the same.
        findings["memory"] = attempt(check_memory, broken=Verdict.WARN)
    findings["output"] = attempt(lambda: check_output(config.output), broken=Verdict.WARN)
    findings["cache"] = attempt(check_cache, broken=Verdict.WARN)
    findings["weights"] = attempt(lambda: check_weights(config.qwen))
    findings["tasks"] = attempt(lambda: check_tasks(config.data))
    return findings


def _configuration(config: Config) -> Finding:
    digest = hashlib.blake2b(repr(config).encode(), digest_size=4).hexdigest()
    return Finding(
        found=f"batches of {config.train.batch_size}, accumulation {config.train.accumulation}; fingerprint {digest}",
        differing=Verdict.WARN,
    )


def _together(config: Config, platform: Platform | Finding) -> dict[str, Finding]:
    """What processes find together."""
    if isinstance(platform, Finding):
        return {"start": platform}
    device = platform.accelerator.device
    return {
        "start": attempt(lambda: check_platform(platform, config)),
        "all-reduce": attempt(lambda: check_all_reduce(device, float(config.distributed.timeout))),
    }


def _rows(texts: Sequence[str | None], told: dict[int, str], hosts: Mapping[int, str]) -> list[Row]:
    """What all processes have found; `told` keeps what each has told last, for when it tells no more."""
    told |= {number: text for number, text in enumerate(texts) if text is not None}
    rows = merge({number: from_text(told[number]) for number in sorted(told)}, hosts)
    silent = [number for number, text in enumerate(texts) if text is None]
    if silent:
        found = f"{name_ranks(silent)} of {world_size()} did not answer in time"
        rows.append(Row(check="processes", who="", finding=failure(found, "What they printed themselves may say why.")))
    return rows
