"""Models solved from sums over users that each break one rule of the contract, as an author might by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedrec_app.config import Scalar
from fedrec_app.data.catalog import Catalog
from fedrec_app.data.cohort import Cohort
from fedrec_app.models.base import UserState
from fedrec_app.records import Arrays
from tests.conformance.plain_closed_form import Pairs, PairSums


class IsToBeAveraged(Pairs):
    """Has the recipe of a model that is trained."""

    recipe: ClassVar[Mapping[str, Scalar]] = {**Pairs.recipe, "strategy.name": "fedavg"}


class NeverFillsItsRows(Pairs):
    """Has a bias a user, which nothing gives a value."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.user_bias = nn.Parameter(torch.zeros(0 if cohort is None else len(cohort), 1))

    def private_names(self) -> list[str]:
        return ["user_bias"]


class SendsColumns(Pairs):
    """Sends an array the way some library left it."""

    def statistics(self, cohort: Cohort) -> Arrays:
        found = super().statistics(cohort)
        return {**found, "met": np.asfortranarray(found["met"])}


class SendsTensors(Pairs):
    """Sends what torch computed."""

    def statistics(self, cohort: Cohort) -> Arrays:
        return {name: torch.from_numpy(array) for name, array in super().statistics(cohort).items()}  # type: ignore[misc]


class StartsFromItsParameters(Pairs):
    """Adds to what the model knew before, which a node is not sent."""

    def statistics(self, cohort: Cohort) -> Arrays:
        found = super().statistics(cohort)
        return {**found, "late": found["late"] + self.bias.detach().numpy()}


class SortsWhatUsersDid(Pairs):
    """Sorts each history where it stands."""

    def statistics(self, cohort: Cohort) -> Arrays:
        found = super().statistics(cohort)
        for user in range(len(cohort)):
            cohort.train[user].sort()
        return found


class AddsNoise(Pairs):
    """Draws from a generator without a seed."""

    def statistics(self, cohort: Cohort) -> Arrays:
        found = super().statistics(cohort)
        return {**found, "late": found["late"] * np.random.default_rng().uniform(0.9, 1.0)}


class SumsInFloat64(PairSums):
    """Returns what its solver returns."""

    def solve(self) -> Arrays:
        return {name: array.astype(np.float64) for name, array in super().solve().items()}


class SumsWithoutTheBias(PairSums):
    """Forgets a parameter."""

    def solve(self) -> Arrays:
        return {"similarity": super().solve()["similarity"]}


class SumsDividedByNobody(PairSums):
    """Takes it for granted that somebody is there."""

    def solve(self) -> Arrays:
        with np.errstate(all="ignore"):
            return {**super().solve(), "bias": (self.late / np.float64(self.users)).astype(np.float32)}


class SumsThatAreSpent(PairSums):
    """Saves memory at the cost of solving once."""

    def solve(self) -> Arrays:
        solved = super().solve()
        self.met[:] = 0
        return solved


class SumsOfNothing(PairSums):
    """Checks what comes and drops it."""

    def take(self, arrays: Arrays, num_users: int) -> None:
        pass


class LooksAtWhatIsHeldOut(Pairs):
    """Counts all that the node has."""

    def statistics(self, cohort: Cohort) -> Arrays:
        return super().statistics(replace(cohort, train=cohort.known("test")))


class SendsANumberAUser(Pairs):
    """Sends how much each user did."""

    def statistics(self, cohort: Cohort) -> Arrays:
        return {**super().statistics(cohort), "lengths": np.sort(cohort.train.lengths)}


class SumsAndLengths(PairSums):
    """Takes them in, of whatever number of users."""

    def check(self, arrays: Arrays, num_users: int) -> None:
        lengths = arrays.get("lengths")
        if lengths is None or lengths.dtype != np.int64 or lengths.ndim != 1 or lengths.min(initial=0) < 0:
            raise ValueError("lengths are no numbers")
        super().check({name: array for name, array in arrays.items() if name != "lengths"}, num_users)


class SumsOfMeans(PairSums):
    """Takes the mean of the nodes' means."""

    def __init__(self, num_items: int) -> None:
        super().__init__(num_items)
        self.means: list[np.ndarray] = []

    def take(self, arrays: Arrays, num_users: int) -> None:
        super().take(arrays, num_users)
        self.means.append(arrays["late"] / max(num_users, 1))

    def solve(self) -> Arrays:
        return {**super().solve(), "bias": np.mean([self.late * 0, *self.means], axis=0).astype(np.float32)}


class SumsThatCountNodes(PairSums):
    """Divides by nodes: one of nobody changes what all others gave."""

    nodes = 0

    def take(self, arrays: Arrays, num_users: int) -> None:
        super().take(arrays, num_users)
        self.nodes += num_users == 0

    def solve(self) -> Arrays:
        solved = super().solve()
        return {**solved, "bias": solved["bias"] / np.float32(1 + self.nodes)}


class SumsInTheFirstArrays(PairSums):
    """Adds to the arrays of whoever came first."""

    def take(self, arrays: Arrays, num_users: int) -> None:
        if self.users:
            return super().take(arrays, num_users)
        self.met, self.late, self.users = arrays["met"], arrays["late"], num_users


class KeepsOneSum(Pairs):
    """Makes a sum once and goes on with it."""

    made: PairSums | None = None

    def sums(self) -> PairSums:
        self.made = self.made or super().sums()
        return self.made


class SumsOfAnyNames(PairSums):
    """Takes what it knows and ignores the rest."""

    def check(self, arrays: Arrays, num_users: int) -> None:
        super().check({name: array for name, array in arrays.items() if name in ("met", "late")}, num_users)


class SumsOfWhatIsThere(PairSums):
    """Looks its statistics up without asking whether they are there."""

    def check(self, arrays: Arrays, num_users: int) -> None:
        super().check({"met": arrays["met"], "late": arrays["late"], **arrays}, num_users)


class SumsOfAnyType(PairSums):
    """Casts whatever comes."""

    def check_array(self, name: str, array: np.ndarray, total: np.ndarray, num_users: int) -> None:
        super().check_array(name, array.astype(total.dtype) if array.dtype.kind in "iuf" else array, total, num_users)

    def take(self, arrays: Arrays, num_users: int) -> None:
        super().take({"met": arrays["met"].astype(np.int64), "late": arrays["late"].astype(float)}, num_users)


class SumsOfAnyShape(PairSums):
    """Lets numpy broadcast."""

    def check_array(self, name: str, array: np.ndarray, total: np.ndarray, num_users: int) -> None:
        super().check_array(name, np.broadcast_to(array, total.shape), total, num_users)


class SumsOfNaN(PairSums):
    """Compares in the way that NaN passes."""

    def check_array(self, name: str, array: np.ndarray, total: np.ndarray, num_users: int) -> None:
        super().check_array(name, np.nan_to_num(array, nan=0.0), total, num_users)


class SumsOfNegatives(PairSums):
    """Bounds numbers from above alone."""

    def check_array(self, name: str, array: np.ndarray, total: np.ndarray, num_users: int) -> None:
        super().check_array(name, np.abs(array) if array.dtype == total.dtype else array, total, num_users)


class SumsAddedBeforeTheyAreChecked(PairSums):
    """Adds each array as soon as it was checked, the first before the second."""

    def check(self, arrays: Arrays, num_users: int) -> None:
        if set(arrays) != {"met", "late"}:
            raise ValueError(f"{sorted(arrays)} are not the statistics")
        for name, total in (("met", self.met), ("late", self.late)):
            self.check_array(name, arrays[name], total, num_users)
            total += arrays[name]

    def take(self, arrays: Arrays, num_users: int) -> None:
        self.users += num_users


class SumsThatCountTheRefused(PairSums):
    """Counts the users of a node before it looks at what the node sent."""

    def add(self, arrays: Arrays, num_users: int) -> None:
        self.users += num_users
        super().add(arrays, num_users)
        self.users -= num_users


class SumsOfAnyNumberOfUsers(PairSums):
    """Does not ask how many users there are."""

    def check(self, arrays: Arrays, num_users: int) -> None:
        super().check(arrays, 2**31)


class SumsOf32Bits(PairSums):
    """Adds up in a type that a few huge nodes outgrow."""

    def take(self, arrays: Arrays, num_users: int) -> None:
        super().take(arrays, num_users)
        self.late = self.late.astype(np.int64).astype(np.int32) + (self.late - np.floor(self.late))


class RemembersItsSimilarities(Pairs):
    """Keeps what it computed of the parameters it had first."""

    table: Tensor | None = None

    def score(self, state: UserState, items: Tensor) -> Tensor:
        if self.table is None:
            self.table = self.similarity.detach().clone()
        return state["history"] @ self.table[:, items]


class WeighsByItsNode(Pairs):
    """Scales scores by how many users the node has."""

    def bind(self, catalog: Catalog, cohort: Cohort | None) -> None:
        super().bind(catalog, cohort)
        self.scale = 1.0 if cohort is None else float(len(cohort))

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return self.scale * super().score(state, items)


class RanksBackwards(Pairs):
    """Returns a distance where a score is expected."""

    def score(self, state: UserState, items: Tensor) -> Tensor:
        return -super().score(state, items)


def with_sums(sums: type[PairSums], model: type[Pairs] = Pairs) -> type[Pairs]:
    """Returns the model with sums of its own, under their name."""
    return type(sums.__name__, (model,), {"sums": lambda self: sums(self.num_items)})
