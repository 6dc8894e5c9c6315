"""One task answered: its queries, test-time training on its demonstrations, and the candidates of all parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from arcdist.config import LoadedConfig
from arcdist.data import Collator, Task, build_queries
from arcdist.data.queries import Kind, Queries
from arcdist.errors import DataError, NotFiniteError
from arcdist.evaluation.adapt import Adapting, adapted
from arcdist.evaluation.predict import Candidate, Proposing, propose
from arcdist.solving.trained import Trained

ONE_DEMONSTRATION, TOO_LONG = "one demonstration", "demonstrations that are too long for Qwen"
"""Why nothing can be learned from the demonstrations of a task: it has this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSolver:
    """Answers one task after another; what it answers depends on nothing but the task."""

    trained: Trained
    proposing: Proposing
    adapting: Adapting
    tests: Queries | None
    demonstrations: Queries | None
    collator: Collator
    too_long: Mapping[str, str]
    """Tasks with a test query that is too long for Qwen, and which it is: those are not answered."""
    asked: Mapping[str, Sequence[int]]
    """The test queries of tasks; those that are too long for Qwen are not."""
    held_out: Mapping[str, Sequence[int]]
    """The demonstrations of tasks that are held out in turn, as queries; those that are too long for Qwen are not."""

    @classmethod
    def of(cls, trained: Trained, loaded: LoadedConfig, tasks: Sequence[Task]) -> "TaskSolver":
        """Prepare the queries of some tasks."""
        solve, seed, augment = loaded.config.solve, loaded.config.train.seed, trained.config.data.augment
        tokenizer = trained.predictor.qwen.tokenizer
        # What the models are not given cannot change an answer.
        tasks = [task.without_answers() for task in tasks]

        def queries(kind: Kind, needed: bool) -> Queries | None:
            if not needed:
                return None
            built = build_queries(tasks, kind)
            return replace(built, max_pairs=loaded.config.data.max_context_pairs, max_tokens=tokenizer.max_tokens)

        def too_long(queries: Queries | None) -> dict[int, str]:
            return queries.too_long(tokenizer.max_tokens) if queries and tokenizer.max_tokens is not None else {}

        def fitting(queries: Queries | None, unfit: Mapping[int, str]) -> dict[str, list[int]]:
            found: dict[str, list[int]] = {}
            for query, task_id in enumerate(queries.tasks if queries is not None else ()):
                if query not in unfit:
                    found.setdefault(task_id, []).append(query)
            return found

        learns = solve.adapt_steps > 0 or solve.draws > 0
        tests = queries("test", any(task.tests for task in tasks))
        demonstrations = queries("train", learns and any(len(task.demonstrations) > 1 for task in tasks))
        unfit = too_long(tests)
        refused: dict[str, str] = {}
        if tests is not None:
            for query, problem in unfit.items():
                refused.setdefault(tests.tasks[query], f"{problem}: choose a run whose model has more.")
        return cls(
            trained=trained,
            proposing=Proposing(
                views=solve.views,
                draws=solve.draws,
                steps=solve.steps,
                consensus=True,
                memory=solve.memory,
                qwen=solve.qwen and trained.predictor.qwen.lm_head is not None,
                batch_size=solve.batch_size,
                seed=seed,
                tell_symmetry=augment.dihedral,
            ),
            adapting=Adapting(
                steps=solve.adapt_steps,
                lr=solve.adapt_lr,
                part=solve.adapt_part,
                batch_size=solve.batch_size,
                seed=seed,
                dihedral=augment.dihedral,
                colors=augment.colors,
                tell_symmetry=augment.dihedral,
            ),
            tests=tests,
            demonstrations=demonstrations,
            collator=Collator(
                tokenizer,
                task_rows={name: row for row, name in enumerate(trained.tasks)},
                max_grid_size=trained.longest_side,
                reads_views=trained.config.agent.views_per_reading == 1,
            ),
            too_long=refused,
            asked=fitting(tests, unfit),
            held_out=fitting(demonstrations, too_long(demonstrations)),
        )

    def answer(self, task: Task) -> list[list[Candidate]]:
        """The candidates for each test pair of a task; none for one that is too long for Qwen.

        Raises:
            DataError: each of them is too long for Qwen.
            NotFiniteError: what the models compute for it is not finite.
        """
        if not task.tests or self.tests is None:
            return []
        if task.id not in self.asked:
            raise DataError(self.too_long[task.id])
        asked = self.tests.read(self.asked[task.id])
        shown = self.demonstrations.read(self.held_out.get(task.id, ())) if self.demonstrations else []
        trained = self.trained
        with trained.autocast():
            before: list[list[Candidate]] = []
            if self.adapting.learns(shown):
                # Answers from before the training cost little beside it, and their errors differ from those after it.
                alone = replace(self.proposing, draws=0, steps=False, consensus=False, memory=False, qwen=False)
                unadapted = propose(trained.predictor, self.collator, asked, (), alone, trained.device)
                before = [[replace(each, origin="unadapted") for each in of_query] for of_query in unadapted]
            with adapted(trained.predictor, self.collator, task.id, shown, self.adapting, trained.device) as (
                own,
                collator,
            ):
                candidates = propose(own, collator, asked, shown, self.proposing, trained.device, before)
        if not all(math.isfinite(each.log_prob) for of_query in candidates for each in of_query):
            remedy = "lower --solve.adapt_lr" if self.adapting.steps else "give --train.precision no"
            raise NotFiniteError(f"The models' outputs are not finite: {remedy}.")
        by_query = dict(zip(self.asked[task.id], candidates, strict=True))
        return [by_query.get(query, []) for query in self.tests.of_task(task.id)]

    def not_held_out(self, task: Task) -> str | None:
        """What a task has if something was to learn from its demonstrations and none can be held out; else None."""
        if not (self.adapting.steps or self.proposing.draws) or not task.tests or self.held_out.get(task.id):
            return None
        return ONE_DEMONSTRATION if len(task.demonstrations) == 1 else TOO_LONG

    def cost(self, task: Task) -> float:
        """How much there is to compute for a task, in any unit."""
        cells = sum(pair.input.size for pair in task.tests) * self.proposing.views
        cells += self.adapting.steps * self.adapting.batch_size * task.demonstrations[0].input.size
        return float(cells + 1)
