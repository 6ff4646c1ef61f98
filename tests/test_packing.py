"""Packing: no token lost, no slot wasted, boundaries right, the shares that the recipe asks for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FRENCH, build_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from frbio_lite.errors import RequestError
from frbio_lite.evaluate.scoring import choice_requests
from frbio_lite.model import leading_tokens
from frbio_lite.packing import IGNORED, PackedTokens, pack, plan_windows, window_order
from frbio_lite.recipe import Packing, Source

CHARACTERS = "abcdefghij éèà.,"


def text(n: int) -> str:
    return "".join(random.choices(CHARACTERS, k=n))


def write_documents(directory: Path, rows: Sequence[tuple[str, str, int]], parts: int = 2) -> Path:
    """A Documents artifact of (text, split, recipe_source) rows, in several parts."""
    (directory / "documents").mkdir(parents=True)
    size = -(-len(rows) // parts)
    for i in range(parts):
        chosen = rows[i * size : (i + 1) * size]
        table = pa.table(
            {
                "text": pa.array([r[0] for r in chosen], pa.string()),
                "split": pa.array([r[1] for r in chosen], pa.string()),
                "recipe_source": pa.array([r[2] for r in chosen], pa.int32()),
            }
        )
        pq.write_table(table, directory / f"documents/part-{i:05d}.parquet")
    return directory


@pytest.fixture
def packed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., tuple[PackedTokens, dict[str, Any]]]:
    """`packed(rows, L, sources=…, seed=…)` → (PackedTokens, figures)."""
    count = iter(range(1000))

    def make(
        rows: Sequence[tuple[str, str, int]],
        length: int,
        sources: list[Source] | None = None,
        seed: int = 17,
        tokenizer: Any = tokenizer,
    ) -> tuple[PackedTokens, dict[str, Any]]:
        here = tmp_path / str(next(count))
        (here / "packed").mkdir(parents=True)
        figures = pack(
            write_documents(here / "corpus", rows),
            tokenizer,
            Packing(sequence_length=length),
            sources or [Source(path="a")],
            seed,
            here / "packed",
        )
        assert sorted(p.name for p in (here / "packed").iterdir()) == [
            "piece_lengths.npy",
            "piece_offsets.npy",
            "tokens.npy",
        ]
        return PackedTokens(here / "packed"), figures

    return make


def pieces(data: PackedTokens) -> list[list[int]]:
    batch = data.batch(range(data.windows))["input_ids"]
    found = []
    for window in range(data.windows):
        end = 0
        for length in data.pieces(window):
            found.append(batch[window, end : end + int(length)].tolist())
            end += int(length)
    return found


def whole_documents(parts: list[list[int]], documents: list[list[int]]) -> bool:
    """Whether the pieces can be put together to exactly these documents, each piece a contiguous slice used once.

    Random documents are long enough for a slice to fit one place; the shortest are compared as a multiset.
    """
    left = Counter(map(tuple, parts))
    for document in documents:
        if left[tuple(document)]:
            left[tuple(document)] -= 1
            continue
        start = 0
        while start < len(document):
            fitting = [p for p in +left if tuple(document[start : start + len(p)]) == p]
            if not fitting:
                return False
            best = max(fitting, key=len)
            left[best] -= 1
            start += len(best)
    return not +left


def tokenised(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


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
    assert whole_documents(parts, documents)
    tokens = sum(map(len, documents))
    assert figures["tokens"] == data.tokens == tokens and figures["documents"] == len(texts)
    assert data.windows == figures["windows"] == -(-tokens // length)  # no fewer windows could hold them
    assert figures["fill"] == tokens / (data.windows * length)
    assert figures["pieces"] == len(parts)


def test_the_check_for_lost_tokens_can_fail() -> None:
    documents = [[1, 2, 3, 0], [4, 5, 6, 7, 0]]
    assert whole_documents([[4, 5], [1, 2, 3, 0], [6, 7, 0]], documents)
    assert not whole_documents([[4, 5], [1, 2, 3, 0], [7, 6, 0]], documents)
    assert not whole_documents([[4, 5], [1, 2, 3, 0], [6, 7, 0], [3]], documents)
    assert not whole_documents([[4, 5], [1, 2, 3, 0]], documents)


@pytest.mark.parametrize("length", [512, 2048])
def test_realistic_lengths_fill_the_windows(length: int) -> None:
    lengths = np.array([int(random.lognormvariate(5.5, 1.2)) + 1 for _ in range(4000)], dtype=np.int64)
    plan, split = plan_windows(np.cumsum(lengths) - lengths, lengths, length)
    assert lengths.sum() / (len(plan) * length) >= 0.995
    assert split <= len(plan)


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(8, 40))
def test_any_plan_covers_each_token_once(sizes: list[int], length: int) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    plan, _ = plan_windows(starts, lengths, length)
    covered = sorted(t for window in plan for start, n in window for t in range(start, start + n))
    assert covered == list(range(sum(sizes)))
    assert len(plan) == -(-sum(sizes) // length)
    assert all(0 < sum(n for _, n in window) <= length and all(n > 0 for _, n in window) for window in plan)
    owner = np.repeat(np.arange(len(sizes)), lengths)
    assert all(owner[start] == owner[start + n - 1] for window in plan for start, n in window)


def test_labels_and_positions_at_every_boundary(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data, _ = packed([(text(random.randint(1, 60)), "train", 0) for _ in range(101)], 31)
    batch = data.batch(range(data.windows))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == dict.fromkeys(
        ("input_ids", "position_ids", "labels"), (torch.Size([data.windows, 31]), torch.int64)
    )
    padded = 0
    for w in range(data.windows):
        ids = batch["input_ids"][w].tolist()
        labels, positions, end = [], [], 0
        for n in map(int, data.pieces(w)):
            labels += [*ids[end + 1 : end + n], IGNORED]
            positions += range(n)
            end += n
        padding = 31 - end
        padded += padding
        assert batch["labels"][w].tolist() == labels + [IGNORED] * padding
        assert batch["position_ids"][w].tolist() == positions + list(range(padding))
        assert ids[end:] == [tokenizer.eos_token_id] * padding
    assert 0 < padded < 31

    free = data.batch(range(data.windows), document_mask=False)
    for w in range(data.windows):
        ids, end = free["input_ids"][w].tolist(), int(data.pieces(w).sum())
        assert free["position_ids"][w].tolist() == list(range(31))
        assert free["labels"][w].tolist() == [*ids[1:end], *[IGNORED] * (31 - end + 1)]


def test_a_batch_is_those_windows_in_that_order(packed: Any) -> None:
    data, _ = packed([(text(200), "train", 0) for _ in range(20)], 32)
    every = data.batch(range(data.windows))
    some = [5, 0, 7, 5]
    for key, value in data.batch(some).items():
        assert torch.equal(value, every[key][some])
    assert torch.equal(data.batch(np.array(some))["labels"], every["labels"][some])


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


def test_the_seed_decides_the_order_and_nothing_else(packed: Any) -> None:
    rows = [(text(random.randint(1, 300)), "train", 0) for _ in range(80)]
    (a, x), (b, y), (c, z) = (packed(rows, 64, seed=s) for s in (1, 1, 2))
    assert x == y == z
    first, same, other = (d.batch(range(d.windows))["input_ids"] for d in (a, b, c))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert Counter(map(tuple, first.tolist())) == Counter(map(tuple, other.tolist()))


def test_window_order() -> None:
    orders = {(e, s): window_order(500, e, s).tolist() for e in (0, 1) for s in (1, 2)}
    assert all(sorted(o) == list(range(500)) for o in orders.values())
    assert len(set(map(tuple, orders.values()))) == 4
    assert window_order(500, 1, 2).tolist() == orders[1, 2]


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


def test_text_that_spells_a_special_token_is_text(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    data, _ = packed([(f"a{tokenizer.eos_token}b", "train", 0)] * 4, 16)
    assert sum(p.count(tokenizer.eos_token_id) for p in pieces(data)) == 4


def test_only_training_documents_of_trained_sources(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [("aaa", "train", 0), ("bbb", "validation", 0), ("ccc", "test", 0), ("ddd", "train", 1), ("eee", "train", 0)]
    data, figures = packed(rows, 8, [Source(path="a"), Source(path="b", weight=0.0)])
    assert sorted(pieces(data)) == sorted(tokenised(tokenizer, ["aaa", "eee"]))
    nothing = {"documents": 0, "tokens": 0, "passes": 0.0, "share_wanted": 0.0, "share": 0.0}
    assert figures["sources"]["b"] == {"role": "domain", **nothing}


def rows_of(*sizes: int) -> list[tuple[str, str, int]]:
    """About this many characters from each source, in documents of 20 to 120."""
    rows = []
    for source, size in enumerate(sizes):
        while size > 0:
            n = random.randint(20, 120)
            rows.append((text(n), "train", source))
            size -= n
    return rows


@pytest.mark.parametrize(
    ("sizes", "weights", "roles", "shares", "passes"),
    [
        ((60_000, 40_000), (0.9, 0.1), "dr", (0.9, 0.1), (1, None)),  # replay subsampled
        ((60_000, 8_000), (0.8, 0.2), "dr", (0.8, 0.2), (1, None)),  # replay repeated
        ((60_000, 1_000), (0.8, 0.2), "dr", None, (1, 4)),  # four times at most
        ((60_000, 30_000), (None, 0.25), "dr", (0.75, 0.25), (1, None)),  # the rest is the domain
        ((50_000, 30_000, 40_000), (0.5, 0.4, 0.1), "ddr", (0.5, 0.4, 0.1), (1, None, None)),
        ((50_000, 30_000), (None, None), "dr", None, (1, 1)),
        ((50_000, 30_000), (0.5, 0.0), "dr", (1.0, 0.0), (1, 0)),
        ((50_000, 30_000), (0.2, 0.1), "rr", (2 / 3, 1 / 3), (None, 1)),  # without any domain source
    ],
)
def test_shares(packed: Any, sizes: Any, weights: Any, roles: str, shares: Any, passes: Any) -> None:
    sources = [
        Source(path=f"s{i}", weight=w, role={"d": "domain", "r": "replay"}[r])
        for i, (w, r) in enumerate(zip(weights, roles, strict=True))
    ]
    data, figures = packed(rows_of(*sizes), 64, sources)
    found = [figures["sources"][s.name] for s in sources]
    assert sum(f["tokens"] for f in found) == figures["tokens"] == data.tokens
    for i, figure in enumerate(found):
        assert figure["share_wanted"] == weights[i]
        assert shares is None or figure["share"] == pytest.approx(shares[i], abs=0.01)
        assert passes[i] is None or figure["passes"] == pytest.approx(passes[i], abs=1e-9)
        if roles[i] == "d" and weights[i] != 0.0:
            assert figure["passes"] >= 1  # no domain document is lost


def test_repeated_documents_stand_in_the_windows_as_often(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [("a" * 30, "train", 0)] * 40 + [("b" * 7, "train", 1), ("c" * 7, "train", 1)]
    sources = [Source(path="a", weight=0.5), Source(path="b", weight=0.5, role="replay")]
    data, _ = packed(rows, 64, sources)
    counts = Counter(t for p in pieces(data) for t in p)
    (b,), (c,) = tokenizer(["b", "c"], add_special_tokens=False)["input_ids"]
    assert (
        counts[b] > 0
        and counts[b] == counts[c] == 4 * Counter(t for d in tokenised(tokenizer, ["b" * 7]) for t in d)[b]
    )


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        ([("abc", "train", 0)], [0.7, 0.4], "add up to 1.1"),
        ([("abc", "train", 0)], [1.0, None], "leaves none for s1"),
        ([("abc", "test", 0), ("abc", "train", 1)], [None, 0.0], "holds no training text"),
        ([("", "train", 0)], [None, None], "holds no training text"),
    ],
)
def test_bad_requests(packed: Any, rows: Any, weights: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        packed(rows, 16, [Source(path=f"s{i}", weight=w) for i, w in enumerate(weights)])


def test_a_tokenizer_without_eos(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(RequestError, match="no end-of-text token"):
        packed([("abc", "train", 0)], 16, tokenizer=without)


def test_directories_that_hold_something_else(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RequestError, match="no packed tokens"):
        PackedTokens(tmp_path)
    with pytest.raises(RequestError, match="no Documents artifact"):
        pack(tmp_path, tokenizer, Packing(sequence_length=16), [Source(path="a")], 1, tmp_path)
    assert not list(tmp_path.iterdir())


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
