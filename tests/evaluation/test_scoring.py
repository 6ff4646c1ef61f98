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
from frbio_lite.evaluation import scoring
from frbio_lite.evaluation.scoring import Request, choice_requests, log_likelihoods, prefix_token, truncated, windows

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


@pytest.fixture
def head_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each call of the head was given."""
    rows: list[int] = []
    original = scoring.logits

    def counted(model: Any, hidden: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return original(model, hidden)

    monkeypatch.setattr(scoring, "logits", counted)
    return rows


def test_logits_in_chunks(model: Any, tokenizer: Any, head_rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The head never sees more positions than the budget holds, and the sums do not change."""
    prompts, choices = [p for p, _ in CASES], [c for _, c in CASES]
    whole = score(model, tokenizer, prompts, choices)
    head_rows.clear()
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 420 * 3)
    chunked = score(model, tokenizer, prompts, choices)
    assert max(head_rows) == 3 and len(head_rows) > 5
    for a, b in zip(whole, chunked, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_only_scored_positions_reach_the_head(model: Any, tokenizer: Any, head_rows: list[int]) -> None:
    requests = choice_requests(tokenizer, [CASES[0][0]], [CASES[0][1]])[0]
    log_likelihoods(model, requests)
    shared = len(requests) - 1  # the first token of every choice is read at the prompt's last
    assert 0 < sum(head_rows) <= sum(r.scored for r in requests) - shared


def test_one_token_choices_are_read_from_one_position(model: Any, head_rows: list[int]) -> None:
    found = log_likelihoods(model, [Request([5, 6, 7, token], 1) for token in range(420)])
    assert head_rows == [1]
    assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)


class Card:
    """A GPU that holds so many tokens: `hidden_states` that runs out of memory above it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: int) -> None:
        self.holds, self.sizes = holds, list[int]()
        self.real = scoring.hidden_states
        monkeypatch.setattr(scoring, "hidden_states", self.run)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    def run(self, model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        self.sizes.append(ids.numel())
        if ids.numel() > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.real(model, ids, *rest)


def test_out_of_memory_halves_the_batch(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    requests = [Request([rng.randrange(420) for _ in range(rng.randint(20, 40))], 3) for _ in range(40)]
    expected = log_likelihoods(model, requests)
    card = Card(monkeypatch, 100)
    np.testing.assert_allclose(log_likelihoods(model, requests), expected, atol=1e-5)
    assert sum(size > 100 for size in card.sizes) <= 5  # halved, and kept: 40 rows to 2 in five steps
    assert "out of memory, going on with" in capsys.readouterr().err


def test_out_of_memory_in_a_row_of_several_prompts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    shots = [rng.randrange(420) for _ in range(40)]
    requests = [Request(shots + [rng.randrange(420) for _ in range(12)], 2) for _ in range(60)]
    expected = log_likelihoods(model, requests)
    Card(monkeypatch, 45)  # the examples fit, and three prompts after them
    np.testing.assert_allclose(log_likelihoods(model, requests), expected, atol=1e-5)


def test_one_sequence_that_does_not_fit(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, 10)
    with pytest.raises(RequestError, match="does not hold one sequence of 30 tokens"):
        log_likelihoods(model, [Request(list(range(31)), 2)])


def test_batches_of_a_gpu_follow_its_free_memory(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 * 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)

    class OnCard:
        config = model.config

        def parameters(self) -> Any:
            yield type("P", (), {"device": torch.device("cuda", 0)})()

    monkeypatch.setattr(model.config, "hidden_size", 4096)
    monkeypatch.setattr(model.config, "intermediate_size", 12288)
    some = scoring.batch_tokens(OnCard())
    assert 2048 < some < 16_384
    assert scoring.batch_tokens(OnCard(), kept=2**20) < some / 2
    free = 64 * 2**20
    assert scoring.batch_tokens(OnCard()) == 1
    free = 2**40
    assert scoring.batch_tokens(OnCard()) == scoring.LARGEST_BATCH
    assert scoring.batch_tokens(model) == scoring.BATCH_TOKENS


def test_each_request_comes_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 30)
    rng = random.Random(2)
    requests = [Request([rng.randrange(9) for _ in range(rng.randint(2, 9))], 1) for _ in range(50)]
    batches = list(scoring.iter_log_likelihoods(model, requests))
    assert sorted(np.concatenate([done for done, _ in batches]).tolist()) == list(range(50)) and len(batches) > 3
    assert log_likelihoods(model, []).shape == (0,)


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
