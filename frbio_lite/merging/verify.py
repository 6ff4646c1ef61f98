"""Check a written model by what it computes: loaded again, against the merge in memory and against the live adapter.

A model that is written, but loads with other weights than were merged (a trained head that a tie drops, an adapter left
out), looks right in every file. Logits of random tokens tell.
"""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frbio_lite import model
from frbio_lite.errors import RequestError
from frbio_lite.merging.adapters import LoraAdapter
from frbio_lite.merging.live import differing, write_into
from frbio_lite.merging.merger import Merger, Rounding
from frbio_lite.merging.methods import WeightedSum

TEXTS, LENGTH, SEED = 2, 32, 17  # of the random tokens
# (W + s B A) x and W x + s B (A x) differ by fp32 rounding: this part of what the adapter changes in the logits …
TOLERANCE = 1e-3
FLOOR = 1e-5  # … and this part of the logits, which counts where the adapter changes next to nothing
EQUAL = 1e-9  # of ratios


def verify(
    merger: Merger, written: Path, *, ratio: float, rounding: Rounding, device: torch.device | None = None
) -> dict[str, Any]:
    """Compare the model in `written` with the merge that was to be written there; one fp32 model in memory at a time.

    Bit for bit: all weights as loaded, and the logits of random tokens. Where one adapter was merged in a way that a
    scaling of it expresses, the unrounded merge is compared with that live adapter. Returns `reloaded_equal` (True),
    `live_adapter_error` (‖merge − live adapter‖ / ‖live adapter − base‖ of the logits; None where there is no such
    comparison), `rounding_change` (‖rounded − unrounded‖ / ‖unrounded − base‖; None when the merge changes nothing) and
    `tokens`. Raises RuntimeError when a comparison fails, and RequestError when the base cannot be put to use.
    """
    device = device or torch.device("cpu")
    base = merger.inputs.base.directory
    live = _load(base, device)
    tokens = _tokens(live).to(device)
    plain = _logits(live, tokens)
    write_into(live, merger, ratio, None, "unrounded")
    exact = _logits(live, tokens)
    write_into(live, merger, ratio, rounding, "rounded")
    rounded = _logits(live, tokens)
    del live
    _free(device)
    error = None
    adapter, share = _as_scaling(merger, ratio)
    if adapter is not None:
        error = _check_adapter(adapter, share, _adapted_logits(base, adapter, share, tokens, device), plain, exact)
        _free(device)
    _check_written(merger, written, ratio, rounding, tokens, rounded)
    _free(device)
    return {
        "reloaded_equal": True,
        "live_adapter_error": error,
        "rounding_change": _part(rounded - exact, exact - plain),
        "tokens": tokens.numel(),
    }


def _check_written(
    merger: Merger, written: Path, ratio: float, rounding: Rounding, tokens: Tensor, expected: Tensor
) -> None:
    try:
        live = _load(written, tokens.device)
    except RequestError as error:
        raise RuntimeError(f"the merged model does not load: {error}") from error
    if name := differing(live, merger, ratio, rounding):
        raise RuntimeError(f"{written}: {name}, loaded again, is not what was merged: the written model is wrong")
    if not _logits(live, tokens).equal(expected):
        raise RuntimeError(
            f"{written}: the model, loaded again, has the merged weights but other logits: its config.json is wrong"
        )


def _check_adapter(adapter: LoraAdapter, share: float, live: Tensor, plain: Tensor, exact: Tensor) -> float | None:
    """‖merge − live adapter‖ / ‖live adapter − base‖. Raises RuntimeError when it is more than rounding explains."""
    error, change = _norm(exact - live), _norm(live - plain)
    if not error <= TOLERANCE * change + FLOOR * _norm(live):  # false for NaN as well
        raise RuntimeError(
            f"the merge is not what the live adapter {adapter.directory} at ratio {share:g} computes: their logits differ "
            f"by {_part(exact - live, live - plain) or math.inf:.2g} of what the adapter changes in the base's"
        )
    return _part(exact - live, live - plain)


def _as_scaling(merger: Merger, ratio: float) -> tuple[LoraAdapter | None, float]:
    """The one adapter and the share of it that the merge comes to; None when no live adapter computes the same."""
    sources = merger.inputs.adapted
    adapter = sources[0] if len(sources) == 1 else None
    if not isinstance(adapter, LoraAdapter) or adapter.nf4 is not None:
        return None, 0.0
    shares = set()
    for name, rule in merger.rules.items():
        share = merger.factors[name] * ratio
        weights: Sequence[float] = (1.0, 0.0)
        if share != 0.0:
            if not isinstance(rule, WeightedSum):
                return None, 0.0
            weights = rule.coefficients(merger.grams.get(name), share)
        if len(weights) != 2 or abs(sum(weights) - 1.0) > EQUAL:
            return None, 0.0
        if name in adapter.changes or name in adapter.replaced:
            shares.add(weights[1])
    if not shares or max(shares) - min(shares) > EQUAL or max(shares) == 0.0:
        return None, 0.0
    found = max(shares)
    return (adapter, found) if adapter.scalable or abs(found - 1.0) <= EQUAL else (None, 0.0)


def _adapted_logits(base: Path, adapter: LoraAdapter, share: float, tokens: Tensor, device: torch.device) -> Tensor:
    """Of the base with its adapter, unmerged, at `share` of its scaling."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    with warnings.catch_warnings():  # that head and embedding were tied, which is taken care of
        warnings.simplefilter("ignore")
        live = PeftModel.from_pretrained(_load(base, device), str(adapter.directory), local_files_only=True).eval()
    inner = live.get_base_model()
    for name in adapter.copies:  # PEFT loads them over the base's own, in the dtype of the training
        stored = adapter.base.get(adapter.tied.get(name, name))
        module = inner.get_submodule(name.removeprefix(adapter.prefix).removesuffix(".weight"))
        getattr(module, "base_layer", module).weight.data.copy_(torch.from_numpy(stored))
    for module in inner.modules():
        if isinstance(module, LoraLayer):
            module.scaling.update({key: value * share for key, value in module.scaling.items()})
    return _logits(inner, tokens)


def _load(directory: Path, device: torch.device) -> model.Model:
    """The model in fp32, in memory of its own: mapped from a file, its weights would lie at addresses that change sums."""
    live = model.load_model(directory, dtype=torch.float32, device=device)
    if device.type == "cpu":
        for parameter in live.parameters():
            parameter.data = parameter.data.clone()
    return live


def _tokens(live: model.Model) -> Tensor:
    """Random token numbers, int64 [texts, length], the same at each call."""
    config = live.config.get_text_config()
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, config.vocab_size, (TEXTS, length), generator=generator)


def _logits(live: model.Model, tokens: Tensor) -> Tensor:
    """fp32 [texts, length, vocabulary], on the CPU."""
    with torch.inference_mode():
        found: Tensor = live(input_ids=tokens, use_cache=False).logits.float().cpu()
    return found


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _part(difference: Tensor, whole: Tensor) -> float | None:
    return _norm(difference) / _norm(whole) if _norm(whole) > 0.0 else None


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
