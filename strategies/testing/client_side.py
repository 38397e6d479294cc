"""Checks of the client part, which the kit calls as a node does: controls, gradients, weights, memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrec_app.client_part import ClientPart, Units
from fedrec_app.conformance import check, giving, require
from fedrec_app.part_memory import PartMemory
from fedrec_app.records import ARRAYS, CONTROL, Arrays, Said, from_record
from fedrec_app.seeding import rng
from strategies.testing.harness import Make, Run, difference, fresh, not_finite
from strategies.testing.nodes import PARAMS, TABLE, drawn, honest

if TYPE_CHECKING:
    from torch import Tensor

_USERS = 3
_ROWS = [4, 1, 3]


@check
def check_client_controls(make: Make) -> None:
    """The server sends controls where the client part has them: an array for each parameter, shaped like it."""
    found: Any = type(make()).client_part
    derived = isinstance(found, type) and issubclass(found, ClientPart)
    require("" if derived else f"it is {found!r}: a class derived from ClientPart is expected", "client_part")
    run = Run(make, [honest(drawn(0))])
    sent = from_record(run.ask()[0].content.array_records[ARRAYS])
    controls = {name.removeprefix(CONTROL): array for name, array in sent.items() if name.startswith(CONTROL)}
    if not found.has_controls:
        looks = f"{found.__name__} has has_controls = False: no node looks at them, and none sends any"
        require(looks if controls else "", "what controls() returns")
        return
    owed = "has_controls = True, so controls() of the strategy must return an array for each parameter, zeros at first"
    require(_misfit(controls, owed) or not_finite(controls), "what controls() returns for the first round")


@check
def check_client_gradient(make: Make) -> None:
    """`gradient` keeps shapes and dtypes and changes nothing; with an axis of users, or some rows alone, it gives the
    same (a part with a memory sees whole parameters of one node)."""
    from torch import from_numpy  # takes seconds, which those without a client part do not wait for

    for part, how in _parts(make):
        for name in PARAMS:
            grads, local, start = (from_numpy(_numbers(name, kind)) for kind in ("grad", "param", "start"))
            one = [grads[0], local[0], start[0]]
            given = f"the gradient of {name!r}{how}"
            alone = _gradient(part, name, one, given)
            require(_unlike(_gradient(part, name, one, given), alone), f"{given}, twice")
            if part.remembers():
                continue
            users = _gradient(part, name, [grads, local, start], f"{given}, of {_USERS} users")
            mixes = ": work element by element, no number of one user's must count for another's"
            for user in range(_USERS):
                by_himself = _gradient(part, name, [grads[user], local[user], start[user]], given)
                problem = _unlike(users[user], by_himself)
                require(problem and problem + mixes, f"{given}, of {_USERS} users and of one")
            if name == TABLE:
                some = _gradient(part, name, [tensor[_ROWS] for tensor in one], f"{given}, some rows alone")
                problem = _unlike(some, alone[_ROWS])
                mixes = ": work element by element, rows that a user did not meet are not there"
                require(problem and problem + mixes, f"{given}, some rows alone and all of them")


@check
def check_client_weigh(make: Make) -> None:
    """`weigh` gives a finite number for each unit, and for each declared scalar one that is not negative, whoever else
    is weighed with it."""
    for part, how in _parts(make):
        declared = part.scalars
        taken = sorted({v for k, v in vars(Said).items() if k.isupper()} & set(declared))
        require(f"every reply has {taken[0]!r} already: choose another name" if taken else "", "scalars")
        units = _units(part)
        weighed = _weigh(part, units, f"five units{how}")
        require(difference(_weigh(part, units, f"five units{how}"), weighed, exact=True), "the same units twice")
        for some in (slice(0, 1), slice(1, 4)):
            few = _weigh(part, _of(units, some), f"some of the units{how}")
            problem = difference(few, {name: numbers[some] for name, numbers in weighed.items()})
            hint = ": a node weighs its users in groups, so a unit's numbers may depend on that unit alone"
            require(problem and problem + hint, f"some of five units{how}")


@check
def check_client_finish(make: Make) -> None:
    """`finish` gives finite controls where there are some, and a memory of arrays that the node can keep: the next fit
    goes on from it."""
    deltas = [_deltas(fit) for fit in range(2)]
    strategy = fresh(make)
    part = _part(strategy.options, strategy.client_part, {})
    controls, memory = _finish(part, deltas[0], "the first fit of a node")
    again = _finish(_part(strategy.options, strategy.client_part, {}), deltas[0], "the first fit of a node")
    require(difference(again[0], controls, exact=True), "the same fit twice, its controls")
    require(difference(again[1], memory, exact=True), "the same fit twice, its memory")
    kept = _kept(memory)
    lost = "" if kept.keys() == memory.keys() else f"it has {sorted(kept)}, not {sorted(memory)}"
    require(lost or difference(kept, memory, exact=True), "memory from the node's disk")
    ways = [_part(strategy.options, strategy.client_part, stored) for stored in (memory, kept)]
    seen = [_finish(way, deltas[1], "the second fit, from the memory of the first") for way in ways]
    for number, what in enumerate(("controls", "memory")):
        found, right = seen[1][number], seen[0][number]
        require(difference(found, right, exact=True), f"the second fit, its {what} with memory from the node's disk")


def _parts(make: Make) -> Iterator[tuple[ClientPart, str]]:
    """Yields a client part as in a first round, and one that has a memory where the strategy's remembers."""
    strategy = fresh(make)
    part = _part(strategy.options, strategy.client_part, {})
    yield part, ""
    if part.remembers():
        _, memory = _finish(part, _deltas(0), "the first fit of a node")
        yield _part(strategy.options, strategy.client_part, memory), " in a second round"


def _part(options: Any, found: type[ClientPart] | None, memory: Arrays) -> ClientPart:
    assert found is not None  # noqa: S101 - the checks apply where there is one
    received = {name: np.asarray(_numbers(name, "control")[0]) for name in PARAMS} if found.has_controls else {}
    with giving(f"{found.__name__}(options, received, memory), as a node makes it"):
        return found(options, received, {name: array.copy() for name, array in memory.items()})


def _deltas(fit: int) -> Arrays:
    return {name: np.asarray(_numbers(name, "delta")[fit], dtype=np.float64) for name in PARAMS}


def _numbers(name: str, kind: str) -> NDArray[np.float32]:
    """Returns (num_users, ...) numbers of a parameter's shape, none of them zero."""
    generator, shape = rng(0, "conformance", kind, name), PARAMS[name].shape
    numbers = generator.uniform(0.25, 1.5, size=(_USERS, *shape)) * generator.choice([-1, 1], size=(_USERS, *shape))
    return np.asarray(numbers, dtype=np.float32)


def _gradient(part: ClientPart, name: str, given: list[Tensor], what: str) -> Tensor:
    copies, grad = [tensor.clone() for tensor in given], given[0]
    with giving(what):
        found: Any = part.gradient(name, *copies)
    tensor = isinstance(found, type(grad))
    require("" if tensor else f"it is a {type(found).__name__}, a torch.Tensor is expected", what)
    require("" if found.shape == grad.shape else f"its shape is {(*found.shape,)}, not {(*grad.shape,)}", what)
    require("" if found.dtype == grad.dtype else f"it is {found.dtype}, not {grad.dtype}", what)
    require("" if found.isfinite().all() else "it holds NaN or infinity", what)
    for kind, copy, tensor in zip(("grad", "param", "start"), copies, given, strict=True):
        require("" if copy.equal(tensor) else f"it changes {kind} in place: return a new tensor", what)
    return found.clone()


def _unlike(found: Tensor, expected: Tensor) -> str:
    return difference({"it": found.numpy()}, {"it": expected.numpy()}).replace("'it'", "it")


def _units(part: ClientPart) -> Units:
    """Returns five units; the last but one had no loss and did not move."""
    judged = part.weighed_by_outcome
    return Units(
        np.array([1.0, 5.0, 2.0, 3.0, 1.0]), np.array([1, 5, 2, 3, 4]), np.array([1, 3, 2, 1, 4]), 0.125,
        np.array([0.5, 0.75, 2.0, 0.0, 0.25]) if judged else None,
        np.array([1.0, 0.5, 4.0, 0.0, 2.0]) if judged else None,
    )  # fmt: skip


def _of(units: Units, some: slice) -> Units:
    arrays = {f.name: getattr(units, f.name) for f in fields(units)}
    return replace(units, **{name: array[some] for name, array in arrays.items() if isinstance(array, np.ndarray)})


def _weigh(part: ClientPart, units: Units, what: str) -> Arrays:
    """Returns the factors and the scalars by name; the factors' is ""."""
    given = f"{what} to weigh"
    copies = _of(units, slice(None))
    copies = replace(copies, weights=units.weights.copy(), examples=units.examples.copy(), steps=units.steps.copy())
    with giving(given):
        found: Any = part.weigh(copies)
    pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)
    require("" if pair else f"it is {str(found)[:60]}: (factors, a dict of scalars) is expected", given)
    factors, scalars = found
    declared = f"the class declares scalars = {part.scalars}"
    same = sorted(scalars) == sorted(part.scalars)
    require("" if same else f"it returns the scalars {sorted(scalars)}, and {declared}", given)
    for name, numbers in {"": factors, **scalars}.items():
        which = f"scalar {name!r}" if name else "the factors"
        require(_no_numbers(numbers, len(units.weights)), f"{given}, {which}")
        require("it is negative" if name and np.any(numbers < 0) else "", f"{given}, {which}")
    for name in ("weights", "examples", "steps"):
        kept = np.array_equal(getattr(copies, name), getattr(units, name))
        require("" if kept else f"it changes units.{name} in place", given)
    return {"": factors, **scalars}


def _no_numbers(numbers: Any, count: int) -> str:
    if not isinstance(numbers, np.ndarray) or numbers.shape != (count,) or numbers.dtype.kind not in "fiu":
        shape = f" of shape {numbers.shape}" if isinstance(numbers, np.ndarray) else ""
        return f"it is a {type(numbers).__name__}{shape}: an array of a number a unit, ({count},), is expected"
    return "" if np.isfinite(numbers).all() else "it holds NaN or infinity"


def _finish(part: ClientPart, delta: Arrays, given: str) -> tuple[Arrays, Arrays]:
    copies = {name: array.copy() for name, array in delta.items()}
    given = f"{given} to finish"
    with giving(given):
        found: Any = part.finish(copies, 3, 0.125)
    pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(half, dict) for half in found)
    require("" if pair else f"it is {str(found)[:60]}: (controls, memory), two dicts of arrays, is expected", given)
    controls, memory = found
    if part.has_controls:
        require(_misfit(controls, "has_controls = True, so there is one for each parameter"), f"{given}, the controls")
    else:
        needless = "the class says has_controls = False: no server reads them"
        require(needless if controls else "", f"{given}, the controls")
    for what, arrays in (("controls", controls), ("memory", memory)):
        bad = [f"{name!r} is a {type(a).__name__}" for name, a in arrays.items() if not isinstance(a, np.ndarray)]
        hint = ", not a numpy array: np.asarray makes one of it, of a 0-d array's arithmetic too"
        require(bad[0] + hint if bad else "", f"{given}, the {what}")
        odd = [f"{name!r} is {a.dtype}, not numbers" for name, a in arrays.items() if a.dtype.kind not in "fiub"]
        require(odd[0] if odd else not_finite(arrays), f"{given}, the {what}")
    require(difference(copies, delta, exact=True), f"{given}, the delta afterwards")
    return controls, memory


def _misfit(arrays: dict[str, Any], owed: str) -> str:
    """Returns how arrays differ from float arrays in the parameters' shapes, or ""."""
    if lacking := sorted(PARAMS.keys() - arrays.keys()):
        return f"there is none for {', '.join(map(repr, lacking))}: {owed}"
    if extra := sorted(arrays.keys() - PARAMS.keys()):
        return f"{extra[0]!r} is no parameter"
    for name, param in PARAMS.items():
        if np.shape(arrays[name]) != param.shape:
            return f"{name!r} has shape {np.shape(arrays[name])}, not {param.shape}"
        if np.asarray(arrays[name]).dtype.kind != "f":
            return f"{name!r} is {np.asarray(arrays[name]).dtype}: it travels as float32"
    return ""


def _kept(memory: Arrays) -> Arrays:
    """Returns a memory after it was kept as a node keeps it."""
    with tempfile.TemporaryDirectory() as folder, giving("memory to the node's disk and back"):
        on_disk = PartMemory(Path(folder), "kit", 0, durable=False)
        on_disk.save(1, memory)
        return on_disk.load(1)
