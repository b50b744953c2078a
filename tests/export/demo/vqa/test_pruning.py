"""MADTP's rule against a plain loop over its formulas, and against pruning that is none."""

import numpy as np
import pytest
import torch

from catp.export.demo.vqa.batches import VqaBatches
from catp.export.demo.vqa.costs import vision_macs
from catp.export.demo.vqa.forward import answer_logits, image_embeds, question_embeds
from catp.export.demo.vqa.pruning import TokenPruning
from catp.export.demo.vqa.untrained import PAD, make_model, make_processor

BATCH, HEADS, TOKENS, WIDTH, SLOTS = 3, 2, 13, 8, 5


@pytest.fixture(scope="module")
def world():  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    processor = make_processor()
    model = make_model(len(processor.tokenizer)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "text" in name and parameter.ndim == 2:
                parameter.normal_(0, 0.1)  # else every question looks alike
    batch = VqaBatches(processor, "train", 1, 3, 4, seed=0)[0]
    return model, batch, torch.randn(100, 128) * 0.1


def by_the_formulas(x: np.ndarray, y: np.ndarray, a: np.ndarray, o: np.ndarray, d: np.ndarray, tau: float):  # type: ignore[no-untyped-def]
    """Kept positions (of tokens 1..N) and the merged row of one sample, entry by entry."""
    n = len(x) - 1
    m = np.array([[x[1 + j] @ row for row in d] for j in range(n)])
    s = np.array([sum(a[:, i, 1 + j].max() for i in range(1, n + 1)) for j in range(n)])
    guided = m.max(1)
    norms = np.linalg.norm(o[:, 1:], axis=-1)
    c = np.array([sum(a[h, 0, 1 + j] * norms[h, j] / norms[:, j].sum() for h in range(len(a))) for j in range(n)])
    total = (s / s.sum() + guided / guided.sum() + c) / 3
    p = np.exp(m / tau) / np.exp(m / tau).sum(0)
    threshold = min((p[:, t] * total).sum() for t in range(len(d)))
    k = int((total > threshold).sum())
    if k < 1 or n - k <= 1:
        return list(range(n)), None
    order = np.argsort(-total)
    dropped = order[k:]
    return sorted(order[:k].tolist()), (total[dropped] / total[dropped].sum()) @ y[1 + dropped]


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
def test_it_keeps_and_merges_what_the_formulas_say(tau: float) -> None:
    generator = torch.Generator().manual_seed(int(tau * 100))
    x, y = (torch.randn(BATCH, TOKENS, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    a = torch.randn(BATCH, HEADS, TOKENS, TOKENS, generator=generator, dtype=torch.float64).mul(2).softmax(-1)
    o = torch.randn(BATCH, HEADS, TOKENS, WIDTH // HEADS, generator=generator, dtype=torch.float64)
    d = torch.randn(SLOTS, WIDTH, generator=generator, dtype=torch.float64)
    pruning = TokenPruning(d, tau)
    rows, valid = pruning.prune(x, y, a, o, torch.ones(BATCH, TOKENS, dtype=torch.bool))
    counts = set()
    for b in range(BATCH):
        kept, merged = by_the_formulas(*(t[b].float().double().numpy() for t in (x, y, a, o)), d.numpy(), tau)
        wanted = [y[b, 0], *y[b, 1:][kept], *([torch.from_numpy(merged)] if merged is not None else [])]
        found = rows[b][valid[b]]
        # The order of the kept ones is free: rows are compared as a set.
        distance = torch.cdist(torch.stack(wanted), found)
        assert len(wanted) == len(found) == int(pruning.after[0][b])
        assert distance.amin(1).max() < 1e-6
        assert distance[0, 0] < 1e-9
        if merged is not None:
            assert distance[-1].argmin() == len(found) - 1
        counts.add(len(found))
    assert tau < 0.5 or max(counts) < TOKENS  # it did prune


def test_without_pruning_it_is_hugging_faces_model(world) -> None:  # type: ignore[no-untyped-def]
    model, batch, _ = world
    with torch.no_grad():
        image, valid = image_embeds(model, batch.pixel_values)
        question, question_valid = question_embeds(model, batch.questions, image, valid)
        logits = answer_logits(model, batch.answers, question, question_valid)
        for b in range(len(batch.questions)):
            ids = batch.questions[b, 1]
            ids = ids[ids != PAD][None]
            mask = torch.ones_like(ids)
            theirs = model.vision_model(batch.pixel_values[b : b + 1]).last_hidden_state
            text = model.text_encoder(
                input_ids=ids, attention_mask=mask, encoder_hidden_states=theirs,
                encoder_attention_mask=torch.ones(1, theirs.shape[1], dtype=torch.long),
            ).last_hidden_state  # fmt: skip
            answer = model.text_decoder(
                input_ids=batch.answers[b, 1][None], encoder_hidden_states=text, encoder_attention_mask=mask
            ).logits[0]
            assert (image[b] - theirs[0]).abs().max() < 1e-5
            assert (logits[b, 1] - answer).abs().max() < 1e-4
            assert answer.abs().max() > 0.1


def test_a_question_in_a_batch_is_pruned_as_if_it_was_alone(world) -> None:  # type: ignore[no-untyped-def]
    model, batch, dictionary = world
    with torch.no_grad():
        vision, text = TokenPruning(dictionary, 1.0), TokenPruning(dictionary, 1.0)
        question, _ = question_embeds(model, batch.questions, *image_embeds(model, batch.pixel_values, vision), text)
        assert len({int(count) for count in vision.after[-1]}) > 1  # else padding is not tried
        for b in range(len(batch.questions)):
            own, words = TokenPruning(dictionary, 1.0), TokenPruning(dictionary, 1.0)
            image = image_embeds(model, batch.pixel_values[b : b + 1], own)
            ids = batch.questions[b, 0]
            alone, _ = question_embeds(model, ids[ids != PAD][None, None], *image, words)
            row = b * batch.questions.shape[1]
            assert (alone[0, 0] - question[row, 0]).abs().max() < 1e-4
            assert [int(c[0]) for c in own.after] == [int(c[b]) for c in vision.after]
            assert [int(c[0]) for c in words.after] == [int(c[row]) for c in text.after]


def test_coupled_pictures_keep_as_many_as_the_one_that_keeps_most(world) -> None:  # type: ignore[no-untyped-def]
    model, batch, dictionary = world
    alone, coupled = TokenPruning(dictionary, 1.0), TokenPruning(dictionary, 1.0, coupled=True)
    with torch.no_grad():
        image_embeds(model, batch.pixel_values, alone)
        embeds, valid = image_embeds(model, batch.pixel_values, coupled)
    assert valid.all()
    assert int(coupled.after[0][0]) == int(alone.after[0].max())
    assert embeds.shape[1] == int(coupled.after[-1][0])


def test_the_dictionary_learns_through_what_is_merged(world) -> None:  # type: ignore[no-untyped-def]
    model, batch, dictionary = world
    learned = torch.nn.Parameter(dictionary.clone())
    embeds, _ = image_embeds(model, batch.pixel_values, TokenPruning(learned, 1.0))
    embeds[:, 0].pow(2).sum().backward()
    assert learned.grad is not None and learned.grad.abs().sum() > 0


def test_operations_are_those_of_the_tokens(world) -> None:  # type: ignore[no-untyped-def]
    model, batch, dictionary = world
    dense = float(vision_macs(model, None)[0])
    linear = sum(p.numel() for n, p in model.vision_model.named_parameters() if n.endswith("weight") and p.ndim == 2)
    patch = model.vision_model.embeddings.patch_embedding.weight.numel()
    assert dense == 145 * linear + 144 * patch + 6 * 2 * 145**2 * 128
    off = TokenPruning(dictionary, 0.0)
    with torch.no_grad():
        image_embeds(model, batch.pixel_values, off)
    assert float(vision_macs(model, off)[0]) == dense + 6 * 144 * 128 * 100
