"""Scoring rules and merges on tensors, against the formulas of the papers in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catp.export.encoder_pruning import RULES, TokenEvidence, make_rule
from catp.export.encoder_pruning.merges import MERGES, Chosen, Tokens
from catp.export.encoder_pruning.reference import LayerState, count_tokens, score_tokens
from catp.export.encoder_pruning.rules.madtp import wanted_tokens
from catp.runtime.errors import UsageError

B, H, N, D, W, T = 3, 2, 11, 4, 8, 5


@pytest.fixture(scope="module")
def evidence() -> TokenEvidence:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    maps = torch.softmax(2 * draw(B, H, 1 + N, 1 + N), -1)
    tokens, guide = draw(B, 1 + N, W), draw(T, W)
    return TokenEvidence(
        layer=1,
        layers=6,
        tokens=draw(B, N, W),
        keys=draw(B, H, 1 + N, D),
        maps=maps,
        cls_row=maps[:, :, 0],
        head_outputs=maps @ draw(B, H, 1 + N, D),
        guidance=tokens[:, 1:] @ guide.t(),
        scorer=draw(W),
        positions=torch.stack([torch.randperm(40, generator=generator)[:N] for _ in range(B)]),
    )


def state_of(evidence: TokenEvidence) -> LayerState:
    assert evidence.maps is not None and evidence.head_outputs is not None and evidence.guidance is not None
    # The products with the dictionary stand for tokens, and the dictionary for the identity: M is what both read.
    guidance = torch.cat([torch.zeros(B, 1, T), evidence.guidance], 1)
    parts = (evidence.maps, evidence.head_outputs, evidence.keys, guidance)
    assert evidence.scorer is not None
    after = torch.cat([torch.zeros(B, 1, W), evidence.tokens], 1).double().numpy()
    return LayerState(
        *(part.double().numpy() for part in parts),
        evidence.positions.numpy(),
        after,
        evidence.layer / evidence.layers,
        evidence.scorer.double().numpy(),
    )


@pytest.mark.parametrize("name", RULES)
def test_scores_are_those_of_the_paper(name: str, evidence: TokenEvidence) -> None:
    state = state_of(evidence)
    wanted = score_tokens(name, state, np.eye(T))  # type: ignore[arg-type]
    np.testing.assert_allclose(make_rule(name).scores(evidence).numpy(), wanted, rtol=2e-6, atol=1e-6)


def test_madtp_by_hand() -> None:
    """Two tokens, one head, uniform attention: s and m are halves and shares of M, c is CLS's probability."""
    third = torch.full((1, 1, 3, 3), 1 / 3)
    evidence = TokenEvidence(
        layer=0,
        layers=1,
        tokens=torch.zeros(1, 2, 1),
        keys=torch.zeros(1, 1, 3, 1),
        maps=third,
        cls_row=None,
        head_outputs=torch.ones(1, 1, 3, 1),
        guidance=torch.tensor([[[3.0], [1.0]]]),
        scorer=None,
        positions=torch.tensor([[0, 1]]),
    )
    scores = make_rule("madtp").scores(evidence)
    np.testing.assert_allclose(scores.numpy(), [[(0.5 + 0.75 + 1 / 3) / 3, (0.5 + 0.25 + 1 / 3) / 3]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 5.0])
def test_counts_are_those_of_the_batch(temperature: float, evidence: TokenEvidence) -> None:
    assert evidence.guidance is not None
    scores = make_rule("madtp").scores(evidence)
    found = wanted_tokens(scores, evidence.guidance, torch.tensor([temperature]))
    wanted, _ = count_tokens(scores.double().numpy(), evidence.guidance.double().numpy(), temperature)
    assert found.tolist() == [wanted]


def test_nothing_is_pruned_at_temperature_zero_or_where_one_token_would_go(evidence: TokenEvidence) -> None:
    assert evidence.guidance is not None
    scores = make_rule("madtp").scores(evidence)
    assert wanted_tokens(scores, evidence.guidance, torch.tensor([0.0])).tolist() == [N]
    # One token far below all others, which alone is not above the threshold.
    flat = torch.ones(1, N)
    flat[0, 3] = 0.5
    pointing = torch.full((1, N, 1), -30.0)
    pointing[0, 3] = 30.0
    assert wanted_tokens(flat, pointing, torch.tensor([1.0])).tolist() == [N]
    flat[0, 4] = 0.4
    assert wanted_tokens(flat, pointing, torch.tensor([1.0])).tolist() == [N - 2]


def merged(name: str, evidence: TokenEvidence, rule: str = "cls", kept: int = 6) -> tuple[Tokens, Tokens, Chosen]:
    generator = torch.Generator().manual_seed(2)
    sizes = torch.randint(1, 4, (B, N), generator=generator).float() if name == "nearest" else None
    tokens = Tokens(torch.randn(B, N, W, generator=generator), evidence.positions, sizes)
    scores = make_rule(rule).scores(evidence)
    settled, receivers = make_rule(rule).settle(scores, torch.tensor([kept]))
    indices = settled.topk(kept).indices
    chosen = Chosen(indices, scores, evidence.keys, receivers, None)
    return tokens, MERGES[name](tokens, chosen), chosen  # type: ignore[index]


def test_one_token_is_the_average_by_scores(evidence: TokenEvidence) -> None:
    tokens, found, chosen = merged("one", evidence)
    for row in range(B):
        kept = chosen.indices[row].tolist()
        rest = [token for token in range(N) if token not in kept]
        share = chosen.scores[row, rest] / chosen.scores[row, rest].sum()
        wanted = torch.cat([tokens.embeds[row, kept], (share[:, None] * tokens.embeds[row, rest]).sum(0)[None]])
        torch.testing.assert_close(found.embeds[row], wanted)
        assert found.positions[row].tolist() == [*tokens.positions[row, kept].tolist(), -1]


@pytest.mark.parametrize("rule", ["cls", "tome", "pitome"])
def test_nearest_is_the_average_by_sizes(rule: str, evidence: TokenEvidence) -> None:
    tokens, found, chosen = merged("nearest", evidence, rule, kept=7)
    assert tokens.sizes is not None and found.sizes is not None
    keys = torch.nn.functional.normalize(evidence.keys[:, :, 1:].mean(1), dim=-1)
    for row in range(B):
        kept = chosen.indices[row].tolist()
        receivers = {"cls": kept, "tome": list(range(1, N, 2)), "pitome": []}[rule]
        if rule == "pitome":  # the 2 x 4 of highest energy, which is the opposite of the score, alternate
            crowd = chosen.scores[row].argsort().tolist()[: 2 * (N - 7)]
            assert set(crowd[0::2]) == set(range(N)) - set(kept)
            receivers = crowd[1::2]
        groups = {token: [token] for token in kept}
        for token in set(range(N)) - set(kept):
            takers = [other for other in kept if other in receivers]
            groups[max(takers, key=lambda other: float(keys[row, other] @ keys[row, token]))].append(token)
        for place, token in enumerate(kept):
            weights = tokens.sizes[row, groups[token]]
            wanted = (weights[:, None] * tokens.embeds[row, groups[token]]).sum(0) / weights.sum()
            torch.testing.assert_close(found.embeds[row, place], wanted)
            assert found.sizes[row, place] == weights.sum()
    assert found.sizes.sum() == tokens.sizes.sum()


def test_dropped_tokens_are_gone(evidence: TokenEvidence) -> None:
    tokens, found, chosen = merged("drop", evidence)
    torch.testing.assert_close(found.embeds[1], tokens.embeds[1, chosen.indices[1]])
    assert found.embeds.shape == (B, 6, W)


def test_unknown_rule() -> None:
    with pytest.raises(
        UsageError, match=r"unknown; accepted: none, madtp, self-cls, cls, tome, pitome, norm, taught, random"
    ):
        make_rule("best")
