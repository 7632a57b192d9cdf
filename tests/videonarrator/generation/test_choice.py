"""The next token: penalty, draw, likelihoods."""

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from videonarrator.generation.choice import draw, log_shares, penalised


def test_penalty_is_transformers_own():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(4, 50, generator=generator)
    ids = torch.randint(0, 50, (4, 30), generator=generator)
    seen = torch.zeros(4, 50, dtype=torch.bool).scatter(1, ids, True)
    for penalty in (1.0, 1.1, 3.0):
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
        assert penalised(scores, seen, penalty).equal(theirs)
        rows = torch.tensor([[penalty], [1.0], [2.0], [penalty]])
        mixed = penalised(scores, seen, rows)
        assert mixed[[0, 3]].equal(theirs[[0, 3]]) and mixed[1].equal(scores[1])
    assert not penalised(scores, seen, 1.1).equal(scores)


def test_what_is_drawn_follows_the_softmax():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0, -1.0, -torch.inf])
    assert draw(logits, 0.01, torch.Generator().manual_seed(1)) == 3
    generator = torch.Generator().manual_seed(2)
    drawn = torch.tensor([draw(logits, 0.7, generator) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=6) / 4000
    assert (shares - torch.softmax(logits / 0.7, 0)).abs().max() < 0.03
    assert shares[2] == 0 and shares[5] == 0


class Last:
    """A generator's place: its number is the largest there is."""

    @staticmethod
    def rand(*shape, **how):
        return torch.full((1,), 1 - 2**-53, dtype=torch.float64)


def test_what_has_no_chance_is_never_drawn(monkeypatch):
    """Not even where the random number is as large as can be."""
    monkeypatch.setattr("videonarrator.generation.choice.torch.rand", Last.rand)
    logits = torch.tensor([0.3, 0.1, -torch.inf, -torch.inf])
    assert draw(logits, 1.0, torch.Generator()) == 1


def test_likelihoods_of_groups():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    shares = log_shares(logits, [(1, 4), (7,)]).exp()
    chances = logits.softmax(-1)
    assert torch.allclose(shares, torch.stack([chances[:, 1] + chances[:, 4], chances[:, 7]], -1))
