"""Greedy generation equals transformers' own, token by token, whatever the batch; and it stops where it should."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from test_prefixes import KINDS, VOCABULARY, drawn, make

from frbio_lite.errors import RequestError
from frbio_lite.evaluation import generate as module
from frbio_lite.evaluation import scoring
from frbio_lite.evaluation.generate import ends, generate, generate_tokens

NEW = 24


def never(tokens: list[int]) -> bool:
    return False


def theirs(model: Any, prompt: list[int], end: int) -> list[int]:
    """transformers' greedy search on one prompt, without the end token."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=end,
        pad_token_id=end,
    )
    found: list[int] = out[0, len(prompt) :].tolist()
    return found[: found.index(end)] if end in found else found


def prompts_of(rng: random.Random, shared: int) -> list[list[int]]:
    head = drawn(rng, shared) if shared else []
    return [head + drawn(rng, 1, 60) for _ in range(12)]


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("shared", [0, 50])
@pytest.mark.parametrize("budget", [300, 4096])
def test_equals_transformers(kind: str, shared: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end token is one that comes early in some rows, so that rows leave the batch at different times."""
    monkeypatch.setattr(scoring, "BATCH_TOKENS", budget)
    model, prompts = make(kind), prompts_of(random.Random(9), shared)
    free = [theirs(model, prompt, VOCABULARY + 1) for prompt in prompts]
    end = free[0][NEW // 2]
    expected = [theirs(model, prompt, end) for prompt in prompts]
    assert len({len(tokens) for tokens in expected}) > 1
    assert generate_tokens(model, prompts, {end}, never, NEW) == expected
    assert generate_tokens(model, prompts, set(), never, NEW) == free


def test_an_architecture_we_do_not_know() -> None:
    model, prompts = make("llama"), prompts_of(random.Random(2), 0)[:3]
    expected = [theirs(model, prompt, 0) for prompt in prompts]
    model.config.model_type = "something_new"
    assert generate_tokens(model, prompts, {0}, never, NEW) == expected


def test_a_shared_beginning_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = module.hidden_states

    def counted(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(ids.numel())
        return real(model, ids, *rest)

    monkeypatch.setattr(module, "hidden_states", counted)
    rng = random.Random(3)
    head = drawn(rng, 100)
    same = [head + drawn(rng, 5) for _ in range(8)]
    generate_tokens(make("qwen3"), same, set(), never, 2)
    assert sizes == [8 * 5, 8]
    sizes.clear()
    generate_tokens(make("qwen3"), [head, head, [*head, 3]], set(), never, 1)  # each keeps a token of its own
    assert sizes == [3 * 2]


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, prompts = make("qwen3"), prompts_of(random.Random(4), 0)
    expected = generate_tokens(model, prompts, {0}, never, NEW)
    real, failed = module.hidden_states, list[int]()

    def small(model: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        if ids.shape[0] > 3:
            failed.append(ids.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, ids, *rest)

    monkeypatch.setattr(module, "hidden_states", small)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert generate_tokens(model, prompts, {0}, never, NEW) == expected
    assert failed[:2] == [12, 6] and "going on with 3 answers" in capsys.readouterr().err
    monkeypatch.setattr(module, "hidden_states", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(RequestError, match="does not hold one sequence"):
        generate_tokens(model, prompts[:1], {0}, never, NEW)


class Scripted:
    """Answers that are known: the text after a prompt is what `_batch` is told to say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, text: str) -> None:
        self.tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        self.steps = 0

        def say(model: Any, prompts: Any, ends: set[int], stopped: Any, limit: int) -> list[list[int]]:
            found: list[int] = []
            for token in self.tokens[:limit]:
                if token in ends:
                    break
                self.steps += 1
                found.append(token)
                if stopped(found):
                    break
            return [found for _ in prompts]

        monkeypatch.setattr(module, "generate_tokens", say)


@pytest.mark.parametrize(
    "text, stop, expected",
    [
        (" le rein\nQuestion : et puis", ["\n"], " le rein"),
        (" le rein. Question : et puis", ["Question :", "."], " le rein"),
        (" où naît l'œdème — µg 🫀 fin", ["🫀"], " où naît l'œdème — µg "),
        (" sans arrêt", ["\n", ""], " sans arrêt"),
        ("\nrien", ["\n"], ""),
        (" a<|end|> b", [], " a"),
    ],
)
def test_stop_strings(
    text: str, stop: list[str], expected: str, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = Scripted(monkeypatch, tokenizer, text)
    assert generate(model, tokenizer, [[1, 2]], stop, 50) == [expected]
    if stop and expected != text:
        assert scripted.steps < len(scripted.tokens) or text.endswith(stop[0])


def test_limits(model: Any, tokenizer: Any) -> None:
    """The tiny model has 64 positions: of a longer prompt the end is kept."""
    long = list(range(1, 101))
    assert (
        generate(model, tokenizer, [long, long[-60:]], [], 4)[0] == generate(model, tokenizer, [long[-60:]], [], 4)[0]
    )
    assert generate(model, tokenizer, [], [], 4) == []
    for count in (0, 64):
        with pytest.raises(RequestError, match=f"max_new_tokens {count}"):
            generate(model, tokenizer, [[1]], [], count)
    with pytest.raises(RequestError, match="no tokens"):
        generate(model, tokenizer, [[1], []], [], 4)


def test_ends_are_the_tokenizers_and_the_models(tokenizer: Any) -> None:
    model = make("llama")
    model.generation_config.eos_token_id = [5, 7]
    assert ends(model, tokenizer) == {tokenizer.eos_token_id, 5, 7}
    model.generation_config.eos_token_id = 5
    assert ends(model, tokenizer) == {tokenizer.eos_token_id, 5}
    model.generation_config = None
    assert ends(model, tokenizer) == {tokenizer.eos_token_id}
