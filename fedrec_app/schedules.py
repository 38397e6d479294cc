"""Learning-rate schedules: by which factor a rate is multiplied in each round.

A warm-up (Goyal et al., Accurate, Large Minibatch SGD, 2017, https://arxiv.org/abs/1706.02677, section 2.2) may come
before any of them. With W warm-up rounds of T rounds, round t = 1, 2, ... has the factor

    t / (W + 1)          t <= W: equal increments that reach the whole rate in the first round after them
    f(t - 1 - W, T - W)  W < t <= T: the schedule itself, by rounds done since the warm-up and rounds there are
    that of round T      t > T

and f(s, S) is

    constant             1
    step                 factor ** floor(s / every)
    cosine               final + (1 - final) * (1 + cos(pi * s / S)) / 2

Cosine is Loshchilov & Hutter, SGDR, ICLR 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts: the
first round has the whole rate, and `final_factor` would be the factor of round T + 1, so no round trains with rate 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from fedrec_app.errors import ConfigError, unknown
from fedrec_app.options import parse_options, validate_options


class Constant(BaseModel):
    """The whole rate in every round; also what all schedules have in common.

    Attributes:
        warmup_rounds: rounds in which the rate grows to its whole size.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    warmup_rounds: int = Field(default=0, ge=0)

    def at(self, done: int, total: int) -> float:
        """Returns the factor when `done` of the `total` rounds after the warm-up have been done, done < total."""
        return 1.0


class Step(Constant):
    """A rate that is cut every so many rounds.

    Attributes:
        every: rounds from one cut to the next.
        factor: what each cut multiplies the rate by.
    """

    every: int = Field(ge=1)
    factor: float = Field(gt=0, le=1)

    def at(self, done: int, total: int) -> float:
        """Returns `factor` to the power of the cuts so far."""
        return self.factor ** (done // self.every)


class Cosine(Constant):
    """A rate that falls along half a period of a cosine.

    Attributes:
        final_factor: what the factor falls to.
    """

    final_factor: float = Field(default=0.0, ge=0, le=1)

    def at(self, done: int, total: int) -> float:
        """Returns SGDR's equation 5 at T_cur = done, T_i = total."""
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * done / total)) / 2


SCHEDULES: Mapping[str, type[Constant]] = {"constant": Constant, "cosine": Cosine, "step": Step}


@dataclass(frozen=True)
class Schedule:
    """Factors of a rate by round: a shape behind its warm-up."""

    shape: Constant = field(default_factory=Constant)

    @classmethod
    def parse(cls, text: str, key: str) -> Schedule:
        """Returns the schedule that a setting asks for.

        Args:
            text: a name, "cosine", or a JSON object with a name and options, '{"name": "cosine", "warmup_rounds": 5}'.
            key: the setting, for the error.

        Raises:
            ConfigError: there is no such schedule or option, or a value does not fit.
        """
        name, options = text, {}
        if text.lstrip().startswith("{"):
            options = parse_options(text, key)
            name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f'{key} is {text!r}: a "name" is expected, one of {", ".join(SCHEDULES)}')
        if name not in SCHEDULES:
            raise ConfigError(unknown(key, name, SCHEDULES))
        return cls(validate_options(SCHEDULES[name], options, f"{key} {name!r}"))

    def factor(self, server_round: int, num_rounds: int) -> float:
        """Returns what a rate is multiplied by, from 0 to 1.

        Args:
            server_round: from 1.
            num_rounds: of the whole run; later rounds keep the factor of the last.
        """
        at, warmup = min(server_round, num_rounds), self.shape.warmup_rounds
        return at / (warmup + 1) if at <= warmup else self.shape.at(at - 1 - warmup, num_rounds - warmup)
