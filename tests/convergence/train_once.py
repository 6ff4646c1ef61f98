"""One training in this process: train_once.py BASE PACKED OUT '{"method": "full", …}'. Prints which kernels it ran, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from frbio_lite.packing import PackedTokens
from frbio_lite.recipe import Packing, Train
from frbio_lite.training import train


def main(base: str, packed: str, out: str, settings: str) -> None:
    torch.set_num_threads(1)
    Path(out).mkdir()
    data = PackedTokens(Path(packed))
    how, packing = Train.model_validate_json(settings), Packing(sequence_length=data.sequence_length)
    figures = train(Path(base), data, how, packing, 3, Path(out))
    sys.stdout.write(json.dumps(figures["kernels"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
