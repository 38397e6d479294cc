"""Item-based nearest neighbours by the cosine of who met two items.

Item-Based Collaborative Filtering Recommendation Algorithms, Sarwar et al., WWW 2001. With c_ij the users who met both
items, the similarity is c_ij / (sqrt(c_ii c_jj) + shrinkage); of each item the k most similar ones count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.models.item_item import ItemItem, ItemItemOptions


class ItemKnn(ItemItem):
    """The sum of similarities to the items of the history."""

    name = "itemknn"
    summary_line = "item-based nearest neighbours by cosine, in one round (Sarwar et al., WWW 2001)"

    class Options(ItemItemOptions):
        """Options of nearest neighbours."""

        neighbors: int = Field(default=100, ge=1, description="k, most similar items that count for each item")
        shrinkage: float = Field(default=0.0, ge=0, description="users added to the denominator, against chance")

    def columns(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the similarities."""
        norms = np.sqrt(gram.diagonal())
        gram /= norms[:, None] * norms + self.options.shrinkage
        return gram
