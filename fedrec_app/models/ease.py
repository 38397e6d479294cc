"""EASE: a linear autoencoder of item sets, in closed form.

Embarrassingly Shallow Autoencoders for Sparse Data, Steck, WWW 2019, https://arxiv.org/abs/1905.03375 (equations 8
and 9). With G = X^T X and P = (G + lambda I)^-1, B = I - P diag(1 / diag P). G is a sum over users, so one federated
round gives what a central computation gives.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from fedrec_app.models.item_item import ItemItem, ItemItemOptions


class Ease(ItemItem):
    """The linear autoencoder whose diagonal is zero."""

    name = "ease"
    summary_line = "linear autoencoder of item sets, in closed form and one round (Steck, WWW 2019)"

    class Options(ItemItemOptions):
        """Options of EASE."""

        regularization: float = Field(default=100.0, gt=0, description="lambda, L2 penalty on the weights")

    def columns(self, gram: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns -P / diag P, column by column."""
        gram[np.diag_indices(len(gram))] += self.options.regularization
        matrix = torch.from_numpy(gram)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:  # counts that no users have, which only the whole matrix shows: some node lied
            matrix.diagonal().add_(self.options.regularization + 2 * torch.linalg.eigvalsh(matrix)[0].abs())
            factor = torch.linalg.cholesky(matrix)
        inverse = torch.cholesky_inverse(factor).numpy()
        inverse /= -inverse.diagonal().copy()
        return inverse
