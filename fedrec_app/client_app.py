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
from safetensors.numpy import load

from fedrec_app.client import ARRAYS_BYTES, ARRAYS_IN, ARRAYS_OUT, Node, RecommenderClient
from fedrec_app.config import RunConfig, Scalar
from fedrec_app.errors import ConfigError, DataError, FedrecError
from fedrec_app.models.registry import model_class
from fedrec_app.paths import default_output_dir
from fedrec_app.records import ARRAYS, CONFIG, COUNT, DELTA, EVAL, METRICS, STAT, to_record

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

    return guarded


@app.train()
@_discreet
def train(message: Message, context: Context) -> Message:
    """Trains on the node's users and returns the update."""
    client = client_for(context)
    parameters, config = _received(message)
    arrays, _, metrics = client.fit(parameters, config)
    names = json.loads(metrics.pop(ARRAYS_OUT))
    named = dict(zip(names, arrays, strict=True))
    _check_outgoing(named, client)
    return _reply(message, {ARRAYS: to_record(named), METRICS: MetricRecord(metrics)})


@app.evaluate()
@_discreet
def evaluate(message: Message, context: Context) -> Message:
    """Judges the model on the node's users."""
    client = client_for(context)
    parameters, config = _received(message)
    loss, num_users, metrics = client.evaluate(parameters, config)
    arrays = load(metrics.pop(ARRAYS_BYTES)) if ARRAYS_BYTES in metrics else {}
    _check_outgoing(arrays, client)
    metrics.update({"loss": loss, "num-examples": num_users})
    records: dict[str, Any] = {METRICS: MetricRecord(metrics)}
    if arrays:
        records[ARRAYS] = to_record(arrays)
    return _reply(message, records)


@app.query()
@_discreet
def query(message: Message, context: Context) -> Message:
    """Answers the roll-call."""
    client = client_for(context)
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    properties = client.get_properties(dict(config))
    arrays = load(properties.pop(ARRAYS_BYTES)) if ARRAYS_BYTES in properties else {}
    _check_outgoing(arrays, client)
    records: dict[str, Any] = {CONFIG: ConfigRecord(properties)}
    if arrays:
        records[ARRAYS] = to_record(arrays)
    return _reply(message, records)


def client_for(context: Context) -> RecommenderClient:
    """Returns the client of a node.

    Raises:
        ConfigError: the node has no `partition-id` and `num-partitions` (a simulation sets them, `--node-config`
            does on a deployment).
    """
    config = _config(tuple(sorted(context.run_config.items())))
    settings = context.node_config
    try:
        partition, total = int(settings["partition-id"]), int(settings["num-partitions"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"this node has no usable {error}: start it with --node-config 'partition-id=0 num-partitions=2'"
        ) from None
    if not 0 <= partition < total:
        raise ConfigError(f"partition-id is {partition}: 0 to num-partitions - 1 = {total - 1} is allowed")
    own = settings.get("state-dir")
    folder = Path(str(own)).expanduser() if own else default_output_dir(config.output_dir) / "nodes"
    return RecommenderClient(config, Node(partition, total, folder, durable=own is not None))


@lru_cache(maxsize=8)
def _config(flat: tuple[tuple[str, Scalar], ...]) -> RunConfig:
    config = RunConfig.from_flat(dict(flat))
    return config.resolve(model_class(config.model.name).recipe)


def _received(message: Message) -> tuple[list[Any], dict[str, Any]]:
    content = message.content
    if ARRAYS not in content.array_records:
        raise FedrecError(f"the message has no ArrayRecord {ARRAYS!r}: it has {sorted(content)}")
    record: ArrayRecord = content.array_records[ARRAYS]
    config = dict(content.config_records.get(CONFIG, ConfigRecord()))
    config[ARRAYS_IN] = json.dumps(list(record))
    return [array.numpy() for array in record.values()], config


def _check_outgoing(arrays: Iterable[str], client: RecommenderClient) -> None:
    """The last gate before anything leaves the node: only shared parameters and sums have a name that passes."""
    shared = set(client.model.shared_names())
    for name in arrays:
        bare = name.removeprefix(DELTA).removeprefix(COUNT)
        if bare not in shared and not name.startswith((EVAL, STAT)):
            raise FedrecError(f"array {name!r} is not shared and must not leave the node")


def _reply(message: Message, records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=message)
