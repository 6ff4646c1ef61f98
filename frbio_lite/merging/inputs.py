"""A base and what was adapted from it, opened and checked: the tensors of one name, block by block in fp32.

`stream` writes what is merged of them and the ablation puts it into a live model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from frbio_lite import hub
from frbio_lite.errors import RequestError
from frbio_lite.merging.blocks import Block, blocks_of, scratch
from frbio_lite.merging.profile import layer_of
from frbio_lite.merging.vocabulary import RowMap, row_map
from frbio_lite.merging.weights import DTYPES, Floats, Weights

AdapterBase = Literal["bf16", "nf4-dequant"]  # what an adapter is added to: the stored weights, or NF4's view of them
Vocabulary = Literal["same", "base"]

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
# Settings of a configuration file that say nothing about what the weights mean.
INCIDENTAL = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache"})
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class Source(Protocol):
    """One adapted side."""

    @property
    def directory(self) -> Path: ...

    def fill(self, block: Block, base: Floats, out: Floats) -> None:
        """The adapted block, fp32 [count], into `out`; `base` is the base's, fp32 [count], not to be changed."""
        ...


@dataclass(frozen=True)
class FullModel:
    """The adapted side as a model of its own; `rows` where its vocabulary is brought to the base's."""

    weights: Weights
    tied: Mapping[str, str] = field(default_factory=dict)  # a head that it holds as its embedding
    rows: Mapping[str, RowMap] = field(default_factory=dict)  # by tensor name

    @property
    def directory(self) -> Path:
        return self.weights.directory

    def fill(self, block: Block, base: Floats, out: Floats) -> None:
        if block.name in self.rows:
            self.rows[block.name].fill(self.weights, block, base, out)
        else:
            name = block.name if block.name in self.weights else self.tied[block.name]
            self.weights.fill(name, block.start, out)


@dataclass(frozen=True)
class Inputs:
    """What can be merged. `names` are the merged model's tensors, without those that only repeat a tied one."""

    base: Weights
    adapted: tuple[Source, ...]
    names: tuple[str, ...]
    read_from: Mapping[str, str] = field(default_factory=dict)  # an untied head → the base's embedding

    @property
    def unties(self) -> bool:
        """Whether head and embedding, one tensor in the base, are two in the merged model."""
        return bool(self.read_from)

    @property
    def layers(self) -> int:
        return 1 + max((n for n in map(layer_of, self.names) if n is not None), default=0)

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.base.directory, *(s.directory for s in self.adapted))

    def stored(self, name: str) -> str:
        """The base's tensor that a merged one comes from."""
        return self.read_from.get(name, name)

    def is_float(self, name: str) -> bool:
        return self.base.stored_dtype(self.stored(name)) in DTYPES

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(self.stored(name))

    def dtype(self, name: str) -> str:
        """As the base stores it, in the words of safetensors."""
        return self.base.stored_dtype(self.stored(name))

    def blocks(self, name: str) -> list[Block]:
        return blocks_of(name, self.shape(name))

    def read(self, block: Block) -> list[Floats]:
        """The base's block and each adapted one, fp32 [count], in scratch memory of this thread."""
        base = scratch(0, block.count)
        self.base.fill(self.stored(block.name), block.start, base)
        tensors = [base]
        for i, source in enumerate(self.adapted, start=1):
            tensors.append(scratch(i, block.count))
            source.fill(block, base, tensors[-1])
        return tensors

    def require_finite(self, block: Block, tensors: Sequence[Floats]) -> None:
        """Raise RequestError, naming tensor and model, when a block holds NaN or Inf."""
        for tensor, directory in zip(tensors, self.directories, strict=True):
            if not bool(np.isfinite(tensor).all()):
                raise RequestError(f"{directory}: {block.name} holds NaN or Inf: the training or the file is broken")


def open_inputs(
    base_directory: Path,
    adapted: Sequence[Path],
    *,
    adapter_base: AdapterBase = "bf16",
    vocabulary: Vocabulary = "same",
) -> Inputs:
    """Open a base and adapted models or PEFT LoRA adapters, and check that they belong together.

    With `vocabulary="base"` the embedding and head of a model with another vocabulary are brought to the base's, token
    by token. Raises RequestError when they do not belong together (another architecture, vocabulary, base, tensor name
    or shape), naming what differs.
    """
    settings = read_settings(base_directory)
    base = Weights(base_directory)
    tied = tied_names(base_directory, settings, base)
    names = _distinct(base, tied)
    for name in names:
        if base.stored_dtype(name) == "F64" or base.stored_dtype(name).startswith(("F8", "F4", "F6")):
            raise RequestError(
                f"{base_directory}: {name} is stored as {base.stored_dtype(name)}: merging needs 16 or 32-bit floats"
            )
    sources: list[Source] = []
    read_from: dict[str, str] = {}
    for directory in adapted:
        hub.check_parent(base_directory, directory)
        rows = _rows(base_directory, directory, base, vocabulary)
        if hub.is_adapter(directory):
            from frbio_lite.merging.adapters import LoraAdapter  # loads torch, which models alone do not need

            adapter = LoraAdapter(directory, base, tied, adapter_base)
            read_from.update(adapter.untied)
            sources.append(adapter)
        elif adapter_base != "bf16":
            raise RequestError(
                f"{directory} is a whole model, which was added to nothing: adapter_base {adapter_base} is for adapters"
            )
        else:
            _check_settings(base_directory, settings, directory, ignore_vocabulary=bool(rows))
            weights = Weights(directory)
            _check_tensors(base, names, weights, _distinct(weights, tied), set(rows))
            sources.append(FullModel(weights, tied, rows))
    return Inputs(base, tuple(sources), tuple(sorted({*names, *read_from})), read_from)


def read_settings(directory: Path) -> dict[str, Any]:
    """config.json as it stands. Raises RequestError when it is missing, broken, or that of a quantised model."""
    try:
        settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{directory} has no usable config.json: {error}") from error
    if not isinstance(settings, dict):
        raise RequestError(f"{directory} has no usable config.json: it holds no mapping of settings")
    if settings.get("quantization_config"):
        raise RequestError(f"{directory} is quantised: merging needs the 16 or 32-bit weights it was made from")
    return settings


def tied_names(directory: Path, settings: Mapping[str, Any], weights: Weights) -> dict[str, str]:
    """The head's tensor name → the embedding's, when the architecture shares one tensor between them; else empty."""
    embeddings = [n for n in weights.names() if n.endswith(EMBEDDING)]
    if len(embeddings) != 1:
        return {}
    head = next((n for n in weights.names() if n.endswith(HEAD)), hub.text_prefix(directory) + HEAD)
    tied = settings.get("tie_word_embeddings")
    if tied is None:  # the architecture's default; without a head in the file there is nothing to ask
        tied = head not in weights or hub.load_config(directory).get_text_config().tie_word_embeddings
    return {head: embeddings[0]} if tied else {}


def _distinct(weights: Weights, tied: Mapping[str, str]) -> list[str]:
    """The tensor names without those that only repeat a tied one, which must indeed be equal to it."""
    repeated = {name for name, source in tied.items() if name in weights and source in weights}
    for name in sorted(repeated):
        if not _equal(weights, name, weights, tied[name]):
            raise RequestError(
                f"{weights.directory}: {name} differs from {tied[name]} although config.json ties them: "
                "set tie_word_embeddings to false there if both are meant"
            )
    return [name for name in weights.names() if name not in repeated]


def _equal(weights: Weights, name: str, others: Weights, other: str) -> bool:
    if weights.shape(name) != others.shape(other) or weights.stored_dtype(name) != others.stored_dtype(other):
        return False
    return all(
        np.array_equal(weights.read(name, b.start, b.count).copy(), others.read(other, b.start, b.count))
        for b in blocks_of(name, weights.shape(name))
    )


def _rows(base_directory: Path, directory: Path, base: Weights, vocabulary: Vocabulary) -> dict[str, RowMap]:
    """How the rows of embedding and head are found where the vocabularies differ and `vocabulary` allows it."""
    rows = row_map(base_directory, directory, vocabulary)
    if rows is None:
        return {}
    if hub.is_adapter(directory):
        raise RequestError(
            f"{directory}: an adapter cannot be brought to another vocabulary: merge it into its own base"
        )
    return {n: rows for n in base.names() if n.endswith((HEAD, EMBEDDING))}


def _check_settings(
    base_directory: Path, base: Mapping[str, Any], adapted_directory: Path, ignore_vocabulary: bool
) -> None:
    adapted = read_settings(adapted_directory)
    if {k: v for k, v in base.items() if k not in INCIDENTAL} == {
        k: v for k, v in adapted.items() if k not in INCIDENTAL
    }:
        return
    ours_all, theirs_all = hub.load_config(base_directory), hub.load_config(adapted_directory)
    for key in SAME_SETTINGS:
        ours, theirs = getattr(ours_all, key, None), getattr(theirs_all, key, None)
        if ours != theirs and not (key == "vocab_size" and ignore_vocabulary):
            raise RequestError(
                f"{adapted_directory} cannot be merged with {base_directory}: "
                f"{key} is {theirs} in the first and {ours} in the second"
            )


def _check_tensors(
    base: Weights, names: list[str], adapted: Weights, adapted_names: list[str], other_rows: set[str]
) -> None:
    """Same names, shapes (but the number of rows where `other_rows` allows it), and floats where floats are."""
    missing, extra = sorted(set(names) - set(adapted_names)), sorted(set(adapted_names) - set(names))
    for lacking, having, found in ((adapted, base, missing), (base, adapted, extra)):
        if found:
            more = f" and {len(found) - 1} more tensors" if len(found) > 1 else ""
            raise RequestError(f"{lacking.directory} lacks {found[0]}{more}, which {having.directory} has")
    for name in names:
        ours, theirs = base.shape(name), adapted.shape(name)
        if ours != theirs and not (name in other_rows and ours[1:] == theirs[1:]):
            raise RequestError(f"{name} is {list(ours)} in {base.directory} and {list(theirs)} in {adapted.directory}")
        if (base.stored_dtype(name) in DTYPES) != (adapted.stored_dtype(name) in DTYPES):
            raise RequestError(
                f"{name} is stored as {base.stored_dtype(name)} in {base.directory} and "
                f"{adapted.stored_dtype(name)} in {adapted.directory}"
            )
        if base.stored_dtype(name) not in DTYPES and not _equal(base, name, adapted, name):
            raise RequestError(
                f"{name} is not of floats and differs between {base.directory} and {adapted.directory}: "
                "it cannot be merged"
            )
