"""The one live model of an ablation: it takes the weights of any merge, or an adapter at any part of its scaling."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from frbio_lite import hub, model, recipe
from frbio_lite.errors import RequestError
from frbio_lite.merging import (
    AdapterBase,
    Inputs,
    Merger,
    Parameters,
    Profile,
    Rounding,
    by_method,
    open_inputs,
    output_dtype,
)
from frbio_lite.merging.live import write_into

LORA_SCALE = "lora_scale"


def merger_of(inputs: Inputs, method: str, settings: recipe.Merge, seed: int) -> Merger:
    """The merge that a recipe's `merge` describes, by one of its methods.

    Merged, lora_scale is the linear method, which also mixes an adapter on NF4's view of the weights into the base.
    """
    profile = Profile(tuple((entry.filter, tuple(entry.values)) for entry in settings.profile))
    method = "linear" if method == LORA_SCALE else method
    return by_method(inputs, method, Parameters(settings.density, settings.gamma, settings.epsilon, seed=seed), profile)


def rounding_of(settings: recipe.Merge, seed: int) -> Rounding:
    return Rounding(output_dtype(settings.dtype), settings.stochastic_rounding, seed)


def check_scalable(inputs: Inputs) -> None:
    """Raise RequestError unless the adapted side is one adapter that changes nothing when its scaling is zero."""
    by_method(inputs, LORA_SCALE, Parameters(), Profile())


class Live:
    """Holds one model at a time: the base, rewritten for each merge, or the base with its adapter, scaled for each ratio.

    `nf4` loads the latter in 4 bits, as the adapter was trained. Each is loaded when it is asked for, and the other dropped.
    """

    def __init__(
        self, base: Path, adapted: Sequence[Path], nf4: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.base, self.adapted, self.nf4, self.dtype, self.device = base, adapted, nf4, dtype, device
        self._merged: model.Model | None = None
        self._scaled: model.Model | None = None
        self._scalings: dict[str, tuple[dict[str, float], dict[str, float]]] = {}  # by tensor: in use, as trained

    def merged(self, merger: Merger, ratio: float, rounding: Rounding, label: str) -> model.Model:
        """The base with every weight as `merge_models` would write it, computed anew from the files."""
        if self._merged is None:
            self.drop()
            self._merged = self._load(nf4=False)
            if self.device.type == "cpu":
                # all are written below, and in a mapped file each page would be copied first
                for parameter in self._merged.parameters():
                    parameter.data = torch.empty_like(parameter)
        merger.survey(every_gram=True)
        write_into(self._merged, merger, ratio, rounding, label)
        return self._merged

    def scaled(self, merger: Merger, ratio: float) -> model.Model:
        """The base with its adapter, unmerged, at `ratio` of the trained scaling, times what the merge's profile says.

        Raises RequestError when the merge knows a layer of the adapter under another name.
        """
        if self._scaled is None:
            from peft.tuners.lora import LoraLayer  # takes seconds, which merges alone need not wait for

            self.drop()
            self._scaled = model.load_adapter(self._load(self.nf4), self.base, self.adapted[0])
            modules: dict[str, Any] = dict(model.causal_lm(self._scaled).named_modules())
            self._scalings = {
                f"{hub.text_prefix(self.base)}{name}.weight": (layer.scaling, dict(layer.scaling))
                for name, layer in modules.items()
                if isinstance(layer, LoraLayer)
            }
        if unknown := sorted(self._scalings.keys() - merger.factors.keys()):
            raise RequestError(f"{self.base} stores {unknown[0]} under another name than the model has in memory")
        for name, (used, trained) in self._scalings.items():
            share = merger.factors[name] * ratio
            used.update({adapter: scaling * share for adapter, scaling in trained.items()})
        return self._scaled

    def _load(self, nf4: bool) -> model.Model:
        return model.load_model(self.base, dtype=self.dtype, device=self.device, nf4=nf4)

    def drop(self) -> None:
        """Free what is held."""
        if self._merged is None and self._scaled is None:
            return
        self._merged = self._scaled = None
        self._scalings = {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Merges:
    """The merges of one base and its adapted side, by method, opened once; the survey of one serves the others."""

    def __init__(
        self, base: Path, adapted: Sequence[Path], adapter_base: AdapterBase, settings: recipe.Merge, seed: int
    ) -> None:
        self.inputs = open_inputs(base, adapted, adapter_base=adapter_base)
        self.settings, self.seed = settings, seed
        self._mergers: dict[str, Merger] = {m: merger_of(self.inputs, m, settings, seed) for m in settings.methods}

    def by(self, method: str) -> Merger:
        if method not in self._mergers:
            self._mergers[method] = merger_of(self.inputs, method, self.settings, self.seed)
        wanted = self._mergers[method]
        if not any(rule.surveys for rule in wanted.rules.values()):  # inner products are all it needs
            for other in self._mergers.values():
                wanted.grams.update(other.grams)
        return wanted
