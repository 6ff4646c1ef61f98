"""A LoRA adapter as the tensors it makes: W + scaling · B A, in fp32, block by block.

Read from PEFT's files directly, since PEFT can only merge into a model that is loaded whole. Plain LoRA (Hu et al. 2021,
arXiv 2106.09685), rank-stabilised scaling (Kalajdzievski 2023, arXiv 2312.03732), DoRA (Liu et al. 2024,
arXiv 2402.09353) and modules trained whole beside them; what else an adapter may hold is refused by name.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from frbio_lite import hub
from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block, blocks_of, scratch
from frbio_lite.merging.nf4 import Nf4Base
from frbio_lite.merging.weights import DTYPES, Bytes, Floats, Weights, narrow

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
KEPT = 4  # tensors whose factors are in memory
# How PEFT ends the names of an adapter's tensors, for linear layers and for embeddings.
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")  # what PEFT can be told to save although it was not trained
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
        "use_dora",
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
    """What an adapter does to one tensor: names of A [r, in], B [out, r] and, for DoRA, the magnitudes; factor; layout.

    `transposed`: the tensor is [in, out], as embeddings and the matrices of GPT-2 are. DoRA's magnitudes [out] belong to
    its outputs: the rows of a linear layer, the columns of a transposed one.
    """

    a: str
    b: str
    magnitude: str | None
    scaling: float
    transposed: bool


class LoraAdapter:
    """The adapted tensors of a base under a PEFT LoRA adapter: those that the live model computes with.

    `untied` maps the head's tensor to the embedding's where the base has one tensor for both and the adapted model two.
    """

    def __init__(
        self,
        directory: Path,
        base: Weights,
        tied: Mapping[str, str],
        adapter_base: Literal["bf16", "nf4-dequant"] = "bf16",
    ) -> None:
        """`tied` maps each tensor name that only repeats another to that other name.

        With "nf4-dequant" the adapter is added to the weights that 4-bit training held (`nf4`), not to those stored.
        Raises RequestError, naming the module, when the adapter does not fit the base or is of another kind.
        """
        self.directory, self.base, self.tied = directory, base, dict(tied)
        self.prefix = hub.text_prefix(base.directory)  # names here are those of the base's files
        self.settings = hub.read_adapter_config(directory)
        _check_settings(directory, self.settings)
        self.weights = Weights(directory, single=FILE)
        self._recent: dict[str, tuple[Floats, Floats]] = {}
        self._columns: dict[str, Floats] = {}
        self._lock, self._columns_lock = threading.Lock(), threading.Lock()
        self.replaced: dict[str, str] = {}
        self.copies: dict[str, str] = {}
        self.changes = self._pairs()
        for name in [*self.changes, *self.replaced]:
            if self._stored(name) not in base:
                raise RequestError(
                    f"{directory}: the adapter changes {name}, which the base {base.directory} does not have"
                )
            self._check_shapes(name)
            self._check_tie(name)
        for name, key in self.copies.items():
            self._check_copy(key, name)
        if not self.changes and not self.replaced:
            raise RequestError(f"{directory / FILE} holds no LoRA tensors")
        self.untied = {head: source for head, source in self.tied.items() if self._unties(head, source)}
        self.nf4 = Nf4Base(base) if adapter_base == "nf4-dequant" else None

    @property
    def unscalable(self) -> str:
        """Why the adapter at part of its strength is more than a smaller scaling of A and B; empty when it is not."""
        if self.nf4 is not None:
            return "is added to the NF4 weights, which differ from the base's"
        if any(change.magnitude for change in self.changes.values()):
            return "is DoRA, whose rows are scaled to a length of their own"
        if self.replaced:
            return f"replaces {min(self.replaced)} as a whole (modules_to_save)"
        return ""

    @property
    def scalable(self) -> bool:
        """Whether a ratio can be expressed by the scaling of A and B alone."""
        return not self.unscalable

    def _stored(self, name: str) -> str:
        """The base's tensor of that name, which for a tied head is the embedding's."""
        return self.tied.get(name, name)

    def _pairs(self) -> dict[str, Change]:
        found: dict[str, dict[str, str]] = {}
        for key in self.weights.names():
            if self.weights.stored_dtype(key) not in DTYPES:
                raise RequestError(
                    f"{self.directory / FILE}: {key} is stored as {self.weights.stored_dtype(key)}, "
                    "not as 16 or 32-bit floats"
                )
            part = next((p for p in PARTS if key.endswith("." + p)), None)
            name = self.prefix + key.removeprefix(PREFIX)
            if not key.startswith(PREFIX):
                raise RequestError(f"{self.directory / FILE}: {key} is not named as PEFT names tensors ({PREFIX}…)")
            if part:
                found.setdefault(name.removesuffix("." + part), {})[PARTS[part]] = key
            elif name.endswith(".base_layer.weight"):
                self.copies[name.replace(".base_layer.", ".")] = key
            elif self._is_saved_module(name):
                self.replaced[name] = key
            elif name.endswith(VOCABULARY):
                self.copies[name] = key
            else:
                raise RequestError(f"{self.directory / FILE}: {key} is not part of a LoRA adapter that can be merged")
        if self.settings.get("ensure_weight_tying"):  # a saved embedding's head is saved too, but not listed
            for head, embedding in self.tied.items():
                if embedding in self.replaced and head in self.copies:
                    self.replaced[head] = self.copies.pop(head)
        return {f"{module}.weight": self._change(module, keys) for module, keys in found.items()}

    def _is_saved_module(self, name: str) -> bool:
        """Whether a tensor belongs to a module that was trained whole (`modules_to_save`), found by name as PEFT does."""
        path = name.split(".")[:-1]
        holders = [".".join(path[:i]) for i in range(1, len(path) + 1)]
        return any(holder.endswith(m) for m in self.settings.get("modules_to_save") or () for holder in holders)

    def _check_copy(self, key: str, name: str) -> None:
        """PEFT saves the base's embedding or head beside an adapter on it; it must be the base's own, in either's dtype."""
        stored = self._stored(name)
        if stored not in self.base or self.weights.shape(key) != self.base.shape(stored):
            raise RequestError(
                f"{self.directory}: the adapter changes {name}, which the base does not have in this shape"
            )
        for block in blocks_of(stored, self.base.shape(stored)):
            theirs, ours = scratch(-1, block.count), scratch(-2, block.count)
            self.weights.fill(key, block.start, theirs)
            self.base.fill(stored, block.start, ours)
            dtypes = (self.weights.stored_dtype(key), self.base.stored_dtype(stored))
            if not any(np.array_equal(_rounded(theirs, dtype), _rounded(ours, dtype)) for dtype in dtypes):
                raise RequestError(
                    f"{self.directory} was trained on another base: "
                    f"its copy of {name} differs from {self.base.directory}"
                )

    def _change(self, module: str, keys: dict[str, str]) -> Change:
        if not {"a", "b"} <= keys.keys():
            raise RequestError(f"{self.directory / FILE}: {module} has only one of lora_A and lora_B")
        if ("magnitude" in keys) != bool(self.settings.get("use_dora")):
            raise RequestError(
                f"{self.directory}: {module} {'has a' if 'magnitude' in keys else 'lacks its'} lora_magnitude_vector "
                f"although use_dora is {str(bool(self.settings.get('use_dora'))).lower()} in adapter_config.json"
            )
        rank = int(_by_pattern(self.settings, "rank_pattern", module, self.settings["r"]))
        alpha = float(_by_pattern(self.settings, "alpha_pattern", module, self.settings["lora_alpha"]))
        held = self.weights.shape(keys["a"])[0]
        if held != rank or rank < 1:
            raise RequestError(
                f"{self.directory}: {module} has rank {held} in {FILE} and {rank} in adapter_config.json"
            )
        scaling = alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
        return Change(keys["a"], keys["b"], keys.get("magnitude"), scaling, self._is_transposed(module, keys))

    def _is_transposed(self, module: str, keys: Mapping[str, str]) -> bool:
        """Whether the tensor is [in, out]; PEFT ignores fan_in_fan_out for a linear layer, such as the head of GPT-2."""
        if keys["a"].endswith("lora_embedding_A"):
            return True
        rows, columns = self.weights.shape(keys["b"])[0], self.weights.shape(keys["a"])[-1]
        stored = self._stored(f"{module}.weight")
        plain = rows != columns and stored in self.base and self.base.shape(stored) == (rows, columns)
        return bool(self.settings.get("fan_in_fan_out")) and not plain

    def _check_shapes(self, name: str) -> None:
        if name in self.replaced:
            made = self.weights.shape(self.replaced[name])
        else:
            change = self.changes[name]
            a, b = self.weights.shape(change.a), self.weights.shape(change.b)
            if not len(a) == len(b) == 2 or a[0] != b[1]:
                raise RequestError(f"{self.directory}: {name}: A {list(a)} and B {list(b)} do not multiply")
            if change.magnitude and self.weights.shape(change.magnitude) != (b[0],):
                raise RequestError(
                    f"{self.directory}: {name}: lora_magnitude_vector is "
                    f"{list(self.weights.shape(change.magnitude))} and B {list(b)}"
                )
            made = (a[1], b[0]) if change.transposed else (b[0], a[1])
        if made != self.base.shape(self._stored(name)):
            raise RequestError(
                f"{self.directory}: {name}: the adapter is made for shape {list(made)}, "
                f"the base has {list(self.base.shape(self._stored(name)))}"
            )

    def _check_tie(self, name: str) -> None:
        """Only the usual names tell which tensor a head shares (`inputs.tied_names`); GPT-2, for one, has others."""
        shape = self.base.shape(self._stored(name))
        if self.tied or len(shape) != 2 or name.endswith(VOCABULARY):
            return
        if name in self.replaced or self.changes[name].a.endswith("lora_embedding_A"):
            config = hub.load_config(self.base.directory).get_text_config()
            if config.tie_word_embeddings and shape[0] == config.vocab_size:
                raise RequestError(
                    f"{self.directory}: the adapter changes {name}, which {self.base.directory} may share with its head "
                    "under a name that is not known here: train without this module"
                )

    def _unties(self, head: str, embedding: str) -> bool:
        """Whether the adapted model has two tensors where the base has one."""
        if not any(name in part for name in (head, embedding) for part in (self.changes, self.replaced)):
            return False
        if self._same_change(head, embedding):
            return False
        dora = any(self.changes[n].magnitude for n in (head, embedding) if n in self.changes)
        if self.settings.get("ensure_weight_tying") and not dora:  # with DoRA, PEFT ties A and B, not the magnitudes
            raise RequestError(
                f"{self.directory}: adapter_config.json ties {head} to {embedding} (ensure_weight_tying), "
                f"but {FILE} changes them differently: set it to false there if both changes are meant"
            )
        return True

    def _same_change(self, head: str, embedding: str) -> bool:
        if head in self.replaced and embedding in self.replaced:
            keys = self.replaced[head], self.replaced[embedding]
            return all(
                np.array_equal(
                    self.weights.read(keys[0], b.start, b.count).copy(), self.weights.read(keys[1], b.start, b.count)
                )
                for b in blocks_of(head, self.base.shape(embedding))
            )
        if head not in self.changes or embedding not in self.changes:
            return False
        ours, theirs = self.changes[head], self.changes[embedding]
        if ours.magnitude or theirs.magnitude or ours.scaling != theirs.scaling:
            return False
        a, b = self.weights.get(theirs.a), self.weights.get(theirs.b)
        return np.array_equal(self.weights.get(ours.a), b.T) and np.array_equal(self.weights.get(ours.b), a.T)

    def fill(self, block: Block, base: Floats, out: Floats) -> None:
        """The adapted block, fp32 [count]: see `inputs.Source`."""
        name = block.name
        if name in self.replaced:
            self.weights.fill(self.replaced[name], block.start, out)
            return
        if self.nf4 is not None and name in self.nf4.names:
            self.nf4.fill(block, out)
        else:
            np.copyto(out, base)
        if name not in self.changes:
            return
        self._add_product(name, block, out)
        change = self.changes[name]
        if change.magnitude:
            rows = out.reshape(-1, block.width)
            magnitude = self.weights.get(change.magnitude).astype(np.float32)
            if change.transposed:
                np.multiply(rows, magnitude / self._column_norms(name), out=rows)
            else:
                norms = np.sqrt(np.vecdot(rows, rows))
                np.multiply(rows, (magnitude[block.rows] / norms)[:, None], out=rows)

    def _add_product(self, name: str, block: Block, out: Floats) -> None:
        """Add the block's rows of scaling · B A, or of its transpose, to `out`, fp32 [count]."""
        change, (a, b) = self.changes[name], self._factors(name)
        product = scratch(-1, block.count)
        rows = product.reshape(-1, block.width)
        if change.transposed:
            np.matmul(a[:, block.rows].T, b.T, out=rows)
        else:
            np.matmul(b[block.rows], a, out=rows)
        np.add(out, np.multiply(product, np.float32(change.scaling), out=product), out=out)

    def _column_norms(self, name: str) -> Floats:
        """‖·‖ of each column of W + scaling · (B A)ᵀ, fp32 [out]: one more pass over the tensor, when first asked for."""
        with self._columns_lock:
            if name not in self._columns:
                stored = self._stored(name)
                squares = np.zeros(self.base.shape(stored)[-1], dtype=np.float64)
                for block in blocks_of(name, self.base.shape(stored)):
                    values = scratch(-2, block.count)
                    self.base.fill(stored, block.start, values)
                    self._add_product(name, block, values)
                    squares += np.square(values, out=values).reshape(-1, block.width).sum(0, dtype=np.float64)
                self._columns[name] = np.sqrt(squares).astype(np.float32)
            return self._columns[name]

    def _factors(self, name: str) -> tuple[Floats, Floats]:
        """A [r, in] and B [out, r] in fp32; the last ones are kept, for the blocks of a tensor follow each other."""
        with self._lock:
            if name not in self._recent:
                if len(self._recent) >= KEPT:
                    del self._recent[next(iter(self._recent))]
                change = self.changes[name]
                a, b = (self.weights.get(key).astype(np.float32) for key in (change.a, change.b))
                self._recent[name] = (a, b)
            return self._recent[name]


def _rounded(values: Floats, dtype: str) -> Bytes:
    return narrow(values, dtype, np.empty(values.size, dtype=np.uint32)).copy()


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
                f"{directory}: the adapter uses {key}, which cannot be merged here: only LoRA, rsLoRA and DoRA can"
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
