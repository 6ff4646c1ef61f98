"""From texts to windows: no token lost, the tokens that the tokenizer gives, EOS and BOS where they belong."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packing_cases import Counting, pieces, text, tokenised
from tiny import FRENCH, build_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from frbio_lite.demo.base import make_tokenizer
from frbio_lite.evaluation.scoring import choice_requests
from frbio_lite.model import leading_tokens
from frbio_lite.packing import PackedTokens, stream


@pytest.mark.parametrize("length", [16, 33, 128, 509])
def test_no_token_is_lost(packed: Any, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
    sizes = [int(random.lognormvariate(4, 1.3)) + 1 for _ in range(150)]
    texts = [text(n) for n in (*sizes, 1, 1, 1, 8000)]
    data, figures = packed([(t, "train", 0) for t in texts], length)
    documents = tokenised(tokenizer, texts)
    parts = pieces(data)
    assert Counter(t for p in parts for t in p) == Counter(t for d in documents for t in d)
    assert sum(p.count(tokenizer.eos_token_id) for p in parts) == len(texts)
    assert all(tokenizer.eos_token_id not in p[:-1] for p in parts)
    tokens = sum(map(len, documents))
    assert figures["tokens"] == data.tokens == tokens and figures["documents"] == len(texts)
    assert data.windows == figures["windows"] == -(-tokens // length)  # no fewer windows could hold them
    assert figures["fill"] == tokens / (data.windows * length)
    assert figures["pieces"] == len(parts)


@pytest.mark.parametrize("length", [8, 64, 1000])
def test_each_token_of_each_document_comes_out_once_and_in_its_order(packed: Any, length: int) -> None:
    sizes = [int(random.lognormvariate(3.5, 1.5)) for _ in range(400)]
    data, _ = packed([("x" * n, "train", 0) for n in sizes], length, tokenizer=Counting())
    last = np.cumsum(sizes)
    found: list[int] = []
    for piece in pieces(data):
        body = piece[:-1] if piece[-1] == Counting.eos_token_id else piece
        found += body
        if body:
            assert body == list(range(body[0], body[-1] + 1))
            assert np.searchsorted(last, body[0]) == np.searchsorted(last, body[-1])  # of one document
            assert len(body) == len(piece) or body[-1] in last  # EOS stands nowhere but at its end
    assert sorted(found) == list(range(1, sum(sizes) + 1))
    assert data.tokens == sum(sizes) + len(sizes)


def test_one_token_documents(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data, _ = packed([("a", "train", 0)] * 9 + [("", "train", 0)] * 3, 8)
    assert sorted(map(len, pieces(data))) == [1, 1, 1, *[2] * 9] and data.windows == 3


def test_a_huge_document_among_small_ones(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    huge = text(300_000)
    data, figures = packed([("abc", "train", 0), (huge, "train", 0), ("bcd", "train", 0)], 1024)
    assert figures["fill"] > 0.995
    parts = [p for p in pieces(data) if len(p) == 1024]
    assert Counter(t for p in pieces(data) for t in p) == Counter(
        t for d in tokenised(tokenizer, ["abc", huge, "bcd"]) for t in d
    )
    assert len(parts) >= figures["tokens"] // 1024 - 1


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_535, np.uint16), (65_536, np.uint32)])
def test_the_type_follows_the_vocabulary(packed: Any, tmp_path: Path, vocabulary: int, dtype: type) -> None:
    class Wide:
        """The last tokens of a vocabulary of this size; the real ones of that size are too large for a test."""

        eos_token_id = vocabulary - 1

        def __len__(self) -> int:
            return vocabulary

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[vocabulary - 2 - ord(c) % 7 for c in t] for t in texts]}

    data, _ = packed([("abcdefghij", "train", 0)] * 5, 8, tokenizer=Wide())
    assert np.load(next(tmp_path.rglob("tokens.npy"))).dtype == dtype
    assert int(data.batch([0])["input_ids"].max()) >= vocabulary - 9
    assert Counter(t for p in pieces(data) for t in p)[vocabulary - 1] == 5


def awkward(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    end = tokenizer.eos_token
    return [
        "",
        " ",
        "\n\n",
        f"{end}",
        f"a {end}{end} b",
        "µg/kg ≥ 2,5 ²",
        "\u0301e 𝕏 👩‍⚕️",
        "\tmg\r\n",
        *FRENCH,
        text(5000),
    ]


@pytest.mark.parametrize("kind", ["bytes", "words", "template", "cut"])
def test_tokens_are_those_that_a_call_of_the_tokenizer_gives(packed: Any, kind: str) -> None:
    tokenizer = make_tokenizer() if kind == "words" else build_tokenizer(FRENCH)
    if kind == "template":  # special tokens that a post-processor would add
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <|end|>", special_tokens=[("<|end|>", tokenizer.eos_token_id)]
        )
    texts = awkward(tokenizer) * 3
    random.shuffle(texts)
    expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if kind == "cut":  # as a tokenizer.json may be saved
        tokenizer.backend_tokenizer.enable_truncation(7)
        tokenizer.backend_tokenizer.enable_padding(length=50)
    data, figures = packed([(t, "train", 0) for t in texts], 16384, tokenizer=tokenizer)
    end = tokenizer.eos_token_id
    assert sorted(pieces(data)) == sorted([*ids, end] for ids in expected)
    assert figures["documents"] == len(texts)


@pytest.mark.parametrize("characters", [40, 130, 1000])
def test_long_documents_are_tokenised_in_parts_without_a_trace(
    packed: Any, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    tokenizer = make_tokenizer()
    texts = [
        random.choice(["\n", "\n\n", " "]).join(random.choices(FRENCH, k=random.randint(1, 40))) for _ in range(20)
    ]
    rows = [(t, "train", 0) for t in [*texts, "x" * 977, " " * 300]]  # the last two have no place to be cut at
    whole, figures = packed(rows, 4096, tokenizer=tokenizer)
    monkeypatch.setattr(stream, "BATCH_CHARACTERS", characters)
    monkeypatch.setattr(stream, "BATCH_TEXTS", 3)
    parts, again = packed(rows, 4096, tokenizer=tokenizer)
    assert again["documents"] == figures["documents"] == len(rows)
    assert sorted(map(tokenizer.decode, pieces(parts))) == sorted(map(tokenizer.decode, pieces(whole)))
    ours, theirs = ({tuple(p) for p in pieces(data) if len(set(p)) > 9} for data in (parts, whole))
    assert ours == theirs and len(ours) > 9  # token for token where a word starts somewhere


def test_text_that_spells_a_special_token_is_text(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data, _ = packed([(f"a{tokenizer.eos_token}b", "train", 0)] * 4, 16)
    assert sum(p.count(tokenizer.eos_token_id) for p in pieces(data)) == 4


def test_documents_begin_with_bos_where_the_tokenizer_puts_one(
    packed: Callable[..., tuple[PackedTokens, dict[str, Any]]],
) -> None:
    """Gemma and Llama put a begin-of-text token before every text and need it; Qwen has none."""
    plain = build_tokenizer(FRENCH)
    assert leading_tokens(plain) == []
    plain.add_special_tokens({"bos_token": "<bos>"})
    bos = plain.bos_token_id
    assert leading_tokens(plain) == []  # it has one and does not use it
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos)]
    )
    assert leading_tokens(plain) == [bos]
    request = choice_requests(plain, ["Réponse :"], [[" oui"]])[0][0]
    assert request.tokens[0] == bos and bos not in request.tokens[1:]
    data, _ = packed([("fièvre et toux", "train", 0), ("rien", "train", 0)], 64, tokenizer=plain)
    row = data.batch([0])["input_ids"][0].tolist()
    starts = [sum(data.pieces(0)[:i]) for i in range(len(data.pieces(0)))]
    assert len(starts) == 2 and [row[i] for i in starts] == [bos, bos] and row.count(bos) == 2
