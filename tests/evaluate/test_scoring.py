"""Log-likelihoods against a naive reference that scores one choice at a time, over every position, in fp32."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from eval_models import POSITIONS, SENTENCES, reference

from frbio_lite.errors import RequestError
from frbio_lite.evaluate import scoring
from frbio_lite.evaluate.scoring import Request, choice_requests, log_likelihoods, prefix_token, truncated, windows

CASES = [
    ("Question : où naît l'urine ?\nRéponse :", [" le rein", " la rate", " l’œil — µg ≥ 3"]),
    ("Réponse : ", ["le foie", "l'estomac"]),  # the space moves to the choice
    ("Réponse :\n\n  ", ["é", "中文", "🫀 cœur"]),
    ("", [" Paris", "Lyon", "à"]),  # nothing to go before: the prefix token
    ("   ", ["Metz", "Rennes et ses environs"]),
    (" ".join(SENTENCES * 3), [" oui", " non, jamais de la vie"]),  # longer than the context
]


def score(model: Any, tokenizer: Any, prompts: list[str], choices: list[list[str]]) -> list[list[float]]:
    made = choice_requests(tokenizer, prompts, choices)
    flat = iter(log_likelihoods(model, [truncated(r, POSITIONS) for requests in made for r in requests]))
    return [[float(next(flat)) for _ in requests] for requests in made]


@pytest.mark.parametrize("prompt, choices", CASES)
def test_equals_the_naive_reference(model: Any, tokenizer: Any, prompt: str, choices: list[str]) -> None:
    expected = [reference(model, tokenizer, prompt, c) for c in choices]
    assert min(expected) < -1.0
    np.testing.assert_allclose(score(model, tokenizer, [prompt], [choices])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [1, 70, 8192])
def test_batching_changes_nothing(model: Any, tokenizer: Any, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases at once, in fresh random order with random texts between, whatever a batch holds."""
    rng = random.Random()
    noise = [
        ("".join(rng.choices("abcdeéèà ’µ\n", k=rng.randint(1, 90))), [" x", " " + "yé" * rng.randint(1, 20)])
        for _ in range(20)
    ]
    cases = [*CASES, *noise]
    rng.shuffle(cases)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", budget)
    found = score(model, tokenizer, [p for p, _ in cases], [c for _, c in cases])
    for (prompt, choices), scores in zip(cases, found, strict=True):
        np.testing.assert_allclose(scores, [reference(model, tokenizer, prompt, c) for c in choices], atol=1e-5, rtol=0)


def test_logits_in_chunks(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head never sees more positions than the budget holds, and the sums do not change."""
    prompts, choices = [p for p, _ in CASES], [c for _, c in CASES]
    whole = score(model, tokenizer, prompts, choices)
    rows: list[int] = []
    original = scoring.token_losses

    def counted(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows.append(len(labels))
        return original(model, hidden, labels)

    monkeypatch.setattr(scoring, "token_losses", counted)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 420 * 3)
    chunked = score(model, tokenizer, prompts, choices)
    assert max(rows) == 3 and len(rows) > 5
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_only_scored_positions_reach_the_head(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = scoring.token_losses
    monkeypatch.setattr(scoring, "token_losses", lambda m, h, t: (rows.append(len(t)), original(m, h, t))[1])
    made = choice_requests(tokenizer, [CASES[0][0]], [CASES[0][1]])
    log_likelihoods(model, made[0])
    assert sum(rows) == sum(r.scored for r in made[0]) < sum(len(r.tokens) for r in made[0]) / 2


def test_padding_is_never_read(model: Any) -> None:
    """A request scored beside a longer one, and alone."""
    short, long = Request([5, 9, 11, 300], 2), Request(list(range(60)), 30)
    together = log_likelihoods(model, [short, long])
    np.testing.assert_allclose(together, [log_likelihoods(model, [r])[0] for r in (short, long)], atol=1e-5)


def test_truncation_keeps_the_end_and_the_whole_choice() -> None:
    request = Request(list(range(100)), 7)
    assert truncated(request, None) is request and truncated(request, 99) is request
    assert truncated(request, 98) == Request(list(range(1, 100)), 7)
    assert truncated(request, 7) == Request(list(range(92, 100)), 7)
    with pytest.raises(RequestError, match="7 tokens does not fit the model's 6 positions"):
        truncated(request, 6)


@pytest.mark.parametrize("count", [1, 9, 10, 11, 20, 21, 57])
def test_windows_score_each_token_once(count: int) -> None:
    tokens = random.sample(range(1000, 2000), count)
    made = windows(tokens, 7, 10)
    assert [t for r in made for t in r.tokens[len(r.tokens) - r.scored :]] == tokens
    assert all(r.tokens[0] == 7 and 1 <= r.scored <= 10 for r in made)
    assert len(made[0].tokens) == made[0].scored + 1
    for before, after in pairwise(made):  # a later window reads the token before it
        assert after.tokens[1] == before.tokens[-1] and len(after.tokens) == after.scored + 2


def test_choice_without_tokens(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="adds no token"):
        choice_requests(tokenizer, ["Réponse :"], [[" oui", ""]])


def test_prefix_token(tokenizer: Any) -> None:
    class Fake:
        bos_token_id: int | None = 3
        eos_token_id: int | None = 4

    assert prefix_token(tokenizer) == tokenizer.eos_token_id and prefix_token(Fake()) == 3
    Fake.bos_token_id = Fake.eos_token_id = None
    with pytest.raises(RequestError, match="neither"):
        prefix_token(Fake())
