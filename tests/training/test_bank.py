"""The persistent bank of negatives."""

from __future__ import annotations

import torch

from pureebm.training.bank import Bank, rejuvenate


def test_a_draw_has_no_image_twice_and_put_changes_those_alone():
    bank = Bank(torch.zeros(20, 3, 2, 2))
    indices = bank.draw(8, torch.Generator().manual_seed(0))
    assert len(set(indices.tolist())) == 8
    bank.put(indices, torch.ones(8, 3, 2, 2))
    assert bank.images.sum((1, 2, 3)).nonzero().flatten().tolist() == sorted(indices.tolist())


def test_rejuvenation_takes_the_current_image_at_its_place_with_its_chance_and_noise():
    n, g = 20_000, torch.Generator().manual_seed(0)
    negatives, current = torch.full((n, 1, 2, 2), -5.0), torch.arange(n).float()[:, None, None, None].expand(n, 1, 2, 2)
    after = rejuvenate(negatives, current, 0.05, 0.02, g)
    taken = (after != -5).flatten(1).all(dim=1)
    assert abs(taken.float().mean().item() - 0.05) < 5 * (0.05 * 0.95 / n) ** 0.5
    assert (after[~taken] == -5).all()
    added = (after - current)[taken]
    assert added.abs().max() < 0.15 and abs(added.std().item() - 0.02) < 0.002


def test_rate_zero_and_one_are_all_or_nothing():
    negatives, current = torch.zeros(9, 3, 2, 2), torch.ones(9, 3, 2, 2)
    g = torch.Generator().manual_seed(0)
    assert torch.equal(rejuvenate(negatives, current, 0.0, 0.5, g), negatives)
    assert torch.equal(rejuvenate(negatives, current, 1.0, 0.0, g), current)
