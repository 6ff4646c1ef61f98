"""What a recipe needs on a card: bytes by part, the micro-batch that fits, and what to change when none does.

Everything is counted from the model's classes and a traced micro-batch; what cannot be counted is a reserve, named so. No figure
has been compared with a GPU yet.
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from frbio_lite import recipe
from frbio_lite.device import DTYPES
from frbio_lite.errors import RequestError
from frbio_lite.kernels.launch import BF16_CAPABILITY, CAPABILITIES
from frbio_lite.memory import fixed, skeleton
from frbio_lite.memory.bases import configuration, smaller
from frbio_lite.memory.cards import GIB, Card
from frbio_lite.memory.trace import FLASH_CAPABILITY, WIDE_HEAD, trace
from frbio_lite.model import Model

CONTEXT = int(0.47 * GIB)  # CUDA's own, outside of torch's allocator
RESERVE = 0.05  # of what torch allocates: rounding, fragments, workspaces of cuBLAS
SHORTEST = 512  # tokens; no shorter sequence is proposed


@dataclass(frozen=True)
class Job:
    """What decides the bytes of a training: a model's configuration and what a recipe does with it, on some kind of card."""

    config: Any
    base: recipe.Base
    train: recipe.Train
    packing: recipe.Packing

    @classmethod
    def of(cls, recipe: recipe.Recipe) -> Job:
        return cls(configuration(recipe.base), recipe.base, recipe.train, recipe.packing)

    @property
    def windows(self) -> int:
        """Windows of a step: the largest micro-batch."""
        return max(1, self.train.tokens_per_step // self.packing.sequence_length)


@dataclass(frozen=True)
class Plan:
    """The predicted peak of one training on one card, in bytes."""

    card: Card
    precision: str
    kernels: bool
    parameters: int
    trained_parameters: int
    micro_batch_size: int  # windows
    micro_batches_per_step: int
    tokens_per_step: int
    parts: dict[str, int]
    host: dict[str, int]
    disk: dict[str, int]

    @property
    def needed(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.card.memory

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "needed": self.needed, "fits": self.fits}


@dataclass(frozen=True)
class Change:
    """Recipe keys that make the training smaller, and what it needs with them."""

    overrides: dict[str, Any]
    needed: int
    fits: bool


def plan(job: Job, card: Card) -> Plan:
    """The plan with the recipe's micro-batch, or with `auto` the largest that fits, one window when none does.

    Raises RequestError when the card cannot do what the recipe asks for.
    """
    wanted = job.train.micro_batch_size
    windows = largest_micro_batch(job, card) if wanted == "auto" else min(wanted, job.windows)
    return _plan(job, card, max(1, windows))


def smallest_plan(job: Job, card: Card) -> Plan:
    """The plan with micro-batches of one window; where gradients are released, of a whole step, if that needs less."""
    whole = [_plan(job, card, job.windows)] if job.train.gradient_release else []
    return min([_plan(job, card, 1), *whole], key=lambda planned: planned.needed)


def largest_micro_batch(job: Job, card: Card) -> int:
    """The most windows whose plan fits the card, 0 when one does not.

    Where gradients are released that is a whole step, if it fits: smaller ones keep the gradients.
    Traced at powers of two; between two of them the peak lies on their chord or below (it is the largest of some moments' bytes,
    each of them linear in the windows), so that the chord gives what surely fits.
    """
    if job.train.gradient_release:
        if _plan(job, card, job.windows).fits:
            return job.windows
        job = replace(job, train=job.train.model_copy(update={"gradient_release": False}))
    sizes = [*(2**n for n in range(job.windows.bit_length()) if 2**n < job.windows), job.windows]

    def room(windows: int) -> int:
        return card.memory - _plan(job, card, windows).needed

    fitting = bisect(sizes, 0, key=lambda windows: room(windows) < 0)
    if fitting in (0, len(sizes)):
        return sizes[-1] if fitting else 0
    low, high = sizes[fitting - 1], sizes[fitting]
    return int(low + (high - low) * room(low) // (room(low) - room(high)))


def changes(job: Job, card: Card) -> list[Change]:
    """What would make a training that does not fit smaller, each computed with micro-batches of one window."""
    found = []
    for overrides in _candidates(job, card):
        try:
            needed = smallest_plan(_changed(job, overrides), card).needed
        except (RequestError, ValueError):  # what the recipe's checks or the card exclude
            continue
        found.append(Change(overrides, needed, needed <= card.memory))
    now = smallest_plan(job, card).needed
    return [change for change in found if change.needed < now]


def _candidates(job: Job, card: Card) -> Iterator[dict[str, Any]]:
    train, length = job.train, job.packing.sequence_length
    together: dict[str, Any] = {}
    single: list[dict[str, Any]] = [
        {"train.activation_checkpointing": True},
        {"train.activation_checkpointing": "offload"},
    ]
    single.append({"train.optimizer.name": "adamw4bit"})
    if train.method == "qlora":
        single.append({"base.quantize_head": True})
    if train.method == "full" and precision(train, card) != torch.float16:
        single.append({"train.gradient_release": True, "train.tokens_per_step": length})
    if length // 2 >= SHORTEST:
        single.append({"packing.sequence_length": length // 2})
    for overrides in single:
        yield overrides
        together |= overrides
    if "train.gradient_release" in together:
        together["train.tokens_per_step"] = together.get("packing.sequence_length", length)
    yield together
    for method in {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}[train.method]:
        yield {"train.method": method, "train.gradient_release": False}
    for model in smaller(job.base.model):
        yield {"base.model": model}


def _changed(job: Job, overrides: dict[str, Any]) -> Job:
    """The job with dotted keys of its recipe changed, validated. Raises ValueError."""
    sections = _settings(job)
    for key, value in overrides.items():
        *path, last = key.split(".")
        place = sections
        for part in path:
            place = place[part]
        place[last] = value
    base, train, packing = _validated(sections)
    config = job.config if base.model == job.base.model else configuration(base)
    return Job(config, base, train, packing)


def _settings(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name).model_dump(mode="json") for name in ("base", "train", "packing")}


def _validated(settings: dict[str, Any]) -> tuple[recipe.Base, recipe.Train, recipe.Packing]:
    return (
        recipe.Base.model_validate(settings["base"]),
        recipe.Train.model_validate(settings["train"]),
        recipe.Packing.model_validate(settings["packing"]),
    )


def precision(train: recipe.Train, card: Card) -> torch.dtype:
    """The arithmetic dtype on a card. Raises RequestError when it has none of the recipe's."""
    if train.precision == "auto":
        return torch.bfloat16 if card.capability >= BF16_CAPABILITY else torch.float16
    if train.precision == "bf16" and card.capability < BF16_CAPABILITY:
        raise RequestError(f"train.precision: {card.name} has no bf16: use auto or fp16")
    return DTYPES[train.precision]


def disk(job: Job, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that a run writes, by part; `dtype` is that of the arithmetic."""
    return dict(_fixed(_key(job), dtype)[3])


def _plan(job: Job, card: Card, windows: int) -> Plan:
    dtype = precision(job.train, card)
    released = job.train.gradient_release and windows == job.windows
    kernels = job.train.kernels == "auto" and card.capability >= CAPABILITIES[0]
    parts, host, counts, disk = _fixed(_key(job), dtype)
    parts = {**parts, "gradients": 0 if released else parts["gradients"]}
    moving, offloaded = _moving(_key(job), dtype, _kind(job.config, card), windows, kernels, not released)
    parts |= moving
    parts["allocator's reserve"] = int(RESERVE * sum(parts.values()))
    parts["CUDA context"] = CONTEXT
    return Plan(
        card=card,
        precision=str(dtype).removeprefix("torch."),
        kernels=kernels,
        parameters=counts[0],
        trained_parameters=counts[1],
        micro_batch_size=windows,
        micro_batches_per_step=math.ceil(job.windows / windows),
        tokens_per_step=job.train.tokens_per_step,
        parts=parts,
        host={**host, "offloaded activations": offloaded},
        disk=disk,
    )


def _kind(config: Any, card: Card) -> int:
    """A compute capability that stands for all with the same allocations: what `trace` asks about a card."""
    head = getattr(config.get_text_config(), "head_dim", None) or 0
    if card.capability < CAPABILITIES[0]:
        return 70
    if card.capability < FLASH_CAPABILITY:
        return 75
    return 86 if card.capability in (86, 89) and head > WIDE_HEAD else FLASH_CAPABILITY


Key = tuple[str, str]  # configuration and settings as JSON: what the counts below are cached by


def _key(job: Job) -> Key:
    settings = _settings(job)
    settings["train"].pop("micro_batch_size")
    return json.dumps(_plain(job.config)), json.dumps(settings)


def _plain(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    values.pop("quantization_config", None)  # a loaded 4-bit model's; the settings say whether it is one
    return {key: value for key, value in values.items() if not key.endswith("dtype")}


def _job(key: Key) -> Job:
    return Job(AutoConfig.for_model(**json.loads(key[0])), *_validated(json.loads(key[1])))


@cache
def _fixed(key: Key, dtype: torch.dtype) -> tuple[dict[str, int], dict[str, int], tuple[int, int], dict[str, int]]:
    """Bytes by part on the card, on the host, (parameters, trained ones), and on the disk."""
    job = _job(key)
    four_bits = job.train.optimizer.name == "adamw4bit"  # all else of the optimizer leaves the model as it is
    plain = {
        "activation_checkpointing": False,
        "optimizer": recipe.Optimizer(name="adamw4bit" if four_bits else "adamw", learning_rate=1.0),
        "gradient_release": False,
    }
    settings = job.train.model_copy(update={**plain, "tokens": 1, "epochs": None, "tokens_per_step": 1})
    model = _model(key[0], settings.model_dump_json(), dtype, job.base.quantize_head)
    device, host = fixed.optimizer_bytes(model, job.train.optimizer)
    stored = skeleton.count(model)
    parts = fixed.weight_parts(model) | {"gradients": fixed.gradient_bytes(model), "optimizer states": device}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    disk = fixed.disk_parts(model, job.config, job.train, stored, Path(job.base.model).is_dir())
    return parts, {"paged optimizer states": host}, (stored, trained), disk


@lru_cache(maxsize=2)
def _model(config: str, settings: str, dtype: torch.dtype, quantize_head: bool) -> Model:
    """The whole model on the meta device: the same for many changes of a recipe, and slow to build."""
    how = recipe.Train.model_validate_json(settings)
    return skeleton.build(AutoConfig.for_model(**json.loads(config)), how, dtype, quantize_head=quantize_head)


@cache
def _moving(
    key: Key, dtype: torch.dtype, capability: int, windows: int, kernels: bool, accumulates: bool
) -> tuple[dict[str, int], int]:
    job = _job(key)
    return trace(
        job.config, job.train, dtype, capability, windows, job.packing.sequence_length, kernels=kernels, accumulates=accumulates,
        document_mask=job.packing.document_mask, quantize_head=job.base.quantize_head,
    )  # fmt: skip
