"""The ClientApp: a thin bridge from Flower's messages to the NumPyClient.

`ClientApp(client_fn=...)` does not work with today's message strategies, so each kind of message is registered
here, which also keeps array names, metrics and evaluation intact.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from logging import ERROR
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore import log

from fedrec_app import own_data
from fedrec_app.base_transfer import BASE
from fedrec_app.client import ARRAYS_IN, ARRAYS_OUT, RecommenderClient
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.errors import DataError, FedrecError
from fedrec_app.models.registry import resolved
from fedrec_app.node_settings import NodeSettings
from fedrec_app.operation import json_log
from fedrec_app.paths import default_output_dir
from fedrec_app.records import (
    ARRAYS,
    CONFIG,
    CONTROL,
    COUNT,
    DELTA,
    EVAL,
    METRICS,
    ROWS,
    STAT,
    Arrays,
    Ask,
    Said,
    from_record,
    to_record,
)

app = ClientApp()


Handler = Callable[[Message, Context], Message]


def _discreet(handler: Handler) -> Handler:
    """Returns the handler with errors that may quote the node's data kept to the node's own log.

    Flower sends the text of an exception to the server. Errors of settings, state and messages go through as they are;
    those of data only in a simulation.
    """

    @wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except FedrecError as error:
            if not isinstance(error, DataError) or "state-dir" not in context.node_config:
                raise  # a simulation's data is the server's too
            log(ERROR, "%s: %s", handler.__name__, error)
            raise FedrecError(f"{handler.__name__}: the node's data is not usable; its own log says why") from None
        except Exception as error:
            log(ERROR, "%s: %s", handler.__name__, traceback.format_exc())
            kind = type(error).__name__
            raise FedrecError(f"{handler.__name__}: {kind} on the node; its own log says more") from None

    return json_log.on_node(guarded)


@app.train()
@_discreet
def train(message: Message, context: Context) -> Message:
    """Trains on the node's users and returns the update."""
    client = client_for(message, context)
    parameters, config = _received(message)
    arrays, _, metrics = client.fit(parameters, config)
    names = json.loads(metrics.pop(ARRAYS_OUT))
    return _reply(message, client, dict(zip(names, arrays, strict=True)), METRICS, MetricRecord(metrics))


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Judges the model on the node's users."""
    client = client_for(message, context)
    parameters, config = _received(message)
    if config.get(Ask.SUMS):
        sums = {EVAL + name: array for name, array in client.judge(parameters, config).to_arrays().items()}
        return _reply(message, client, sums, METRICS, MetricRecord({Said.ROUND: int(config.get(Ask.ROUND, 1))}))
    loss, num_users, metrics = client.evaluate(parameters, config)
    metrics.update({"loss": loss, "num-examples": num_users})
    return _reply(message, client, {}, METRICS, MetricRecord(metrics))


@app.query()
@_discreet
def query(message: Message, context: Context) -> Message:
    """Answers the roll-call."""
    client = client_for(message, context)
    config = dict(message.content.get(CONFIG, {}))
    if isinstance(base := message.content.get(BASE), ArrayRecord):
        client.keep_base(from_record(base), config)
    properties = ConfigRecord(client.get_properties(config))
    return _reply(message, client, client.statistics(config), CONFIG, properties)


def client_for(message: Message, context: Context) -> RecommenderClient:
    """Returns the client of a node, for the run that a message belongs to.

    Raises:
        ConfigError: the node's own settings are not what they must be.
    """
    config, simulated = _run(tuple(sorted(context.run_config.items())))
    node = NodeSettings.of(context.node_config, simulated)
    asked = message.content.get(CONFIG, ConfigRecord())
    if node.data:
        config = node.of_run(config, own_data.events_of_run(node, str(asked.get(Ask.LINEAGE, ""))))
    client = RecommenderClient(config, node)
    client.require_catalog(str(asked.get(Ask.CATALOG, "")))
    return client


@lru_cache(maxsize=8)
def _run(flat: tuple[tuple[str, Scalar], ...]) -> tuple[RunConfig, Path]:
    """Returns the settings of a run, and where a simulation keeps the state of its nodes."""
    config = resolved(dict(flat))
    return config, default_output_dir(config.output_dir) / "nodes"


def _received(message: Message) -> tuple[list[Any], dict[str, Any]]:
    content = message.content
    if not isinstance(record := content.get(ARRAYS), ArrayRecord):
        raise FedrecError(f"the message has no ArrayRecord {ARRAYS!r}: it has {sorted(content)}")
    received = from_record(record)
    return list(received.values()), {**content.get(CONFIG, {}), ARRAYS_IN: json.dumps(list(received))}


def _check_outgoing(arrays: Iterable[str], client: RecommenderClient) -> None:
    """The last gate before anything leaves the node: only shared parameters and sums have a name that passes."""
    shared = set(client.model.shared_names())
    for name in arrays:
        bare = name.removeprefix(DELTA).removeprefix(COUNT).removeprefix(ROWS).removeprefix(CONTROL)
        if bare not in shared and not name.startswith((EVAL, STAT)):
            raise FedrecError(f"array {name!r} is not shared and must not leave the node")


def _reply(
    message: Message, client: RecommenderClient, arrays: Arrays, key: str, record: MetricRecord | ConfigRecord
) -> Message:
    _check_outgoing(arrays, client)
    content = RecordDict({key: record})
    if arrays:
        content[ARRAYS] = to_record(arrays)
    return Message(content, reply_to=message)
