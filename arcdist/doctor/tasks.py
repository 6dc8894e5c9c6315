"""Whether the tasks can be read, and scored."""

from arcdist.config import DataConfig
from arcdist.data import Origin, check_leaks, read_tasks
from arcdist.doctor.finding import Finding, Verdict, failure
from arcdist.errors import DataError


def check_tasks(data: DataConfig) -> Finding:
    """Read what a run would train on and score.

    Raises:
        DataError: a source cannot be read, or what is scored is trained on.
    """
    origin = Origin(data.source, data.split)
    tasks = read_tasks(*origin, data.max_side, data.max_tasks)
    scored_origin, scored = origin, tasks
    if data.validation_source is not None:
        scored_origin = Origin(data.validation_source, data.validation_split)
        scored = read_tasks(*scored_origin, data.max_side, data.max_tasks)
    check_leaks(tasks, scored, origin, scored_origin, data.allow_overlap)
    outputs = sum(pair.output is not None for task in scored for pair in task.tests)
    found = f"{origin}: {len(tasks):,} tasks; {scored_origin}: {outputs:,} test pairs to score"
    if not outputs:
        return failure(
            found, "Give test pairs their outputs, or score others: --data.validation_source.", DataError.exit_code
        )
    return Finding(found=found, differing=Verdict.FAIL)
