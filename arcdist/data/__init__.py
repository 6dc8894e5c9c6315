"""From a source of tasks to batches of queries."""

from arcdist.data.augment import Augmentation, draw_augmentation
from arcdist.data.batch import OUTSIDE, QueryBatch, QueryInputs, QueryTargets, Share, fit_canvas, working_area
from arcdist.data.collate import Collator
from arcdist.data.features import FEATURE_NAMES
from arcdist.data.queries import Queries, Query, build_queries
from arcdist.data.sampler import BucketedBatches, Partitioner
from arcdist.data.sources import Origin, read_tasks
from arcdist.data.task_sets import LeakReport, TaskSet, TaskSets, read_asked, read_task_sets
from arcdist.data.tasks import MAX_SIDE, NUM_COLORS, Grid, Pair, Task, parse_task, tasks_digest
from arcdist.data.text import GridTokenizer, embedded_tokenizer

__all__ = [
    "FEATURE_NAMES",
    "MAX_SIDE",
    "NUM_COLORS",
    "OUTSIDE",
    "Augmentation",
    "BucketedBatches",
    "Collator",
    "Grid",
    "GridTokenizer",
    "LeakReport",
    "Origin",
    "Pair",
    "Partitioner",
    "Queries",
    "Query",
    "QueryBatch",
    "QueryInputs",
    "QueryTargets",
    "Share",
    "Task",
    "TaskSet",
    "TaskSets",
    "build_queries",
    "draw_augmentation",
    "embedded_tokenizer",
    "fit_canvas",
    "parse_task",
    "read_asked",
    "read_task_sets",
    "read_tasks",
    "tasks_digest",
    "working_area",
]
