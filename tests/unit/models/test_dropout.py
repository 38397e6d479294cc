"""Dropout by (a user's number, the site, the cell): its rate, its mean, and what it does not depend on."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from fedrec_app.models.dropout import dropout
from tests.unit.models.slow_sasrec import is_kept

NOISE = torch.randint(0, 2**53, (400,), generator=torch.Generator().manual_seed(3))


def kept(rate: float, noise: torch.Tensor, site: int, *shape: int) -> torch.Tensor:
    return dropout(torch.ones(len(noise), *shape), rate, noise, site) > 0


def test_without_a_rate_or_noise_nothing_is_left_out() -> None:
    x = torch.randn(3, 4, 2)
    assert dropout(x, 0.0, NOISE[:3], 1) is x
    assert dropout(x, 0.9, None, 1) is x


@pytest.mark.parametrize("site", [0, 1, 7])
def test_cells_are_kept_by_splitmix_of_noise_site_and_place_from_the_end(site: int) -> None:
    noise = torch.tensor([0, 1, 2**53 - 1, 123456789012345])
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    found = dropout(x, 0.3, noise, site)
    for user, number in enumerate(noise.tolist()):
        for i in range(3):
            for j in range(5):
                expected = x[user, i, j] / 0.7 if is_kept(number, site, 15 - 5 * i - j, 0.3) else 0.0
                assert found[user, i, j] == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("noise", [NOISE, torch.arange(400)], ids=["drawn", "counted"])
def test_the_rate_is_right_everywhere_and_the_mean_is_kept(rate: float, noise: torch.Tensor) -> None:
    cells = kept(rate, noise, 2, 50, 8)
    sigma = (rate * (1 - rate)) ** 0.5
    assert abs(cells.float().mean() - (1 - rate)) < 4 * sigma / cells.numel() ** 0.5
    for axis, spread in ((0, 400), (1, 50 * 8), (2, 50 * 8)):
        shares = cells.float().flatten(1).mean(axis) if axis < 2 else cells.float().mean((0, 2))
        several = spread if axis < 2 else 400 * 8
        assert (shares - (1 - rate)).abs().max() < 5 * sigma / several**0.5
    mean = dropout(torch.ones(400, 50, 8), rate, noise, 2).mean()
    assert abs(mean - 1) < 4 * sigma / (1 - rate) / cells.numel() ** 0.5


def test_sites_users_and_neighbouring_cells_are_independent() -> None:
    one, other = kept(0.4, NOISE, 0, 50, 8), kept(0.4, NOISE, 1, 50, 8)
    pairs = {
        "sites": (one, other),
        "users": (one[1:], one[:-1]),
        "counted users": (kept(0.4, torch.arange(1, 400), 0, 50, 8), kept(0.4, torch.arange(399), 0, 50, 8)),
        "steps": (one[:, 1:], one[:, :-1]),
        "cells": (one[..., 1:], one[..., :-1]),
    }
    for name, (left, right) in pairs.items():
        both = (left & right).float().mean()
        assert abs(both - 0.36) < 5 * (0.36 * 0.64 / left.numel()) ** 0.5, name


def test_a_user_is_masked_alike_alone_beside_others_behind_padding_and_under_vmap() -> None:
    x = torch.randn(5, 6, 4)
    together = dropout(x, 0.4, NOISE[:5], 3)
    padded = dropout(torch.cat([torch.randn(5, 9, 4), x], dim=1), 0.4, NOISE[:5], 3)
    mapped = vmap(lambda cells, noise: dropout(cells[None], 0.4, noise[None], 3)[0])(x, NOISE[:5])
    assert torch.equal(padded[:, 9:], together)
    assert torch.equal(mapped, together)
    for user in range(5):
        assert torch.equal(dropout(x[user : user + 1], 0.4, NOISE[user : user + 1], 3)[0], together[user])
