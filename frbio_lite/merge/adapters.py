"""A LoRA adapter as the tensors it makes: W + scaling · B A, in fp32, one at a time.

Read from PEFT's files directly, since PEFT can only merge into a model that is loaded whole. What an adapter may hold
beyond plain LoRA (Hu et al. 2021, arXiv 2106.09685) and rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732)
is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from frbio_lite import model
from frbio_lite.errors import RequestError
from frbio_lite.merge.weights import DTYPES, Weights

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# How PEFT ends the names of an adapter's tensors, for linear layers and for embeddings.
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
}
# Settings that are obeyed here, or that only concern training and loading; any other one that is set is refused.
UNDERSTOOD = frozenset(
    {
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "lora_alpha",
        "lora_dropout",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "fan_in_fan_out",
        "bias",
        "init_lora_weights",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "megatron_core",
        "qalora_group_size",
    }
)
# Other initialisations (PiSSA, OLoRA, LoftQ, CorDA, …) change the base weights that the adapter is added to.
BASE_KEEPING = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor: names of A [r, in] and B [out, r], factor and layout of their product."""

    a: str
    b: str
    scaling: float
    transposed: bool


class LoraAdapter:
    """The adapted tensors of a base under a PEFT LoRA adapter."""

    def __init__(self, directory: Path, base: Weights, tied: Mapping[str, str]) -> None:
        """`tied` maps each tensor name that only repeats another to that other name.

        Raises RequestError, naming the module, when the adapter does not fit the base or is more than LoRA.
        """
        self.directory, self.base = directory, base
        self.settings = model.read_adapter_config(directory)
        _check_settings(directory, self.settings)
        self.weights = Weights(directory, single=FILE)
        self.replaced: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.changes = self._pairs()
        shared = {*tied.keys(), *tied.values()}
        for name in [*self.changes, *self.replaced]:
            if name in shared:
                raise RequestError(
                    f"{directory}: the adapter changes {name}, which the base shares between embedding and head: "
                    "one shared tensor cannot hold it; train without this module"
                )
            if name not in base:
                raise RequestError(
                    f"{directory}: the adapter changes {name}, which the base {base.directory} does not have"
                )
            self._check_shapes(name)
        for name, key in self.copies.items():
            self._check_copy(key, name)
        if not self.changes and not self.replaced:
            raise RequestError(f"{directory / FILE} holds no LoRA tensors")

    def _pairs(self) -> dict[str, Change]:
        found: dict[str, dict[str, str]] = {}
        for key in self.weights.names():
            if self.weights.stored_dtype(key) not in DTYPES:
                raise RequestError(
                    f"{self.directory / FILE}: {key} is stored as {self.weights.stored_dtype(key)}, "
                    "not as 16 or 32-bit floats"
                )
            part = next((p for p in PARTS if key.endswith("." + p)), None)
            name = key.removeprefix(PREFIX)
            if name == key:
                raise RequestError(f"{self.directory / FILE}: {key} is not named as PEFT names tensors ({PREFIX}…)")
            if part:
                found.setdefault(name.removesuffix("." + part), {})[PARTS[part]] = key
            elif name.endswith(".base_layer.weight"):
                self.copies[name.replace(".base_layer.", ".")] = key
            elif self._is_saved_module(name):
                self.replaced[name] = key
            else:
                raise RequestError(f"{self.directory / FILE}: {key} is not part of a LoRA adapter that can be merged")
        return {f"{module}.weight": self._change(module, keys) for module, keys in found.items()}

    def _is_saved_module(self, name: str) -> bool:
        """Whether a whole tensor belongs to a module that was trained beside the adapter (`modules_to_save`)."""
        module = name.rpartition(".")[0]
        return any(module == m or f".{module}".endswith(f".{m}") for m in self.settings.get("modules_to_save") or ())

    def _check_copy(self, key: str, name: str) -> None:
        """PEFT saves the base's embedding or head beside an adapter on it; it must be the base's own."""
        if name not in self.base or not self.weights.shape(key) == self.base.shape(name):
            raise RequestError(
                f"{self.directory}: the adapter changes {name}, which the base does not have in this shape"
            )
        base = self.base.get(name)
        if not self.weights.get(key).to(base.dtype).equal(base):
            raise RequestError(
                f"{self.directory} was trained on another base: its copy of {name} differs from {self.base.directory}"
            )

    def _change(self, module: str, keys: dict[str, str]) -> Change:
        if set(keys) != {"a", "b"}:
            raise RequestError(f"{self.directory / FILE}: {module} has only one of lora_A and lora_B")
        rank = int(_by_pattern(self.settings, "rank_pattern", module, self.settings["r"]))
        alpha = float(_by_pattern(self.settings, "alpha_pattern", module, self.settings["lora_alpha"]))
        held = self.weights.shape(keys["a"])[0]
        if held != rank or rank < 1:
            raise RequestError(
                f"{self.directory}: {module} has rank {held} in {FILE} and {rank} in adapter_config.json"
            )
        scaling = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        embedding = keys["a"].endswith("lora_embedding_A")
        return Change(keys["a"], keys["b"], scaling, embedding or bool(self.settings.get("fan_in_fan_out")))

    def _check_shapes(self, name: str) -> None:
        if name in self.replaced:
            made = self.weights.shape(self.replaced[name])
        else:
            change = self.changes[name]
            a, b = self.weights.shape(change.a), self.weights.shape(change.b)
            if not len(a) == len(b) == 2 or a[0] != b[1]:
                raise RequestError(f"{self.directory}: {name}: A {list(a)} and B {list(b)} do not multiply")
            made = (a[1], b[0]) if change.transposed else (b[0], a[1])
        if made != self.base.shape(name):
            raise RequestError(
                f"{self.directory}: {name}: the adapter is made for shape {list(made)}, "
                f"the base has {list(self.base.shape(name))}"
            )

    def get(self, name: str, base: Tensor) -> Tensor | None:
        """The adapted tensor, fp32 in the shape of `base`, or None where the adapter changes nothing."""
        if name in self.replaced:
            return self.weights.get(self.replaced[name]).float()
        change = self.changes.get(name)
        if change is None:
            return None
        delta = self.weights.get(change.b).float() @ self.weights.get(change.a).float()
        return (delta.T if change.transposed else delta).mul(change.scaling).add_(base)


def _check_settings(directory: Path, settings: dict[str, Any]) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise RequestError(f"{directory} is an adapter of type {kind}: only LORA can be merged")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), (int, float)):
            raise RequestError(f"{directory / 'adapter_config.json'} has no number '{key}'")
    for key in sorted(settings.keys() - UNDERSTOOD):
        if settings[key]:
            raise RequestError(
                f"{directory}: the adapter uses {key}, which cannot be merged here: "
                "only plain or rank-stabilised LoRA can"
            )
    if settings.get("bias", "none") != "none":
        raise RequestError(
            f"{directory}: the adapter has bias='{settings['bias']}', which cannot be merged here: "
            "train with bias='none'"
        )
    if settings.get("init_lora_weights", True) not in BASE_KEEPING:
        raise RequestError(
            f"{directory}: init_lora_weights='{settings['init_lora_weights']}' also changes the base weights: "
            "save it with PEFT's path_initial_model_for_weight_conversion first"
        )


def _by_pattern(settings: dict[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, as PEFT matches them."""
    for pattern, value in (settings.get(key) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise RequestError(f"{key}: '{pattern}' is not a regular expression: {error}") from error
    return default
