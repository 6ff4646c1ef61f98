"""Documents packed into one window do not see each other: the loss is that of each document alone, on every supported class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CLASSES

from frbio_lite.model import hidden_states, load_model, logits, summed_loss
from frbio_lite.packing import PackedTokens

CPU = torch.device("cpu")


def window_losses(model: object, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss per position [B, L] of packed windows, in one pass."""
    scores = logits(model, hidden_states(model, batch["input_ids"], batch["position_ids"]))
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten(), reduction="none").view_as(
        batch["labels"]
    )


@pytest.mark.parametrize("kind", sorted(CLASSES))
@pytest.mark.parametrize("training", [False, True])
def test_packed_loss_equals_unpacked_loss(
    kind: str, training: bool, make_base: Callable[..., Path], make_packed: Callable[..., Path]
) -> None:
    model = load_model(make_base(kind), dtype=torch.float32, device=CPU).train(training)
    data = PackedTokens(make_packed(documents=30, sequence_length=64))
    batch = data.batch(range(data.windows))
    with torch.no_grad():
        packed = window_losses(model, batch)
        for row in range(data.windows):
            start = 0
            for length in data.pieces(row).tolist():
                ids = batch["input_ids"][row, start : start + length][None]
                alone = logits(model, hidden_states(model, ids))[0, :-1]
                expected = torch.nn.functional.cross_entropy(alone, ids[0, 1:], reduction="none")
                torch.testing.assert_close(packed[row, start : start + length - 1], expected, atol=1e-5, rtol=1e-5)
                start += length
        total = summed_loss(model, hidden_states(model, batch["input_ids"], batch["position_ids"]), batch["labels"])
        assert float(total) == pytest.approx(float(packed.sum()), rel=1e-6)


@pytest.mark.parametrize("kind", sorted(CLASSES))
def test_without_document_mask_documents_do_see_each_other(
    kind: str, make_base: Callable[..., Path], make_packed: Callable[..., Path]
) -> None:
    """The control: were the mask not there, the test above would fail."""
    model = load_model(make_base(kind), dtype=torch.float32, device=CPU)
    data = PackedTokens(make_packed(documents=30, sequence_length=64))
    with torch.no_grad():
        masked, open_ = (
            window_losses(model, data.batch(range(data.windows), document_mask=on)) for on in (True, False)
        )
    assert float((masked - open_).abs().max()) > 1e-2
