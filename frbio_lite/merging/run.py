"""`frbio merge`: one merged model written as an artifact, by a method and a ratio or by a mergekit configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from frbio_lite import hub
from frbio_lite.artifacts import canonical_hash, writing
from frbio_lite.errors import RequestError
from frbio_lite.merging import mergekit
from frbio_lite.merging.inputs import AdapterBase, Vocabulary, open_inputs
from frbio_lite.merging.merger import Merger, Rounding, by_method, check_ratio
from frbio_lite.merging.methods import Parameters, check_method
from frbio_lite.merging.profile import Profile
from frbio_lite.merging.stream import OutputDtype, described, merge_models, output_dtype
from frbio_lite.merging.weights import SHARD_BYTES
from frbio_lite.progress import say


@dataclass(frozen=True)
class Output:
    """How a merged model is written."""

    directory: Path
    dtype: OutputDtype = "auto"
    stochastic_rounding: bool = False
    seed: int = 17
    shard_bytes: int = SHARD_BYTES
    verify: bool = False

    def check(self) -> None:
        """Raise RequestError when there is something in the directory: a model is never written over another."""
        if self.directory.exists() and (not self.directory.is_dir() or any(self.directory.iterdir())):
            raise RequestError(f"{self.directory} exists and is not empty: choose another --out or remove it first")


def merge_to(
    base: Path,
    adapted: Sequence[Path],
    output: Output,
    *,
    method: str,
    ratio: float,
    parameters: Parameters,
    profile: Profile,
    adapter_base: AdapterBase = "bf16",
    vocabulary: Vocabulary = "same",
) -> Path:
    """Merge adapted models or adapters into `base` by one method; returns the directory that was written.

    Raises RequestError for what cannot be merged.
    """
    check_ratio(ratio)
    check_method(method, len(adapted))
    inputs = open_inputs(base, adapted, adapter_base=adapter_base, vocabulary=vocabulary)
    settings = {
        "method": method,
        "ratio": ratio,
        "parameters": asdict(parameters),
        "profile": [[part, list(values)] for part, values in profile.entries],
        "adapter_base": adapter_base,
        "vocabulary": vocabulary,
    }
    card = {"method": method}
    if profile.entries:
        card["ratio, times"] = "; ".join(f"{p}: {', '.join(map(str, v))}" for p, v in profile.entries)
    if adapter_base != "bf16":
        card["added to"] = "the weights as 4-bit training held them (NF4, dequantised)"
    merger = by_method(inputs, method, parameters, profile)
    return _write(merger, output, ratio, settings, card, [base, *adapted])


def merge_config(config: Path, output: Output) -> Path:
    """Merge as a mergekit configuration file says; see `frbio_lite.merging.mergekit` for what is supported."""
    read = mergekit.read_config(config)
    directories = [hub.fetch(name, revision) for name, revision in read.models()]
    inputs = open_inputs(directories[0], directories[1:], vocabulary=read.vocabulary)
    merger = mergekit.plan(read, inputs, seed=output.seed)
    text = config.read_text(encoding="utf-8")
    told = text
    for (name, _), directory in zip(read.models(), directories, strict=True):
        told = told.replace(name, described(directory))  # without the rest of a private path
    card = {"method": f"{read.merge_method}, as the configuration below", "configuration": told}
    dtype: OutputDtype = read.written if output.dtype == "auto" else output.dtype
    settings = {"configuration": text}
    return _write(merger, replace(output, dtype=dtype), 1.0, settings, card, directories)


def _write(
    merger: Merger,
    output: Output,
    ratio: float,
    settings: Mapping[str, Any],
    card: Mapping[str, str],
    directories: Sequence[Path],
) -> Path:
    output.check()
    rounding = Rounding(output_dtype(output.dtype), output.stochastic_rounding, output.seed)
    settings = {
        **settings,
        "dtype": output.dtype,
        "stochastic_rounding": output.stochastic_rounding,
        "seed": output.seed,
    }
    names = [
        "base",
        "train",
        *(f"train-{i}" for i in range(2, len(directories))),
    ]  # the pipeline's word for what it trains
    hub.digest_ahead(directories)  # while the merge is made
    with writing(output.directory, "MergedModel", "", settings=settings, parents={}, seed=output.seed) as artifact:
        artifact.figures = merge_models(
            merger,
            artifact.path,
            ratio=ratio,
            rounding=rounding,
            shard_bytes=output.shard_bytes,
            description=card,
            hashes=artifact.hashes,
        )
        artifact.parents = {name: hub.digest(d) for name, d in zip(names, directories, strict=True)}
        artifact.key = canonical_hash({"settings": settings, "parents": artifact.parents})
        if output.verify:
            from frbio_lite.merging.verify import verify  # loads transformers and the whole model

            artifact.figures["verified"] = verify(merger, artifact.path, ratio=ratio, rounding=rounding)
    _tell(artifact.figures)
    return output.directory


def _tell(figures: Mapping[str, Any]) -> None:
    size = f"{figures['bytes'] / 1e9:.2f} GB" if figures["bytes"] >= 1e9 else f"{figures['bytes'] / 1e6:.1f} MB"
    line = f"merge: {figures['tensors']} tensors, {size} of {figures['dtype']} in {figures['seconds']:.1f} s"
    if figures["effective_ratio"] is not None:
        line += f"; effective ratio {figures['effective_ratio']:.3f}"
    say(line)
