"""A model as an ONNX file, whose metadata says which items its columns are, and running it again."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec_app.artifacts import Made
from fedrec_app.data.catalog import Catalog
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.export.graphs import Graph
from fedrec_app.records import Arrays

MOST_BYTES = 2**31 - 1
"""Of an ONNX file in one piece: what protocol buffers hold."""
OUTPUT = "scores"
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


def require_extra() -> None:
    """Raises ConfigError where what ONNX needs is not installed."""
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'fedrec[export]'")


def onnx_content(graph: Graph, example: Arrays, catalog: Catalog, made: Made) -> bytes:
    """Returns the content of an ONNX file.

    Args:
        graph: of the model.
        example: inputs of some users, for their shapes; nothing of them is in the file.
        catalog: whose items the columns of the scores are.
        made: of the model.

    Raises:
        StateError: the model is too large for one file.
    """
    # Of two users: a batch of one would be taken for a fixed size.
    inputs = tuple(
        torch.from_numpy(np.zeros((2, *example[name].shape[1:]), example[name].dtype)) for name in graph.inputs
    )
    batch = torch.export.Dim("batch")
    each: Any = tuple({0: batch} for _ in inputs)
    # A module that takes any number of inputs has them under one name.
    shapes = (each,) if graph.module.__class__.forward.__code__.co_flags & 0x04 else each
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(), inputs, input_names=list(graph.inputs), output_names=[OUTPUT], dynamic_shapes=shapes,
            dynamo=True, verbose=False, optimize=True,
        )  # fmt: skip
    if program is None:
        raise StateError("the model cannot be written as ONNX")
    proto = program.model_proto
    proto.producer_name = "fedrec"
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        part.ClearField("metadata_props")  # where on this machine torch found the code
        part.ClearField("doc_string")
    for key, value in {**made.written(), "item-ids": json.dumps(list(catalog.item_ids))}.items():
        proto.metadata_props.add(key=f"fedrec.{key}", value=value)
    if (size := proto.ByteSize()) > MOST_BYTES:
        raise StateError(f"the model takes {size:,} bytes as ONNX: {MOST_BYTES:,} fit into one file")
    return proto.SerializeToString(deterministic=True)


def run_onnx(path: Path, inputs: Arrays) -> NDArray[np.float32]:
    """Returns (batch, num_items) the scores that an ONNX file computes.

    Args:
        path: of the file.
        inputs: by name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run([OUTPUT], dict(inputs))[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch's exporter says of itself and of packages that are not here from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
