"""A restored checkpoint is let go: mounted folders do not remove files that are in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frbio_lite import checkpoint

MAPS = Path("/proc/self/maps")


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux, which lists what is mapped")
def test_nothing_of_a_restored_checkpoint_stays_mapped(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    kept = []
    for step in (1, 2):
        model = torch.nn.Linear(64, 64)
        optimizer = torch.optim.AdamW(model.parameters())
        if found := checkpoint.latest(tmp_path):
            checkpoint.restore(found, model, optimizer, scaler)
        model(torch.randn(2, 64)).sum().backward()
        optimizer.step()
        checkpoint.save(tmp_path, step, model, optimizer, scaler, 2)
        kept.append((model, optimizer))
    assert len(kept) == 2 and str(tmp_path) not in MAPS.read_text(encoding="utf-8")
