"""What a node that lies may send where statistics are expected, made from statistics that are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedrec_app.records import Arrays
from fedrec_app.seeding import rng
from fedrec_app.testing.model_case import SEED
from strategies.update import MAX_UNITS

MOST_USERS = int(MAX_UNITS)
"""A node that says it has more is refused before it is asked for anything."""
_SMALLEST_DRAW = 8
_WHOLE = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


def malformed(right: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yields (what is wrong, statistics) that cannot be those of any users.

    Args:
        right: statistics of some users.
    """
    yield "nothing", {}
    yield "one more name", {**right, "no such statistic": np.zeros(1)}
    yield "every name in capitals", {name.upper() + "_": array for name, array in right.items()}
    for name, array in right.items():
        if len(right) > 1:
            yield f"nothing called {name!r}", {other: value for other, value in right.items() if other != name}
        for what, wrong in (*_of_other_kinds(array), *_of_other_shapes(array), *_impossible(array)):
            yield f"{name!r} {what}", {**right, name: wrong}
    for draw in range(3):
        drawn = {name: _random_bytes(array, name, draw) for name, array in right.items()}
        for name, array in drawn.items():
            if array.nbytes >= _SMALLEST_DRAW:
                yield f"{name!r} of random bytes", {**right, name: array}
        if any(array.nbytes >= _SMALLEST_DRAW for array in drawn.values()):
            yield "random bytes for all numbers", drawn


def beyond(right: Arrays, num_users: int) -> Iterator[tuple[str, Arrays, int]]:
    """Yields (what is wrong, statistics, how many users they are said to be of) that so many users cannot have.

    Args:
        right: statistics of some users.
        num_users: how many these are.
    """
    yield f"the statistics of {num_users} users as those of one", right, 1
    yield f"the statistics of {num_users} users as those of none", right, 0
    for name, array in right.items():
        if array.dtype.kind in "iu":
            most = np.full(array.shape, np.iinfo(array.dtype).max, dtype=array.dtype)
            yield f"{name!r} of the largest numbers that {array.dtype} holds", {**right, name: most}, num_users
        elif array.dtype.kind == "f" and array.any():
            with np.errstate(over="ignore"):
                times = (array * 1e9).astype(array.dtype)
            yield f"{name!r} times a billion", {**right, name: np.nan_to_num(times)}, num_users


def extreme(right: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yields (what it is, statistics) as large as `MOST_USERS` users may have them, whatever type numbers take.

    Args:
        right: statistics of some users.
    """
    for kind in _WHOLE:
        most = min(MOST_USERS, int(np.iinfo(kind).max))
        filled = {
            name: np.full(array.shape, most, dtype=kind if array.dtype.kind in "iu" else array.dtype)
            for name, array in right.items()
        }
        yield f"{most} in each place, {np.dtype(kind)} where numbers are whole", filled


def _of_other_kinds(array: NDArray) -> Iterator[tuple[str, NDArray]]:
    kinds = [np.float64 if array.dtype.kind != "f" else np.int64, np.complex128, "U8", "M8[s]"]
    for kind in kinds:
        changed = np.zeros(array.shape, dtype=kind) if kind in ("U8", "M8[s]") else array.astype(kind)
        yield f"as {changed.dtype}", changed


def _of_other_shapes(array: NDArray) -> Iterator[tuple[str, NDArray]]:
    shapes = [array[None], array[..., None], np.zeros((), array.dtype), np.zeros((0, *array.shape[1:]), array.dtype)]
    if array.ndim:
        shapes += [array[:-1], np.concatenate([array, array[:1]]), np.concatenate([array, array])]
        shapes.append(array.reshape(-1))
    tried = {array.shape}
    for changed in shapes:
        if changed.shape not in tried:
            tried.add(changed.shape)
            yield f"of shape {changed.shape}", np.ascontiguousarray(changed).reshape(changed.shape)


def _impossible(array: NDArray) -> Iterator[tuple[str, NDArray]]:
    """Yields numbers that are none, and negative ones where the right ones are not."""
    if not array.size or array.dtype.kind not in "iuf":
        return
    places = (0, array.size - 1)
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf, -np.inf):
            for place in places:
                yield f"with {value}", _with(array, place, value)
    if array.min() >= 0:
        signed = array if array.dtype.kind == "f" else array.astype(np.int64)
        for place in places:
            yield "with -1", _with(signed, place, -1)
        if array.any():
            yield "times -1", -signed


def _with(array: NDArray, place: int, value: float) -> NDArray:
    changed = array.copy()
    changed.reshape(-1)[place] = value
    return changed


def _random_bytes(array: NDArray, name: str, draw: int) -> NDArray:
    if array.dtype.kind not in "iuf":
        return array
    data = rng(SEED, "conformance", "random-bytes", name, draw).bytes(array.nbytes)
    return np.frombuffer(data, dtype=array.dtype).reshape(array.shape).copy()
