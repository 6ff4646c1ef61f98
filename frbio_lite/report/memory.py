"""The memory that the plan foresaw for training, by part, beside the peak that was measured on the GPU."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from frbio_lite.report import format as fmt
from frbio_lite.report.charts import WIDTH, element
from frbio_lite.report.language import N_, _, percent
from frbio_lite.report.load import Memory, Run

OUTSIDE = "CUDA context"  # which torch does not count, so that it is not compared
PARTS = (
    N_("weights"),
    N_("quantisation constants"),
    N_("adapters"),
    N_("gradients"),
    N_("optimizer states"),
    N_("kept activations"),
    N_("16-bit copies of weights"),
    N_("activations of one layer"),
    N_("logits chunk and gradients of the loss"),
    N_("workspace"),
    N_("allocator's reserve"),
    N_("CUDA context"),
)
BAR, LABEL, GAP = 30, 22, 14  # heights in user units of a chart


def part(run: Run) -> dict[str, Any] | None:
    """What the page says of memory in training; None where training is not finished or told nothing of it."""
    manifest = run.manifests.get("train")
    if manifest is None:
        return None
    peak, device = manifest.figures.get("peak_memory_bytes"), manifest.figures.get("device")
    memory = run.memory
    if memory is None:
        return {"sentence": _unplanned(peak, device), "chart": ""} if isinstance(peak, int) else None
    predicted = memory.predicted or {}
    compared = {name: size for name, size in predicted.items() if size and name != OUTSIDE}
    if not compared:
        return {"sentence": _no_plan(memory), "chart": ""}
    total, tones = sum(compared.values()), _tones(compared)
    return {
        "sentence": _sentence(total, memory.reserved_bytes, device),
        "chart": _chart(compared, tones, memory.reserved_bytes),
        "rows": [
            {"part": _(name), "tone": tones[name], "size": fmt.size(size), "share": percent(size / total)}
            for name, size in compared.items()
        ],
        "total": fmt.size(total),
        "outside": fmt.size(predicted[OUTSIDE]) if OUTSIDE in predicted else "",
        "reserved": fmt.size(memory.reserved_bytes),
        "allocated": fmt.size(memory.allocated_bytes),
    }


def _unplanned(peak: int, device: Any) -> str:
    if device == "cpu":
        return _(
            "Training ran on a CPU: the memory plan is for GPUs, so there is nothing to compare. The process held at most {peak}."
        ).format(peak=fmt.size(peak))
    return _("What the memory plan foresaw was not recorded. Training held at most {peak}.").format(peak=fmt.size(peak))


def _no_plan(memory: Memory) -> str:
    told = _("Torch reserved at most {reserved}; no plan stands beside it.").format(
        reserved=fmt.size(memory.reserved_bytes)
    )
    return f"{told} {memory.why_not}".strip()


def _sentence(total: int, reserved: int, device: Any) -> str:
    told = _("On {device}, training took at most {reserved}; the plan foresaw {planned}.").format(
        planned=fmt.size(total),
        reserved=fmt.size(reserved),
        device=device if isinstance(device, str) else _("this GPU"),
    )
    if not reserved:
        return told
    difference = total / reserved - 1
    off = (
        _("That is {share} above what was measured.")
        if difference >= 0
        else _("That is {share} below what was measured.")
    )
    return f"{told} " + off.format(share=percent(abs(difference)))


def _tones(parts: dict[str, int]) -> dict[str, str]:
    """A colour per part: the same in all runs, those of parts that are not known after the others."""
    names = [*PARTS, *(name for name in parts if name not in PARTS)]
    return {name: f"share-{names.index(name) % len(PARTS) + 1}" for name in parts}


def _chart(parts: dict[str, int], tones: dict[str, str], reserved: int) -> Markup:
    """Two bars on one scale: the plan, part after part, and the measured peak."""
    total = sum(parts.values())
    unit = WIDTH / max(total, reserved)
    drawn, start = [], 0.0
    for name, size in parts.items():
        text = f"{_(name)}: {fmt.size(size)}"
        drawn.append(_rect(start, LABEL, size * unit, tones[name], text))
        start += size * unit
    second = LABEL + BAR + GAP
    labels = [(_("foreseen: {size}"), total, LABEL - 7), (_("measured: {size}"), reserved, second + LABEL - 7)]
    told = "; ".join(text.format(size=fmt.size(size)) for text, size, _y in labels)
    return element(
        "svg",
        element("title", told),
        *[element("text", text.format(size=fmt.size(size)), x=0, y=y) for text, size, y in labels],
        *drawn,
        _rect(0.0, second + LABEL, reserved * unit, "measured", told),
        class_="chart bars",
        viewBox=f"0 0 {WIDTH} {second + LABEL + BAR}",
        role="img",
        aria_label=told,
    )


def _rect(x: float, y: int, width: float, tone: str, text: str) -> Markup:
    return element("rect", element("title", text), x=x, y=y, width=width, height=BAR, class_=f"share {tone}")
