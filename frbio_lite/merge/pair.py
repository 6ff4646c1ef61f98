"""A base and what was adapted from it, opened and checked: the merged tensors, one at a time.

`stream` writes them and the ablation puts them into a live model; both use `merge_tensors`, so they are the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from frbio_lite import model
from frbio_lite.errors import RequestError, nearest
from frbio_lite.merge.adapters import LoraAdapter
from frbio_lite.merge.methods import METHODS
from frbio_lite.merge.weights import DTYPES, Weights

# Settings that give the same weights another meaning; those that show in a shape are found there, by tensor.
SAME_SETTINGS = (
    "model_type",
    "architectures",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
    "vocab_size",
)


class Adapted(Protocol):
    def get(self, name: str, base: Tensor) -> Tensor | None:
        """The adapted tensor in any float dtype, or None where it is the base's."""


class FullModel:
    """The adapted side as a model of its own."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def get(self, name: str, base: Tensor) -> Tensor | None:
        del base
        return self.weights.get(name)


@dataclass(frozen=True)
class Pair:
    """What can be merged; `names` are the base's tensors without those that only repeat a tied one."""

    base_directory: Path
    adapted_directory: Path
    base: Weights
    adapted: Adapted
    names: tuple[str, ...]

    def is_float(self, name: str) -> bool:
        return self.base.stored_dtype(name) in DTYPES

    def read(self, name: str) -> tuple[Tensor, Tensor | None]:
        """The base tensor as stored, and the adapted one or None where it is the base's.

        Raises RequestError on NaN or Inf in either.
        """
        base = self.base.get(name)
        if not self.is_float(name):
            return base, None
        _require_finite(base, name, self.base_directory)
        adapted = self.adapted.get(name, base)
        if adapted is not None:
            _require_finite(adapted, name, self.adapted_directory)
        return base, adapted

    def merged(self, name: str, method: str, ratio: float, dtype: torch.dtype | None) -> Tensor:
        """The merged tensor as it is written: see `merge_tensors`."""
        return merge_tensors(name, *self.read(name), method, ratio, dtype)


def merge_tensors(
    name: str, base: Tensor, adapted: Tensor | None, method: str, ratio: float, dtype: torch.dtype | None
) -> Tensor:
    """A merged tensor in `dtype` (None: as the base is stored), computed in fp32 and rounded once.

    At ratio 0, where nothing was adapted (None), and for tensors that are not floats it is the base's own, bit for bit.
    Raises RequestError when float16 cannot hold a value.
    """
    if not base.is_floating_point():
        return base
    merged = base if adapted is None or ratio == 0.0 else METHODS[method](base, adapted, ratio)
    rounded = merged.to(dtype or base.dtype)
    if rounded.dtype == torch.float16 and merged.dtype != torch.float16 and not _is_finite(rounded):
        raise RequestError(
            f"{name}: the value {merged.abs().max().item():.3g} is beyond float16, which ends at 65504: "
            "merge with dtype bfloat16 or float32"
        )
    return rounded


def check_ratio(ratio: float) -> None:
    if not 0.0 <= ratio <= 1.0:  # false for NaN as well
        raise RequestError(f"the ratio {ratio} is not between 0 (the base) and 1 (the adapted model)")


def check_method(method: str) -> None:
    if method not in METHODS:
        raise RequestError(
            f"no merging method is called '{method}'{nearest(method, METHODS)}: choose from {', '.join(METHODS)}"
        )


def open_pair(base_directory: Path, adapted_directory: Path) -> Pair:
    """Open a base and an adapted model, or a PEFT LoRA adapter, and check that they belong together.

    Raises RequestError when they do not (another architecture, vocabulary, base, tensor name or shape), naming what
    differs.
    """
    config = _full_precision_config(base_directory)
    base = Weights(base_directory)
    tied = tied_names(config)
    model.check_parent(base_directory, adapted_directory)
    _check_vocabulary(base_directory, adapted_directory)
    names = tuple(_distinct(base, tied))
    adapted: Adapted
    if model.is_adapter(adapted_directory):
        adapted = LoraAdapter(adapted_directory, base, tied)
    else:
        _check_settings(base_directory, config, adapted_directory)
        weights = Weights(adapted_directory)
        _check_tensors(base, names, weights, _distinct(weights, tied))
        adapted = FullModel(weights)
    for name in names:
        if base.stored_dtype(name) == "F64" or base.stored_dtype(name).startswith(("F8", "F4", "F6")):
            raise RequestError(
                f"{base_directory}: {name} is stored as {base.stored_dtype(name)}: merging needs 16 or 32-bit floats"
            )
    return Pair(base_directory, adapted_directory, base, adapted, names)


def tied_names(config: Any) -> dict[str, str]:
    """Tensor names that only repeat another in this architecture → that other; empty when nothing is tied."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{config.model_type} is not a causal language model: {str(error).partition(chr(10))[0]}"
        ) from error
    return dict(empty.all_tied_weights_keys)


def _full_precision_config(directory: Path) -> Any:
    config = model.load_config(directory)
    if getattr(config, "quantization_config", None):
        raise RequestError(f"{directory} is quantised: merging needs the 16 or 32-bit weights it was made from")
    return config


def _distinct(weights: Weights, tied: dict[str, str]) -> list[str]:
    """The tensor names without those that only repeat a tied one, which must indeed be equal to it."""
    repeated = {name for name, source in tied.items() if name in weights and source in weights}
    for name in sorted(repeated):
        if not weights.get(name).equal(weights.get(tied[name])):
            raise RequestError(
                f"{weights.directory}: {name} differs from {tied[name]} although config.json ties them: "
                "set tie_word_embeddings to false there if both are meant"
            )
    return [name for name in weights.names() if name not in repeated]


def _check_vocabulary(base_directory: Path, adapted_directory: Path) -> None:
    """Both tokenizers, where both directories have one, give each token the same number."""
    base, adapted = _vocabulary(base_directory), _vocabulary(adapted_directory)
    if base is None or adapted is None or base == adapted:
        return
    token = min(t for t in base.keys() | adapted.keys() if base.get(t) != adapted.get(t))
    raise RequestError(
        f"{base_directory} and {adapted_directory} have different vocabularies: "
        f"token {token!r} is {base.get(token)} in the first and {adapted.get(token)} in the second"
    )


def _vocabulary(directory: Path) -> dict[str, int] | None:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{path} is not a usable tokenizer: {error}") from error


def _check_settings(base_directory: Path, base: Any, adapted_directory: Path) -> None:
    adapted = _full_precision_config(adapted_directory)
    for key in SAME_SETTINGS:
        ours, theirs = getattr(base, key, None), getattr(adapted, key, None)
        if ours != theirs:
            raise RequestError(
                f"{adapted_directory} cannot be merged with {base_directory}: "
                f"{key} is {theirs} in the first and {ours} in the second"
            )


def _check_tensors(base: Weights, names: tuple[str, ...], adapted: Weights, adapted_names: list[str]) -> None:
    missing, extra = sorted(set(names) - set(adapted_names)), sorted(set(adapted_names) - set(names))
    for lacking, having, found in ((adapted, base, missing), (base, adapted, extra)):
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            raise RequestError(f"{lacking.directory} lacks {found[0]}{more}, which {having.directory} has")
    for name in names:
        ours, theirs = base.shape(name), adapted.shape(name)
        if ours != theirs:
            raise RequestError(f"{name} is {list(ours)} in {base.directory} and {list(theirs)} in {adapted.directory}")
        if (base.stored_dtype(name) in DTYPES) != (adapted.stored_dtype(name) in DTYPES):
            raise RequestError(
                f"{name} is stored as {base.stored_dtype(name)} in {base.directory} and "
                f"{adapted.stored_dtype(name)} in {adapted.directory}"
            )
        if base.stored_dtype(name) not in DTYPES and not base.get(name).equal(adapted.get(name)):
            raise RequestError(
                f"{name} is not of floats and differs between {base.directory} and {adapted.directory}: "
                "it cannot be merged"
            )


def _require_finite(tensor: Tensor, name: str, directory: Path) -> None:
    if not _is_finite(tensor):
        raise RequestError(f"{directory}: {name} holds NaN or Inf: the training or the file is broken")


def _is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN or Inf; both show in the extremes, which take one pass and no memory."""
    return tensor.numel() == 0 or all(bool(t.isfinite()) for t in torch.aminmax(tensor))
