"""What a model of sequences asks of its batches beside `max_length` and `crop`."""

from __future__ import annotations

from dataclasses import dataclass

from fedrec_app.errors import ConfigError


@dataclass(frozen=True)
class SequenceRules:
    """How batches of sequences are made for a model, which has it as its attribute `sequence_rules`.

    Attributes:
        masked: items are hidden and predicted from all others (BERT4Rec, Sun et al., CIKM 2019); else each item
            predicts the next one.
        mask_share: share of items that are hidden, where some are.
        mask_last: share of epochs in which a masked history has its last item hidden, and no other.
        mask: share of epochs in which items are hidden and not asked for, to learn from less (CL4SRec, Xie et al., ICDE
            2022, section III-C).
        reorder: share of epochs in which a random part of the history is shuffled (the same section).
        negatives: items drawn for each user and epoch, uniformly and with replacement from the whole catalog, to be
            scored beside the targets; 0: none. With them item tables are cut to the rows met (see
            `Recommender.row_names`), unless the model says `whole_catalog`.

    Raises:
        ConfigError: a share is not one, or the number of negatives is below 0.
    """

    masked: bool = False
    mask_share: float = 0.2
    mask_last: float = 0.0
    mask: float = 0.0
    reorder: float = 0.0
    negatives: int = 0

    def __post_init__(self) -> None:
        for name in ("mask_share", "mask_last", "mask", "reorder"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(f"sequence_rules: {name} is {share}: it must be a share from 0 to 1")
        if self.negatives < 0:
            raise ConfigError(f"sequence_rules: negatives is {self.negatives}: it must be at least 0")
