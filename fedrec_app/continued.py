"""A new run that goes on where a finished one ended: `checkpoint.continue-from`.

Shared parameters start from its model, rows matched by item id, so that the catalog may have grown. Private rows start
from those of its best round: messages name the parent's lineage and round, and each node looks at home. Everything
else begins anew: data, rounds, the strategy's state. What the parent spent of its users' privacy is spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec_app.artifacts import RunFolder
from fedrec_app.config import RunConfig
from fedrec_app.errors import ConfigError, StateError
from fedrec_app.models.closed_form import ClosedForm
from fedrec_app.models.registry import make_model
from fedrec_app.pretrained import Start
from fedrec_app.privacy.accounting import rdp_epsilon
from fedrec_app.privacy.events import Gaussian
from fedrec_app.privacy.ledger import LEDGER, Ledger
from fedrec_app.private_state import Parent

SETTING = "checkpoint.continue-from"


@dataclass(frozen=True)
class Continued:
    """A finished run that a new one continues.

    Attributes:
        folder: of the finished run.
        parent: its lineage, and the round of its model.
        spent: what its ledger charged, where it was private.
        uncovered: what it has learnt without privacy: a folder or file, or "".
    """

    folder: RunFolder
    parent: Parent
    spent: tuple[Gaussian, ...] = ()
    uncovered: str = ""

    @classmethod
    def open(cls, config: RunConfig) -> Continued | None:
        """Returns the run that `checkpoint.continue-from` names, None where it names none.

        Args:
            config: of the new run, resolved.

        Raises:
            StateError: there is no such run, it did not complete, or its files are damaged.
            ConfigError: the new run's model is another one, or its privacy cannot be accounted for together.
        """
        if not config.checkpoint.continue_from:
            return None
        folder = RunFolder(Path(config.checkpoint.continue_from).expanduser())
        summary = folder.read_summary()
        if summary.get("status") != "completed":
            raise StateError(f"{SETTING}: the run in {folder.path} is {summary.get('status')!r}, not completed")
        _, made, _ = folder.read_model()
        settings = {**folder.read_config(), "model.init-from": "", SETTING: ""}
        _require_same_model(RunConfig.from_flat(settings), config, folder.path)
        try:
            parent = Parent.parse(f"{made.lineage}:{made.round}")
        except ValueError as error:
            raise StateError(f"{SETTING}: {folder.path} has no private state to go on from: {error}") from None
        spent, uncovered = _spent(folder, summary.get("privacy"), config)
        return cls(folder, parent, spent, uncovered)

    def to_json(self, start: Start | None) -> dict[str, Any]:
        """Returns it for summary.json.

        Args:
            start: what came of its shared parameters.
        """
        taken = start.to_json() if start else {}
        return {"run": str(self.folder.path), "lineage": self.parent.lineage, "round": self.parent.round, **taken}


def _require_same_model(then: RunConfig, now: RunConfig, path: Path) -> None:
    model = make_model(now.model)
    if isinstance(model, ClosedForm):
        raise ConfigError(
            f"{SETTING}: model {now.model.name!r} is solved from the data in one round: a new run without it is as good"
        )
    facts = [
        {"model.name": config.model.name, "model.embedding-dim": config.model.embedding_dim,
         "model.options": make_model(config.model).options.model_dump()}
        for config in (then, now)
    ]  # fmt: skip
    if differing := [
        f"{key} was {facts[0][key]!r} and is {facts[1][key]!r}" for key in facts[0] if facts[0][key] != facts[1][key]
    ]:
        raise ConfigError(f"{SETTING}: the run in {path} has another model: {'; '.join(differing)}")


def _spent(folder: RunFolder, privacy: Mapping[str, Any] | None, config: RunConfig) -> tuple[tuple[Gaussian, ...], str]:
    """Returns what the parent charged, each kind of release once with its count, and what it learnt uncovered."""
    unit = config.privacy.unit
    if unit == "none":
        return (), ""
    if unit == "example":
        raise ConfigError(
            f'{SETTING} does not go with privacy.unit="example": each node\'s ledger is of one lineage, and nobody '
            "would add up what both have released"
        )
    if not privacy:
        return (), str(folder.path)
    if privacy.get("unit") != unit:
        raise ConfigError(
            f"{SETTING}: the run in {folder.path} protected one {privacy.get('unit')}, this one protects one {unit}: "
            "their costs do not add up"
        )
    with Ledger.open(folder.path / LEDGER) as ledger:
        found, said = rdp_epsilon(ledger.events, float(privacy["delta"])), float(privacy["epsilon_rdp"])
        if found < said * (1 - 1e-9):
            raise StateError(
                f"{SETTING}: the ledger of {folder.path} adds up to an epsilon of {found:.4g} and its summary says "
                f"{said:.4g}: charges are missing from its end"
            )
        kinds = Counter[tuple[float, float]]()
        for event in ledger.events:
            kinds[event.noise_multiplier, event.sampling_rate] += event.count
    return tuple(Gaussian(noise, rate, count) for (noise, rate), count in kinds.items()), str(
        privacy.get("start", "")
    ).partition(": what it has learnt")[0]
