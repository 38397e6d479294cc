"""The loop over rounds, for our strategies and for stock ones: train, evaluate, keep the best, stop early.

Flower's own `Strategy.start` has no callback a round, no early stop and no way to continue; this one calls the same
four methods of a strategy in the same order.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from logging import INFO, WARNING
from typing import Literal, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from fedrec_app.errors import FedrecError, StateError
from fedrec_app.records import Ask, num_bytes
from strategies.progress import Progress as Progress
from strategies.progress import RoundRecord as RoundRecord

SHORTEST_PAUSE, USUAL_PAUSE, LONGEST_PAUSE = 0.005, 0.1, 3.0
"""Seconds between asking for replies in vain and asking again: doubled from the first to the second; and ten times what
asking takes, up to the third, so that a grid that is far away is not asked all the time."""
SKEW = 3600.0
"""Seconds that a node's clock may be ahead of the SuperLink's: Flower counts how long a message lasts by both."""
MOST_AT_ONCE = 32
"""Replies that may be there at a time, unread."""


class Hooks(Protocol):
    """What a run does after each round; with a method `before_round(server_round)` too, what it does before."""

    def on_round(self, record: RoundRecord, progress: Progress) -> None:
        """Called after each round, best round already chosen."""
        ...


Evaluate = Callable[[int, ArrayRecord, ConfigRecord], tuple[MetricRecord | None, int, int]]


class Exchange:
    """Messages that have been sent, and the replies to them as they come; what has been read is not kept.

    A reply that is there is handed on, however long the reader took for those before; for more of them nobody waits
    longer than `timeout`. Flower's grids answer in the place of a node that is gone, and for a message that expired.

    Args:
        grid: how nodes are reached.
        messages: sent all at once, so that Flower's grids send only once what they share.
        timeout: seconds to wait.
        lasting: replies that nobody has read when the round ends are for a later one.

    Attributes:
        bytes_down: payload of the messages.
        bytes_up: payload of the replies so far.
        failure: what the grid raised when it was asked for replies.
    """

    def __init__(self, grid: Grid, messages: Iterable[Message], timeout: float, lasting: bool = False) -> None:
        self.lasting = lasting
        self.failure: Exception | None = None
        self._grid = grid
        self._waiting: dict[str, int | None] = {}
        self.send(messages, timeout)

    def send(self, messages: Iterable[Message], timeout: float) -> None:
        """Sends more messages, counts bytes anew, and waits from now on."""
        outgoing = list(messages)
        for message in () if self.lasting else outgoing:
            # Nobody would use a later reply, and the node would be late for later rounds. Clocks may differ.
            message.metadata.ttl = timeout + SKEW
        self.bytes_down = sum(num_bytes(message.content) for message in outgoing)
        self.bytes_up = 0
        pushed = self._grid.push_messages(outgoing) if outgoing else []
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in outgoing}
        # A message that could not be sent has no id: its node will be one that did not reply.
        self._waiting.update({message_id: nodes.get(message_id) for message_id in pushed if message_id})
        self._end = time.monotonic() + timeout

    @property
    def busy(self) -> set[int]:
        """Nodes that have not answered yet."""
        return {node for node in self._waiting.values() if node is not None}

    def __iter__(self) -> Iterator[Message]:
        """Yields the replies that nobody has read yet, in the order of arrival."""
        pause = SHORTEST_PAUSE
        while self._waiting:
            came, spent = False, 0.0
            ids = list(self._waiting)
            for start in range(0, len(ids), MOST_AT_ONCE):
                asked = ids[start : start + MOST_AT_ONCE]
                while asked:
                    began = time.monotonic()
                    replies = self._pull(asked)
                    spent += time.monotonic() - began
                    if not replies:
                        break
                    came = True
                    while replies:
                        yield replies.popleft()
                    asked = [message_id for message_id in asked if message_id in self._waiting]
            if came:
                pause = SHORTEST_PAUSE
                continue
            left = self._end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(max(pause, 10 * spent), LONGEST_PAUSE, left))
            pause = min(2 * pause, USUAL_PAUSE)

    def _pull(self, message_ids: list[str]) -> deque[Message]:
        try:
            replies = deque(self._grid.pull_messages(message_ids))
        except Exception as error:
            self.failure = error
            raise
        for reply in replies:
            node = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if reply.has_content():
                self.bytes_up += num_bytes(reply.content)
            elif node is not None:
                # The SuperLink answers for a node that is gone, in a name of its own.
                reply.metadata.__dict__["_src_node_id"] = node
        return replies


def run_rounds(
    strategy: Strategy,
    grid: Grid,
    initial_arrays: ArrayRecord,
    *,
    num_rounds: int,
    timeout: float = 3600,
    train_config: ConfigRecord | None = None,
    evaluate_config: ConfigRecord | None = None,
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 1,
    metric: str = "ndcg@10",
    early_stopping_rounds: int = 0,
    choose: Literal["best", "last"] = "best",
    hooks: Hooks | None = None,
    resume: Progress | None = None,
    timed: bool = True,
) -> Progress:
    """Returns the run after its last round.

    A strategy may have a method `stops(server_round) -> str`. It is asked why that round may not start any more, more
    than once a round; "" to go on. The run then ends with the rounds it has. With a method `serve(arrays) -> arrays` it
    says what parameters become before they are judged and kept as the best; training goes on from what they were.

    Args:
        strategy: any Flower strategy of the message API.
        grid: how nodes are reached.
        initial_arrays: shared parameters of round 0.
        num_rounds: rounds to train.
        timeout: seconds to wait for the replies of one exchange; no wait is longer.
        train_config: sent to the nodes that train.
        evaluate_config: sent to the nodes that evaluate.
        evaluate_fn: Flower's evaluation on the server, called before the first round and after each.
        evaluate: takes the place of the strategy's own configure_evaluate and aggregate_evaluate.
        evaluate_every: validate each n-th round, and the last; 0: no round at all.
        metric: validation metric that chooses the best round.
        early_stopping_rounds: stop when a validation finds the best round this many rounds ago; 0: never.
        choose: "last": the last round is the best one, whatever validation says, and none stops the run early.
        hooks: what to do after each round.
        timed: False: rounds take 0 seconds in their records, which would tell who took part.
        resume: the rounds that are over: the run goes on after them, and changes this object. `initial_arrays` are not
            used then.

    Raises:
        FedrecError: no round changed the parameters, or the strategy does not allow the first one.
        StateError: a file that the strategy needs is damaged or cannot be written.
    """
    served = getattr(strategy, "serve", _as_they_are)
    progress = resume or Progress(initial_arrays, initial_arrays)
    if progress.rounds and progress.best_round == progress.last_round:
        progress.best_arrays = served(progress.arrays)
    before, stepped = len(progress.rounds), False
    failures: Counter[str] = Counter()
    judge = evaluate or _own_evaluation(strategy, grid, timeout)
    stops = getattr(strategy, "stops", _never)
    if evaluate_fn is not None and resume is None:
        evaluate_fn(0, initial_arrays)
    for server_round in range(progress.last_round + 1, num_rounds + 1):
        if _ends(progress, stops(server_round), early_stopping_rounds, metric):
            break
        began = time.perf_counter()
        getattr(hooks, "before_round", _nothing)(server_round)
        config = ConfigRecord(dict(train_config or {}))
        config[Ask.KEEP_ROUND] = _to_keep(progress)
        messages = strategy.configure_train(server_round, progress.arrays, config, grid)
        replies = getattr(strategy, "exchange", Exchange)(grid, messages, timeout)
        arrays, trained, failure = _aggregated(strategy, server_round, replies)
        down, up = replies.bytes_down, replies.bytes_up
        if arrays is not None:
            progress.arrays, progress.stepped, stepped = arrays, True, True
        if failure is not None:
            what = f"{type(failure).__name__}: {failure}"
            trace = None if what in failures else failure
            failures[what] += 1
            log(WARNING, "round %s skipped: the strategy failed with %s", server_round, what, exc_info=trace)
        serving, validation = served(progress.arrays), None
        is_last = server_round == num_rounds or bool(stops(server_round + 1))
        if evaluate_every and (is_last or server_round % evaluate_every == 0):
            config = ConfigRecord(dict(evaluate_config or {}))
            validation, more_down, more_up = judge(server_round, serving, config)
            down, up = down + more_down, up + more_up
        if evaluate_fn is not None:
            evaluate_fn(server_round, serving)
        _keep_best(progress, serving, server_round, validation, metric, choose)
        seconds = time.perf_counter() - began if timed else 0.0
        record = RoundRecord(
            server_round, seconds, dict(trained or {}), dict(validation) if validation else None, down, up
        )
        progress.rounds.append(record)
        if hooks is not None:
            hooks.on_round(record, progress)
    taken = progress.rounds[before:]
    if not stepped and (taken or not progress.stepped):
        what = f"none of the {len(taken)} rounds took a step: {_reasons(taken, failures)}"
        if not progress.stepped:
            raise FedrecError(what)
        log(WARNING, "%s; the parameters are those of the checkpoint", what)
    if progress.best_round == 0:
        progress.best_round, progress.best_arrays = progress.last_round, served(progress.arrays)
    return progress


def _as_they_are(arrays: ArrayRecord) -> ArrayRecord:
    """Returns what training has left."""
    return arrays


def _nothing(server_round: int) -> None:
    """Does nothing before a round."""


def _never(server_round: int) -> str:
    """Returns that nothing speaks against a round."""
    return ""


def _ends(progress: Progress, why: str, early_stopping_rounds: int, metric: str) -> bool:
    """Returns whether no further round is to start, and notes the reason.

    Asked before a round and not after one, so that a run that is resumed ends where it would have ended.
    """
    if early_stopping_rounds and progress.rounds and progress.rounds[-1].validation:
        progress.stopped_early = progress.last_round - progress.best_round >= early_stopping_rounds
        if progress.stopped_early:
            since = f"no better {metric} since round {progress.best_round}"
            log(INFO, "stopped after round %s: %s", progress.last_round, since)
            return True
    if why and not progress.rounds:
        raise FedrecError(f"not even the first round may start: {why}")
    if why:
        log(INFO, "stopped after round %s: %s", progress.last_round, why)
        progress.stopped_why = why
    return bool(why)


def _to_keep(progress: Progress) -> int | list[int]:
    """Returns whose private state the nodes must keep: a round, or several where there are checkpoints."""
    rounds = {progress.best_round, *progress.keep_rounds}
    return sorted(rounds) if progress.keep_rounds else progress.best_round


def _reasons(rounds: Iterable[RoundRecord], failures: Counter[str]) -> str:
    """Returns why rounds were skipped: what the strategy raised, and how many replies were dropped."""
    dropped: Counter[str] = Counter()
    for record in rounds:
        dropped.update({key: int(n) for key, n in record.train.items() if key.startswith("dropped/")})
    reasons = [f"the strategy failed {count} times with {what}" for what, count in failures.most_common(3)]
    if dropped:
        counts = (f"{n} {key.removeprefix('dropped/')}" for key, n in sorted(dropped.items()))
        reasons.append(f"dropped {', '.join(counts)}; the log says why")
    return "; ".join(reasons) or "no node was asked or none answered"


def _keep_best(
    progress: Progress, serving: ArrayRecord, server_round: int, validation: MetricRecord | None, metric: str,
    choose: str,
) -> None:  # fmt: skip
    value, told = (validation or {}).get(metric), (validation or {}).get("num_users")
    users = told if isinstance(told, int) else 0
    better = isinstance(value, float) and value > progress.best_value + 1e-9  # not by a rounding of sums
    if isinstance(value, float) and users != progress.best_users:
        if progress.best_users and choose == "best":
            text = "round %s is judged on %s users, the best so far on %s: the best is chosen anew from here on"
            log(WARNING, text, server_round, users, progress.best_users)
        better, progress.best_users = True, users
    if isinstance(value, float) and (better or choose == "last"):
        progress.best_value = value
    if better or choose == "last":
        progress.best_round, progress.best_arrays = server_round, serving


def _aggregated(
    strategy: Strategy, server_round: int, replies: Exchange
) -> tuple[ArrayRecord | None, MetricRecord | None, Exception | None]:
    """Returns what the strategy makes of the replies, and what it raised: a round in which it does, as stock ones do
    over a bad reply, is skipped."""
    failure = None
    try:
        arrays, metrics = strategy.aggregate_train(server_round, _readable(replies, strategy))
    except StateError:
        raise  # a file of this run, such as the privacy ledger, is not as it must be: no later round could do better
    except Exception as error:
        if replies.failure is not None:
            raise
        arrays, metrics, failure = None, MetricRecord({"skipped": 1}), error
    for _ in () if replies.lasting else replies:
        pass  # who has not answered yet is still at work on this round
    return arrays, metrics, failure


def _readable(replies: Exchange, strategy: Strategy) -> Iterable[Message]:
    """Returns the replies as the strategy can read them: one by one, or, as some stock ones read them twice, a list."""
    return replies if getattr(strategy, "one_by_one", False) else list(replies)


def _own_evaluation(strategy: Strategy, grid: Grid, timeout: float) -> Evaluate:
    def evaluate(server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> tuple[MetricRecord | None, int, int]:
        replies = Exchange(grid, strategy.configure_evaluate(server_round, arrays, config, grid), timeout)
        metrics = strategy.aggregate_evaluate(server_round, _readable(replies, strategy))
        return metrics, replies.bytes_down, replies.bytes_up

    return evaluate
