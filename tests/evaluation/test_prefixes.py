"""What is shared is computed once, and the numbers are those of each sequence alone, on every supported class."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CLASSES, SHAPE

from frbio_lite import recipe
from frbio_lite.evaluation import prefixes, scoring
from frbio_lite.evaluation.prefixes import Group, Request, plan, row_mask, shares
from frbio_lite.evaluation.scoring import log_likelihoods
from frbio_lite.model import attach_lora, load_model

VOCABULARY = 320
KINDS = {**CLASSES, "mistral, sliding": (*CLASSES["mistral"][:2], {"sliding_window": 16})}


def make(kind: str, **shape: int) -> Any:
    config_class, model_class, extra = KINDS[kind]
    torch.manual_seed(0)
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = model_class(config_class(tie_word_embeddings=True, **ids, **{**SHAPE, **shape}, **extra)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.2)
    return model


@torch.no_grad()
def naive(model: Any, request: Request) -> float:
    """One sequence, all logits, no mask, no cache."""
    every = model(input_ids=torch.tensor([request.tokens[:-1]])).logits[0].float().log_softmax(-1)
    return sum(every[i - 1, request.tokens[i]].item() for i in range(len(request.tokens))[-request.scored :])


def drawn(rng: random.Random, low: int, high: int | None = None) -> list[int]:
    return [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(low, high or low))]


def workload(rng: random.Random) -> list[Request]:
    """Fixed examples before cases with several questions; letters; other texts; repeats; all in random order."""
    shots = drawn(rng, 60)
    requests = []
    for _ in range(4):
        case = shots + drawn(rng, 30)
        for _ in range(4):
            context = case + drawn(rng, 1, 20)
            requests += [Request(context + c, len(c)) for c in (drawn(rng, 1, 12) for _ in range(4))]
    for _ in range(12):
        context = shots + drawn(rng, 2, 20)
        requests += [Request([*context, token], 1) for token in drawn(rng, 4)]
    for _ in range(4):
        text = drawn(rng, 50, 150)  # documents, and what begins as they do
        requests += [Request(text, len(text) - 1), Request(text[:40], 20), Request([*text[:40], 5], 20)]
    context = drawn(rng, 10)
    requests += [Request(context + [7, 8, 9][:n], n) for n in (1, 2, 3)]  # one choice begins another
    requests += [requests[0], Request([3, 4], 1), Request([3, 4, 5], 2)]
    rng.shuffle(requests)
    return requests


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("branch, budget", [(8, 40), (64, 600), (512, 2048)])
def test_equals_each_sequence_alone(kind: str, branch: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are longer than the sliding windows of 16; small rooms make prefixes that extend prefixes."""
    monkeypatch.setattr(prefixes, "BRANCH_TOKENS", branch)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", budget)
    model, requests = make(kind), workload(random.Random())
    assert shares(model)
    depths = {len(group.prefix) for group in plan(requests)}
    assert (branch == 512) or (60 in depths and max(depths) >= (90 if branch == 8 else 60))
    expected = [naive(model, request) for request in requests]
    np.testing.assert_allclose(log_likelihoods(model, requests), expected, atol=1e-4, rtol=0)


def test_without_our_masks_the_numbers_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a choice that saw the others would fail the test above."""
    model, requests = make("qwen3"), workload(random.Random(3))
    blind = lambda *arguments: np.tril(np.ones_like(row_mask(*arguments)), arguments[2])  # noqa: E731
    monkeypatch.setattr(scoring, "row_mask", blind)
    expected = np.array([naive(model, request) for request in requests])
    assert np.abs(log_likelihoods(model, requests) - expected).max() > 0.1


def test_bf16_stays_close() -> None:
    model, requests = make("gemma3").to(torch.bfloat16), workload(random.Random(1))
    expected = np.array([naive(model, request) for request in requests])
    found = log_likelihoods(model, requests)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_adapter_on_a_4_bit_base(tmp_path: Path) -> None:
    make("qwen3", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path)
    base = load_model(tmp_path, dtype=torch.float32, device=torch.device("cpu"), nf4=True)
    before = np.array([naive(base, request) for request in workload(random.Random(1))])
    model = attach_lora(base, recipe.Lora(rank=4, alpha=8), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.2)
    requests = workload(random.Random(1))
    expected = np.array([naive(model, request) for request in requests])
    assert np.abs(expected - before).max() > 0.1  # the adapter is at work
    # the kernels of 4-bit layers differ with the number of rows
    np.testing.assert_allclose(log_likelihoods(model, requests), expected, atol=2e-2, rtol=0)


def test_architectures_we_do_not_know_share_nothing_but_causal_rows() -> None:
    model = make("llama")
    model.config.model_type = "something_new"
    requests = workload(random.Random())
    assert not shares(model)
    assert all(not group.masked and not len(group.prefix) for group in plan(requests, share=False))
    expected = [naive(model, request) for request in requests]
    np.testing.assert_allclose(log_likelihoods(model, requests), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", ["attention", "rope"])
def test_what_our_masks_would_spoil_is_left_alone(change: str) -> None:
    model = make("llama")
    if change == "attention":
        model.config._attn_implementation = "flash_attention_2"
    else:
        model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert not shares(model)


def tokens_run(groups: list[Group]) -> int:
    before = sum(len(g.prefix) - (len(g.parent.prefix) if g.parent else 0) for g in groups)
    return before + sum(row.width for group in groups for row in group.rows)


def trie_size(requests: list[Request]) -> int:
    return len({tuple(r.tokens[: i + 1]) for r in requests for i in range(len(r.tokens) - 1)})


@pytest.mark.parametrize("seed", range(3))
def test_plan_covers_every_request_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "BRANCH_TOKENS", (8, 64, 512)[seed])
    requests = workload(random.Random(seed))
    groups = plan(requests)
    owned = np.concatenate([part.owners for g in groups for row in g.rows for part in row.parts])
    counts = np.bincount(owned, minlength=len(requests))
    assert counts.tolist() == [r.scored for r in requests]
    for number, group in enumerate(groups):
        widths = [row.width for row in group.rows]
        assert widths == sorted(widths, reverse=True)
        if group.parent is not None:
            assert group.parent in groups[:number]
            assert group.prefix[: len(group.parent.prefix)].tolist() == group.parent.prefix.tolist()
            assert len(group.prefix) > len(group.parent.prefix)
        assert group.masked or (not len(group.prefix) and all(len(row.parts) == 1 for row in group.rows))


def test_fixed_examples_are_run_once() -> None:
    """Forty questions of four sentences each behind 400 tokens of examples: 4 times 40 × 430 tokens become few."""
    rng = random.Random(4)
    shots = drawn(rng, 400)
    contexts = [shots + drawn(rng, 30) for _ in range(40)]
    requests = [Request(c + choice, 10) for c in contexts for choice in (drawn(rng, 10) for _ in range(4))]
    groups = plan(requests)
    assert [len(g.prefix) for g in groups] == [400]
    assert tokens_run(groups) == trie_size(requests) < 3200


def test_drawn_examples_are_shared_by_the_choices_alone() -> None:
    rng = random.Random(4)
    contexts = [drawn(rng, 400) for _ in range(10)]
    requests = [Request(c + choice, 10) for c in contexts for choice in (drawn(rng, 10) for _ in range(4))]
    groups = plan(requests)
    assert tokens_run(groups) == 10 * (400 + 4 * 9) and not any(len(g.prefix) for g in groups)


def test_short_common_beginnings_are_not_worth_a_pass() -> None:
    """`Question :` before a hundred questions."""
    rng = random.Random(4)
    contexts = [[1, 2, 3, *drawn(rng, 100)] for _ in range(100)]
    requests = [Request([*context, token], 1) for context in contexts for token in (4, 5)]
    groups = plan(requests)
    assert not any(len(g.prefix) for g in groups) and not any(g.masked for g in groups)
    assert tokens_run(groups) == 100 * 103


def test_scored_tokens_are_never_in_a_prefix() -> None:
    """Many documents that begin alike: each token is scored, so nothing of them is only read."""
    rng = random.Random(4)
    head = drawn(rng, 300)
    requests = [Request([9, *head, *drawn(rng, 600)], 900) for _ in range(6)]
    assert all(len(group.prefix) == 0 for group in plan(requests))


def test_no_requests() -> None:
    assert plan([]) == []


def test_a_deep_trie_does_not_exhaust_the_stack() -> None:
    """A comb: each request parts from the next one token later."""
    requests = [Request([1] * n + [2, 3], 1) for n in range(1, 1500)]
    groups = plan(requests)
    owned = np.concatenate([part.owners for g in groups for row in g.rows for part in row.parts])
    assert sorted(owned.tolist()) == list(range(len(requests)))
