"""Configurations that mergekit and frbio_lite both run, and what each method means, in fp64 on whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from frbio_lite.merging.blocks import blocks_of
from frbio_lite.merging.methods import dare

SEED = 17
FLOAT = "dtype: float32\nout_dtype: bfloat16\n"


def uniforms(name: str, model: int, shape: tuple[int, ...]) -> Tensor:
    drawn = [
        torch.from_numpy(dare.uniform(SEED, name, model, block).copy()) for block in blocks_of(name, blocked(shape))
    ]
    return torch.cat(drawn).reshape(shape)


def blocked(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) == 2 and shape[0] == 1 else shape  # mergekit makes a row of a vector


def kept_largest(difference: Tensor, density: float) -> Tensor:
    order = np.argsort(-difference.abs().float().numpy().ravel(), kind="stable")
    return _chosen(order[: max(1, int(density * order.size))], difference)


def kept_middle(difference: Tensor, density: float, gamma: float) -> Tensor:
    order = np.argsort(difference.abs().float().numpy().ravel(), kind="stable")
    kept = int(density * order.size)
    first = max(0, order.size - kept - int(gamma * order.size))
    return _chosen(order[first : first + kept], difference)


def kept_by_rank(drawn: Tensor, difference: Tensor, density: float, epsilon: float) -> Tensor:
    rows = difference.abs().reshape(-1, difference.shape[-1])
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double()
    return drawn < (density - epsilon + 2 * epsilon * ranks / (rows.shape[1] - 1)).reshape(difference.shape)


def _chosen(places: np.ndarray, like: Tensor) -> Tensor:
    mask = torch.zeros(like.numel(), dtype=torch.float64)
    mask[torch.from_numpy(places)] = 1.0
    return mask.reshape(like.shape)


@dataclass(frozen=True)
class Case:
    """A method with constant parameters, and what it means in fp64.

    `keep(name, model, difference)` gives the elements that take part. When mergekit computes in bfloat16, `limit` bounds
    the distance to its result, in steps, and `differing` the share of elements that differ at all.
    """

    method: str
    weights: tuple[float, ...]
    own: tuple[str, ...] = ()  # other parameters of each model
    shared: str = ""
    base: bool = True
    limit: float = 3.0
    differing: float = 0.06
    keep: Callable[[str, int, Tensor], Tensor] | None = None
    rescale: bool = False
    whole: Callable[[list[Tensor]], Tensor] | None = None  # of the tensors in fp64, where it is no sum of task vectors

    def text(self, models: dict[str, Path], dtype: str) -> str:
        named = list(models.items())[: len(self.weights) + 1]
        entries: list[Any] = [{"model": str(named[0][1])}] if self.base else []
        for i, (_, path) in enumerate(named[1:]):
            own: dict[str, Any] = yaml.safe_load(f"{{{self.own[i] if self.own else ''}}}")
            weight = {} if self.method in ("slerp", "model_stock", "karcher") else {"weight": self.weights[i]}
            entries.append({"model": str(path), "parameters": own | weight})
        base = {"base_model": str(named[0][1])} if self.base else {}
        shared = {"parameters": yaml.safe_load(f"{{{self.shared}}}")}
        return yaml.safe_dump({"merge_method": self.method, **base, "models": entries, **shared}) + dtype

    def reference(self, tensors: list[Tensor], name: str, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        """The merged tensor, fp64, and how far from a draw the election of each element's sign was, in [0, 1]."""
        sure = torch.ones(tensors[0].shape, dtype=torch.float64)
        if self.whole:
            return self.whole([t.double() for t in (tensors if self.base else tensors[1:])]), sure
        terms = []
        for i, (weight, adapted) in enumerate(zip(self.weights, tensors[1:], strict=True)):
            term = adapted.double() - tensors[0].double()
            if self.keep:
                kept = term * self.keep(name, i, adapted.to(precision) - tensors[0].to(precision))
                left = kept.abs().sum()
                term = kept * (term.abs().sum() / left) if self.rescale and left > 0.0 else kept
            terms.append(weight * term)
        stacked = torch.stack(terms)
        if not self.elects:
            divisor = sum(self.weights) if self.normalizes else 1.0
            return tensors[0].double() + self.scale * stacked.sum(0) / divisor, sure
        elected = torch.where(stacked.sum(0) >= 0.0, 1.0, -1.0)
        agreeing = stacked.sign() == elected
        weights = torch.tensor(self.weights, dtype=torch.float64).reshape(-1, *[1] * tensors[0].dim())
        divisor = (weights * agreeing).sum(0)
        mix = (stacked * agreeing).sum(0) / torch.where(divisor == 0.0, 1.0, divisor if self.normalizes else 1.0)
        sure = stacked.sum(0).abs() / stacked.abs().sum(0).clamp(min=1e-30)
        return tensors[0].double() + self.scale * mix, torch.where(stacked.sum(0) == 0.0, 1.0, sure)

    @property
    def elects(self) -> bool:
        return self.method in ("ties", "dare_ties", "della", "breadcrumbs_ties")

    @property
    def normalizes(self) -> bool:
        default = self.method in ("ties", "della")
        return bool(yaml.safe_load(f"{{{self.shared}}}").get("normalize", default))

    @property
    def scale(self) -> float:
        return float(yaml.safe_load(f"{{{self.shared}}}").get("lambda", 1.0))


def arc(x: Tensor, y: Tensor, t: float) -> Tensor:
    angle = torch.arccos((x * y).sum() / x.norm() / y.norm())
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


def slerped(tensors: list[Tensor], t: float) -> Tensor:
    x, y = tensors
    if (x * y).sum() / x.norm() / y.norm() > 0.9995:
        return (1 - t) * x + t * y
    return arc(x, y, t)


def stocked(tensors: list[Tensor]) -> Tensor:
    base, *others = tensors
    d = [(o - base).flatten() for o in others]
    pairs = [(i, j) for i in range(len(d)) for j in range(i)]
    cosine = sum((d[i] @ d[j]) / (d[i].norm() * d[j].norm()).clamp(min=1e-6) for i, j in pairs) / len(pairs)
    t = len(d) * cosine / (1 + (len(d) - 1) * cosine)
    return t * sum(others) / len(d) + (1 - t) * base


def karchered(tensors: list[Tensor]) -> Tensor:
    units = [t / t.norm() for t in tensors]
    mean = sum(units) / sum(units).norm()  # type: ignore[union-attr]
    for _ in range(10):
        tangent = torch.zeros_like(mean)
        for unit in units:
            across = unit - (unit * mean).sum() * mean
            angle = torch.atan2(across.norm(), (unit * mean).sum())
            tangent += across * (angle / across.norm()) / len(units)
        if tangent.norm() < 1e-5:
            break
        mean = torch.cos(tangent.norm()) * mean + torch.sin(tangent.norm()) * tangent / tangent.norm()
    return mean * sum(t.norm() for t in tensors) / len(tensors)


def averaged(tensors: list[Tensor]) -> Tensor:
    return (0.5 * tensors[0] + 0.3 * tensors[1] + 0.4 * tensors[2]) / 1.2


def by_density(*densities: float) -> tuple[str, ...]:
    return tuple(f"density: {d}" for d in densities)


HALVES = (0.5, 0.75)
# Weights of elected sums are powers of two, exact in bfloat16: else the election of many a draw hangs on a rounding.
CASES = {
    "linear": Case("linear", (0.5, 0.3, 0.4), base=False, limit=1.0, whole=averaged),
    "slerp": Case("slerp", (0.0,), shared="t: 0.4", limit=1.0, whole=lambda x: slerped(x, 0.4)),
    "nuslerp": Case("nuslerp", (0.5, 0.3), base=False, differing=0.35, whole=lambda x: arc(x[0], x[1], 0.375)),
    "nuslerp around a base": Case("nuslerp", (0.5, 0.3), whole=lambda x: x[0] + arc(x[1] - x[0], x[2] - x[0], 0.375)),
    "task_arithmetic": Case("task_arithmetic", (0.5, 0.3), shared="lambda: 0.75"),
    "task_arithmetic, normalized": Case("task_arithmetic", (0.5, 0.3, 0.6), shared="normalize: true, int8_mask: true"),
    "ties": Case("ties", (0.5, 0.25), by_density(*HALVES), keep=lambda n, m, d: kept_largest(d, HALVES[m])),
    "ties of three": Case(
        "ties",
        (0.5, 0.5, 0.25),
        by_density(0.2, 1.0, 0.6),
        "normalize: false, rescale: true, lambda: 0.5",
        rescale=True,
        keep=lambda n, m, d: kept_largest(d, (0.2, 1.0, 0.6)[m]),
    ),
    "breadcrumbs": Case(
        "breadcrumbs",
        (0.5, 0.3),
        ("density: 0.9", "density: 0.7, gamma: 0.1"),
        keep=lambda n, m, d: kept_middle(d, *((0.9, 0.01), (0.7, 0.1))[m]),
    ),
    "breadcrumbs_ties": Case(
        "breadcrumbs_ties",
        (0.5, 0.25),
        ("density: 0.9", "density: 0.7, gamma: 0.1"),
        keep=lambda n, m, d: kept_middle(d, *((0.9, 0.01), (0.7, 0.1))[m]),
    ),
    "dare_linear": Case(
        "dare_linear",
        (0.5, 0.25),
        by_density(*HALVES),
        rescale=True,
        keep=lambda n, m, d: uniforms(n, m, tuple(d.shape)) < HALVES[m],
    ),
    "dare_ties": Case(
        "dare_ties",
        (0.5, 0.25),
        by_density(*HALVES),
        "normalize: true",
        limit=5.0,
        rescale=True,
        keep=lambda n, m, d: uniforms(n, m, tuple(d.shape)) < HALVES[m],
    ),
    "della": Case(
        "della",
        (0.5, 0.25),
        by_density(*HALVES),
        rescale=True,
        keep=lambda n, m, d: kept_by_rank(uniforms(n, m, tuple(d.shape)), d, HALVES[m], 0.15),
    ),
    "della_linear": Case(
        "della_linear",
        (0.5, 0.25),
        by_density(*HALVES),
        "epsilon: 0.1",
        rescale=True,
        keep=lambda n, m, d: kept_by_rank(uniforms(n, m, tuple(d.shape)), d, HALVES[m], 0.1),
    ),
    "model_stock": Case("model_stock", (1.0, 1.0, 1.0), limit=4.0, differing=0.4, whole=stocked),
    "karcher": Case("karcher", (1.0, 1.0, 1.0), base=False, limit=4.0, differing=0.55, whole=karchered),
}
BIOMISTRAL = """
slices:
  - sources:
      - model: {base}
        layer_range: [0, 4]
      - model: {b}
        layer_range: [0, 4]
merge_method: slerp
base_model: {base}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""
SLICES = """
merge_method: linear
dtype: bfloat16
slices:
  - sources:
      - {{model: '{base}', layer_range: [0, 1], parameters: {{weight: 0.75}}}}
      - {{model: '{b}', layer_range: [0, 1]}}
    parameters: {{weight: [{{filter: mlp, value: 0.125}}]}}
  - sources:
      - {{model: '{b}', layer_range: [1, 4], parameters: {{weight: [0, 0.3, 1e-1]}}}}
      - {{model: '{base}', layer_range: [1, 4]}}
    parameters: {{normalize: true}}
parameters: {{weight: 0.25, normalize: no}}
"""
FILES = {
    "BioMistral": BIOMISTRAL,
    "slices": SLICES,
    "base unlisted, no dtype": """
merge_method: linear
base_model: {base}
models:
  - model: {b}
    parameters:
      weight: [{{filter: o_proj, value: [0.125, 0.25, 1]}}, {{filter: "*", value: "5e-1"}}]
parameters: {{weight: 0.25, normalize: "off"}}
""",
    "base last": """
merge_method: slerp
base_model: {base}
models: [{{model: {c}}}, {{model: {base}}}]
parameters: {{t: [{{filter: lm_head, value: 0}}, {{filter: norm, value: [0.25, 0.75]}}, {{value: 1e-1}}]}}
dtype: float32
out_dtype: bfloat16
""",
    "ties by depth": """
merge_method: ties
base_model: {base}
models:
  - model: {base}
    parameters: {{weight: 7, density: 0.1}}
  - model: {b}
    parameters: {{density: [0.2, 0.9], weight: [{{filter: mlp, value: [0, 0.5, 1]}}]}}
  - model: {c}
    parameters: {{density: 0.5}}
parameters: {{weight: 0.5, normalize: [true, false, true], int8_mask: true, lambda: [1, 2]}}
dtype: float32
out_dtype: bfloat16
""",
    "stock by file": """
merge_method: model_stock
base_model: {base}
models: [{{model: {a}}}, {{model: {b}}}]
dtype: torch.float32
out_dtype: bfloat16
""",
}
