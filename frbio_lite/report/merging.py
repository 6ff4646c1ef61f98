"""What a merge did: in a sentence, by part of the model, and the weights that an adapter was added to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from frbio_lite.report import format as fmt
from frbio_lite.report.language import N_, _, integer, ngettext, number, significant
from frbio_lite.report.load import AdapterBase, MergedTensor, MergeFigures, Run, text_at

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")
# The first that matches a tensor's name counts: a norm stays a norm inside an attention block.
PARTS = {
    N_("norms"): re.compile(r"norm|(?:^|\.)ln_", re.IGNORECASE),
    N_("embedding and head"): re.compile(r"embed|lm_head|(?:^|\.)(?:wte|wpe)\."),
    N_("attention"): re.compile(r"attn|attention"),
    N_("MLP"): re.compile(r"mlp|ffn|feed_forward|moe|experts|(?:^|\.)fc\d"),
}
OTHER = N_("other")
SHOWN = ("attention", "MLP", "embedding and head", "norms", OTHER)  # the order on the page
ALL_OF_IT = 1.0005  # shares that are written as 1.000 at most
BASES = {
    "bf16": N_("the stored weights (bf16)"),
    "nf4-dequant": N_("what 4 bits hold of the weights (nf4-dequant)"),
}


def layer_of(name: str) -> int | None:
    """The number of the layer a tensor belongs to; None for embedding, final norm and head."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def part_of(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if pattern.search(name)), OTHER)


def by_part(tensors: Iterable[MergedTensor]) -> dict[str, list[MergedTensor]]:
    """The parts that there are, in the page's order."""
    found: dict[str, list[MergedTensor]] = {part: [] for part in SHOWN}
    for row in tensors:
        found[part_of(row.name)].append(row)
    return {part: rows for part, rows in found.items() if rows}


def sentence(figures: MergeFigures | None, ratio: float | None) -> str:
    """How far adaptation moved the weights, how much of that the merged model holds, and whether slerp matters."""
    if figures is None or figures.relative_change is None:
        return ""
    if figures.relative_change == 0.0:
        return _("Adaptation changed no weight: the merged model is the base itself.")
    moved = _("Adaptation changed the weights by {share} of their length").format(
        share=fmt.share(figures.relative_change)
    )
    parts = [moved, *_kept_clause(figures.effective_ratio, ratio), *_linear_clause(figures.slerp_is_linear_share)]
    return _("; ").join(parts) + "."


def _kept_clause(kept: float | None, ratio: float | None) -> list[str]:
    if kept is None:
        return []
    asked = "" if ratio is None else _(", at a merge ratio of {ratio}").format(ratio=fmt.ratio(ratio))
    if kept == 0.0:
        return [_("the merged model holds none of that change{asked}").format(asked=asked)]
    told = (
        _("the merged model moved {kept} times as far{asked}")
        if kept > ALL_OF_IT
        else _("the merged model holds {kept} of that change{asked}")
    )
    return [told.format(kept=number(kept, 2), asked=asked)]


def _linear_clause(share: float | None) -> list[str]:
    if share is None:
        return []
    if share == 0.0:
        return [_("no changed tensor lies so close to its base that slerp would be a straight line")]
    if share == 1.0:
        return [_("for all of the changed tensors slerp is a straight line, so slerp and linear give the same there")]
    told = _("for {share} of the changed tensors slerp is a straight line, so slerp and linear give the same there")
    return [told.format(share=fmt.share(share))]


def table(tensors: Sequence[MergedTensor]) -> list[dict[str, str]]:
    """A row per part of the model; all but the number of tensors is of those that changed."""
    return [_row(part, rows) for part, rows in by_part(tensors).items()]


def _row(part: str, rows: Sequence[MergedTensor]) -> dict[str, str]:
    moved = [row for row in rows if changed(row)]
    changes = [row.relative_change for row in moved if row.relative_change is not None]
    angles = [row.angle_degrees for row in moved if row.angle_degrees is not None]
    kept = [row.effective_ratio for row in moved if row.effective_ratio is not None]
    return {
        "part": _(part),
        "tensors": fmt.count(len({row.name for row in rows})),
        "changed": fmt.count(len({row.name for row in moved})),
        "median": fmt.share(median(changes)) if changes else fmt.ABSENT,
        "largest": fmt.share(max(changes)) if changes else fmt.ABSENT,
        "angle": f"{significant(max(angles), 3)}°" if angles else fmt.ABSENT,
        "linear": fmt.share(sum(row.slerp_is_linear for row in moved) / len(moved)) if moved else fmt.ABSENT,
        "kept": _span(kept),
    }


def changed(row: MergedTensor) -> bool:
    """A base of zeros has no ‖Δ‖/‖W‖; that such a tensor changed shows in what survived of it."""
    return row.relative_change > 0.0 if row.relative_change is not None else row.effective_ratio is not None


def _span(values: Sequence[float]) -> str:
    if not values:
        return fmt.ABSENT
    low, high = (number(bound, 3) for bound in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def adapter_base(measured: AdapterBase | None) -> dict[str, Any] | None:
    """Which weights the adapter was added to and why, with the bits per byte of each where they were measured."""
    if measured is None:
        return None
    bits = {"bf16": measured.bf16, "nf4-dequant": measured.nf4_dequant}
    into = _("merged into {weights}")
    rows = [(into.format(weights=_(BASES[name])), value, name == measured.chosen) for name, value in bits.items()]
    rows.insert(0, (_("not merged: the live adapter on the 4-bit base it was trained on"), measured.live, False))
    return {
        "why": _why(measured.chosen, bits),
        "rows": [
            {"name": name, "bits": number(value, 4), "chosen": chosen}
            for name, value, chosen in rows
            if value is not None
        ],
    }


def _why(chosen: str, bits: Mapping[str, float | None]) -> str:
    mine = bits.get(chosen)
    others = [value for name, value in bits.items() if name != chosen and value is not None]
    if mine is None or not others:
        told = _("The adapter was added to {weights}, as it was told to be; no other weights were tried.")
    elif mine > min(others):
        told = _("The adapter was added to {weights}, though others need fewer bits per byte of held-out text.")
    elif mine == min(others):
        told = _("The adapter was added to {weights}: all need the same bits per byte of held-out text.")
    else:
        told = _(
            "The adapter was added to {weights}: it then needs fewer bits per byte of held-out text (less is better). "
            "The live adapter stands beside them: a merge should come close to it."
        )
    return told.format(weights=_(BASES.get(chosen, chosen)))


def scored_live(run: Run) -> str:
    """That the chosen ratio was scored on the 4-bit base, which is not what is written; empty where that is not so."""
    choice = run.choice
    if choice is None or (choice.method, text_at(run.recipe, "train", "method")) != ("lora_scale", "qlora"):
        return ""
    if choice.ratio == 0.0:
        return ""
    return _("The chosen ratio was scored unmerged, on the 4-bit base; what is written is its merge.")


def screened(run: Run) -> str:
    """How many merges were left out before the choice; empty where no screen was asked for."""
    out = run.choice.screened_out if run.choice else None
    if out is None:
        return ""
    if not out:
        return _("The screen left out no merge: all were scored on all tasks.")
    return ngettext(
        "Before the choice {n} merge was screened out: on the quick tasks it ranked behind those that went on to all.",
        "Before the choice {n} merges were screened out: on the quick tasks they ranked behind those that went on to all.",
        len(out),
    ).format(n=integer(len(out)))


def profile(value: Any) -> str:
    """`self_attn × 0, 0.5, 1; * × 0.5`, from the entries of a recipe or of `frbio merge`; empty where none are."""
    found = []
    for entry in value if isinstance(value, list) else []:
        pair = [entry.get("filter"), entry.get("values")] if isinstance(entry, Mapping) else entry
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], list):
            found.append(f"{pair[0]} × {', '.join(map(str, pair[1]))}")
    return "; ".join(found)
