"""The memory plan: what a training needs, by part, before it is started; `frbio plan` shows it, and training asks it for the
largest micro-batch.

    plan(Job.of(load_recipe("qwen3-4b-qlora-16gb")), find_card("RTX 4060 Ti")).parts

`skeleton`: the model without weights. `fixed`: what stays from step to step. `trace`: what one micro-batch allocates. `plan`: the
sum, and what to change. `cards`, `bases`: the tables. Predictions have not been compared with a GPU yet.
"""

from __future__ import annotations

import torch

from frbio_lite import recipe
from frbio_lite.errors import RequestError
from frbio_lite.memory.cards import CARDS, GIB, Card, card_at_hand, find_card
from frbio_lite.memory.plan import CONTEXT, Change, Job, Plan, changes, disk, largest_micro_batch, plan, smallest_plan
from frbio_lite.model import Model, causal_lm

__all__ = [
    "CARDS", "GIB", "Card", "Change", "Job", "Plan", "card_at_hand", "changes", "disk", "find_card",
    "largest_micro_batch", "micro_batch_size", "plan", "smallest_plan",
]  # fmt: skip
CPU_TOKENS = 4096  # larger micro-batches gain nothing on a few cores


def micro_batch_size(
    model: Model, settings: recipe.Train, packing: recipe.Packing, device: torch.device, base: recipe.Base | None = None
) -> int:
    """Windows per forward pass of a loaded model, at most one step's worth: the recipe's, or the most that the GPU holds.

    Raises RequestError when not even one fits.
    """
    job = Job(causal_lm(model).config, base or recipe.Base(model=""), settings, packing)
    if settings.micro_batch_size != "auto":
        return min(settings.micro_batch_size, job.windows)
    if device.type == "cpu":
        return max(1, min(job.windows, CPU_TOKENS // packing.sequence_length))
    card = _as_it_is(device)
    found = largest_micro_batch(job, card)
    if found < 1:
        raise RequestError(
            f"this GPU has {card.memory / GIB:.1f} GiB for training, which needs about {plan(job, card).needed / GIB:.1f} GiB: "
            "`frbio plan` on the recipe says what would fit"
        )
    return found


def _as_it_is(device: torch.device) -> Card:
    """The GPU with what this process has of it and could still get."""
    major, minor = torch.cuda.get_device_capability(device)
    within = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return Card(torch.cuda.get_device_name(device), within + CONTEXT, 10 * major + minor)
