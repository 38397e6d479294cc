"""`bench.py evaluate`: full ranking by blocks of users against a loop over users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.baseline_evaluate import by_argsort, by_heap
from benchmarks.measure import interleaved
from benchmarks.report import Comparison, Report
from fedrec_app.data.cohort import Cohort
from fedrec_app.data.histories import Histories
from fedrec_app.evaluation.candidates import Candidates
from fedrec_app.evaluation.evaluate import evaluate_cohort
from fedrec_app.evaluation.metrics import user_metrics
from fedrec_app.evaluation.ranking import rank_block

KS = [5, 10, 20]
NAMES = [f"hr@{k}" for k in KS] + [f"ndcg@{k}" for k in KS]
BLOCK = 256
# Scores of one user and of a block differ in their last bits, so two items may change places now and then.
_TOLERANCE = 1e-3


def measure(repeats: int, threads: int, quick: bool, say: Callable[[str], None] = lambda text: None) -> Report:
    """Returns the figures of evaluation: with scores computed by either side, and with scores given to both.

    Args:
        repeats: how often each is timed.
        threads: of torch and of compiled loops.
        quick: tiny sizes.
        say: told what runs next.
    """
    torch.set_num_threads(threads)
    num_users, num_items, num_known = (40, 60, 8) if quick else (6040, 3706, 160)
    task = Task.random(num_users, num_items, num_known)
    scores = (task.users @ task.items.T).numpy()
    users, items = task.users.numpy(), task.items.numpy()

    def one_by_one(user: int) -> NDArray[np.float32]:
        return items @ users[user]

    arrays = [task.known[user] for user in range(num_users)]
    lists = [known.tolist() for known in arrays]
    rest = (task.held_out.items, num_items, KS)
    loop, sort = "loop over users, heapq (NCF, NGCF)", "loop over users, numpy argsort"
    blocks, whole = f"blocks of {BLOCK}, rank_block", "evaluate_cohort: 20 metrics, sampled ranking too, lists"
    given = ", scores given"
    found = interleaved(
        {
            loop: lambda: by_heap(one_by_one, lists, *rest),
            sort: lambda: by_argsort(one_by_one, arrays, *rest),
            blocks: lambda: task.by_blocks(task.score),
            whole: task.everything,
            loop + given: lambda: by_heap(lambda user: scores[user], lists, *rest),
            blocks + given: lambda: task.by_blocks(lambda chosen: scores[chosen[0] : chosen[-1] + 1]),
        },
        repeats,
        say,
    )
    report = Report("evaluate", quick, f"random factors: {num_users:,} users x {num_items:,} items, d = 32")
    title = f"full ranking, {num_known} known items a user, one held out"
    for key, slow, fast, what in (
        ("evaluate", loop, blocks, "scores and ranks"),
        ("evaluate-scores-given", loop + given, blocks + given, "ranks alone"),
        ("evaluate-against-argsort", sort, blocks, "scores and ranks"),
        ("evaluate-everything", loop, whole, "all that a run evaluates"),
    ):
        difference = float(np.abs(found.results[slow] - found.results[fast]).max())
        if not difference <= _TOLERANCE:
            raise RuntimeError(f"{slow} and {fast} disagree by {difference}")
        report.comparisons.append(
            Comparison(
                key, f"{title}: {what}", slow, fast, found.timings[slow], found.timings[fast],
                checks={"largest_difference_of_metrics": difference},
            )
        )  # fmt: skip
    return report


class Task:
    """Random factors, and users with some items known and one held out.

    Args:
        users: (num_users, d) factors.
        items: (num_items, d) factors.
        cohort: known items as train, the others as validation.
    """

    def __init__(self, users: torch.Tensor, items: torch.Tensor, cohort: Cohort) -> None:
        self.users, self.items, self.cohort = users, items, cohort
        self.known, self.held_out = cohort.train, cohort.validation
        self._drawn = Candidates.of(cohort, seed=0)

    @classmethod
    def random(cls, num_users: int, num_items: int, num_known: int) -> Task:
        """Returns factors whose scores find some of the held-out items, so that metrics say something."""
        generator = np.random.default_rng(0)
        drawn = np.stack([generator.permutation(num_items)[: num_known + 1] for _ in range(num_users)])
        known, held_out = Histories.from_lists(list(drawn[:, 1:])), Histories.from_lists(list(drawn[:, :1]))
        items = generator.standard_normal((num_items, 32), dtype=np.float32)
        users = generator.standard_normal((num_users, 32), dtype=np.float32) + 0.5 * items[drawn[:, 0]]
        nothing = Histories.from_lists([[]] * num_users)
        ids = tuple(f"u{number}" for number in range(num_users))
        cohort = Cohort(ids, num_items, known, held_out, nothing, known)
        return cls(torch.from_numpy(users), torch.from_numpy(items), cohort)

    def score(self, chosen: NDArray[np.int64]) -> torch.Tensor:
        """Returns the (n, num_items) scores of some users."""
        return self.users[torch.from_numpy(chosen)] @ self.items.T

    def by_blocks(
        self, score_block: Callable[[NDArray[np.int64]], torch.Tensor | NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        """Returns the means of NAMES.

        Args:
            score_block: from consecutive users to their scores.
        """
        ranks = []
        for start in range(0, len(self.cohort), BLOCK):
            chosen = np.arange(start, min(start + BLOCK, len(self.cohort)))
            ranks.append(rank_block(score_block(chosen), self.known.select(chosen), self.held_out.select(chosen)))
        return user_metrics(np.concatenate(ranks), self.held_out.lengths, NAMES).mean(0)

    def everything(self) -> NDArray[np.float64]:
        """Returns the means of NAMES from all that a run evaluates."""
        found = evaluate_cohort(self.score, self.cohort, "validation", KS, candidates=self._drawn, block=BLOCK)
        return found.sums[0, [found.names.index(name) for name in NAMES]] / found.sums[0, -1]
