"""Windows and their batches: boundaries, order, the same after a restart."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packing_cases import text, tokenised
from transformers import PreTrainedTokenizerFast

from frbio_lite import training
from frbio_lite.errors import RequestError
from frbio_lite.packing import IGNORED, PackedTokens, plan_windows, window_order, write_windows
from frbio_lite.recipe import Optimizer, Train


def test_labels_and_positions_at_every_boundary(packed: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [text(random.randint(1, 60)) for _ in range(101)]
    if sum(map(len, tokenised(tokenizer, texts))) % 31 == 0:
        texts.append("")  # one more token, so that some padding is left to look at
    data, _ = packed([(t, "train", 0) for t in texts], 31)
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


def test_the_order_is_remembered_and_right(packed: Any) -> None:
    data, _ = packed([(text(200), "train", 0) for _ in range(40)], 32)
    for epoch, seed in [(0, 1), (1, 1), (0, 1), (0, 2), (0, 2)]:
        assert list(data.order(epoch, seed)) == window_order(data.windows, epoch, seed).tolist()
    assert data.order(0, 2) is data.order(0, 2)


def test_training_reads_the_same_windows_after_a_restart_at_any_step(packed: Any, tmp_path: Path) -> None:
    packed([(text(random.randint(20, 300)), "train", 0) for _ in range(90)], 32)
    (place,) = (p.parent for p in tmp_path.rglob("tokens.npy"))
    data, how = (
        PackedTokens(place),
        Train(method="full", epochs=3, tokens_per_step=32 * 7, optimizer=Optimizer(learning_rate=1.0)),
    )
    steps = training.total_steps(how, data)
    straight = [data.batch(training.step_windows(data, how, step, seed=5)) for step in range(steps)]
    for step in random.sample(range(steps), 25):  # each by a reader that has read nothing before
        again = PackedTokens(place)
        batch = again.batch(training.step_windows(again, how, step, seed=5))
        assert all(torch.equal(batch[key], straight[step][key]) for key in batch)
    read = Counter(tuple(row) for batch in straight for row in batch["input_ids"].tolist())
    whole = Counter(map(tuple, data.batch(range(data.windows))["input_ids"].tolist()))
    assert read == {row: 3 * n for row, n in whole.items()}


def test_a_stream_that_ends_early_is_no_padding(tmp_path: Path) -> None:
    np.arange(90, dtype=np.uint16).tofile(tmp_path / "stream")
    plan, _ = plan_windows(np.array([0, 50]), np.array([50, 50]), 32)
    with pytest.raises(OSError, match="ended early"):
        write_windows(tmp_path, tmp_path / "stream", np.dtype(np.uint16), plan, 32, 0)


def test_files_that_do_not_belong_together(packed: Any, tmp_path: Path) -> None:
    packed([(text(200), "train", 0) for _ in range(20)], 32)
    (place,) = (p.parent for p in tmp_path.rglob("tokens.npy"))
    whole = {p.name: p.read_bytes() for p in place.iterdir()}
    lengths, offsets = (np.load(place / f"piece_{name}.npy") for name in ("lengths", "offsets"))
    for name, content in [("piece_lengths.npy", lengths[:-1]), ("piece_offsets.npy", offsets[:-1])]:
        np.save(place / name, content)
        with pytest.raises(RequestError, match="not of one making"):
            PackedTokens(place)
        (place / name).write_bytes(whole[name])
    for name, content in whole.items():
        (place / name).write_bytes(content[:-8])
        with pytest.raises(RequestError, match="holds no packed tokens"):
            PackedTokens(place)
        (place / name).write_bytes(content)
    assert PackedTokens(place).windows


def test_reading_starts_without_torch() -> None:
    code = "import sys, frbio_lite.packing; print(sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
