"""Memory foreseen and measured: what training records on a GPU, and how the page sets the two side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE
from transformers import Qwen3Config, Qwen3ForCausalLM

from frbio_lite import recipe, training
from frbio_lite.artifacts import MANIFEST
from frbio_lite.errors import RequestError
from frbio_lite.memory import Card, plan
from frbio_lite.memory.trace import TAGS
from frbio_lite.report import memory, write_report

from .browser import CHROMIUM, opened
from .conftest import MakeRun, Render
from .page import HOSTILE, Page, with_json

MIB = 2**20
PARTS = {"weights": 600 * MIB, "adapters": 0, "kept activations": 300 * MIB, "allocator's reserve": 100 * MIB}
CONTEXT = {"CUDA context": 480 * MIB}


def recorded(run: Path, figure: Any = ..., **figures: Any) -> Path:
    """The run with this `memory` among the figures of its training."""
    found = figures | ({} if figure is ... else {"memory": figure})
    with_json(run / "train" / MANIFEST, lambda manifest: manifest["figures"].update(found))
    return run


def on_gpu(predicted: Any, reserved: int, allocated: int = 7 * MIB, **more: Any) -> dict[str, Any]:
    return {"predicted": predicted, "reserved_bytes": reserved, "allocated_bytes": allocated} | more


def bars(page: Page) -> list[tuple[str, float, float]]:
    """Class, start and width of what is drawn, in user units."""
    drawing = re.findall(r'<svg class="chart bars".*?</svg>', page.html, re.DOTALL)[0]
    found = re.findall(r'<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="\d+" class="share ([\w-]+)">', drawing)
    return [(tone, float(x), float(width)) for x, width, tone in found]


def test_parts_stand_beside_the_measured_peak(make_run: MakeRun, render: Render) -> None:
    page = render(recorded(make_run(), on_gpu({**PARTS, **CONTEXT}, 800 * MIB, 750 * MIB), device="NVIDIA L4"))
    said = page.said()
    # the context, which torch does not count, is in neither
    assert "On NVIDIA L4, training took at most 800.00 MiB; the plan foresaw 1,000.00 MiB." in said
    assert "That is 25.0% above what was measured." in said
    assert "CUDA’s own context, foreseen with 480.00 MiB, comes on top" in said
    rows = [[cell.strip() for cell in row] for row in page.cells]
    for row in (
        ["weights", "600.00 MiB", "60.0%"],
        ["kept activations", "300.00 MiB", "30.0%"],
        ["allocator's reserve", "100.00 MiB", "10.0%"],
        ["foreseen in all", "1,000.00 MiB", ""],
        ["measured: most that torch reserved", "800.00 MiB", ""],
        ["of it in tensors, at most", "750.00 MiB", ""],
    ):
        assert row in rows
    assert not [row for row in rows if row[0] == "adapters"]  # a part of no bytes
    drawn = bars(page)
    whole = drawn[-1][2] / 0.8
    assert [width / whole for _, _, width in drawn] == pytest.approx([0.6, 0.3, 0.1, 0.8], abs=1e-3)
    assert [start / whole for _, start, _ in drawn] == pytest.approx([0.0, 0.6, 0.9, 0.0], abs=1e-3)
    assert drawn[-1][0] == "measured" and len({tone for tone, _, _ in drawn}) == 4
    assert "memory › predicted" not in said  # not once more among the figures


def test_a_plan_that_foresaw_too_little(make_run: MakeRun, render: Render) -> None:
    page = render(recorded(make_run(), on_gpu({"weights": 900 * MIB}, 1000 * MIB)))
    assert "On this GPU, training took" in page.said() and "That is 10.0% below what was measured." in page.said()
    assert bars(page)[1][2] > bars(page)[0][2] and "CUDA’s own context" not in page.said()


def test_on_a_cpu_the_process_is_told_alone(make_run: MakeRun, render: Render) -> None:
    page = render(recorded(make_run(), device="cpu", peak_memory_bytes=884 * MIB))
    assert "Training ran on a CPU: the memory plan is for GPUs" in page.said()
    assert "The process held at most 884.00 MiB" in page.said() and "chart bars" not in page.html


def test_a_gpu_of_an_older_run_has_no_plan_beside_it(make_run: MakeRun, render: Render) -> None:
    said = render(recorded(make_run(), device="NVIDIA L4", peak_memory_bytes=5 * MIB)).said()
    assert "was not recorded. Training held at most 5.00 MiB." in said


@pytest.mark.parametrize("predicted", [None, {}, {"CUDA context": 4}, {"weights": 0}])
def test_a_plan_that_could_not_be_made(predicted: Any, make_run: MakeRun, render: Render) -> None:
    why = f"KeyError: {HOSTILE}"
    page = render(recorded(make_run(), on_gpu(predicted, 30 * MIB, why_not=why)))
    assert "Torch reserved at most 30.00 MiB; no plan stands beside it." in page.said() and why in page.said()
    assert "chart bars" not in page.html and "<script>alert" not in page.html


def test_parts_of_any_name_are_escaped_and_coloured(make_run: MakeRun, render: Render) -> None:
    many = {f"part {n}": 10 * MIB for n in range(30)}
    page = render(recorded(make_run(), on_gpu({HOSTILE: MIB, **many}, 0)))
    assert "<script>alert" not in page.html and "alert(1)" in page.said()
    assert all(re.fullmatch(r"share-([1-9]|1[0-2])|measured", tone) for tone, _, _ in bars(page))
    assert "what was measured." not in page.said()  # nothing was


def test_no_training_no_part(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    (run / "train" / MANIFEST).unlink()
    assert "Memory, foreseen and measured" not in render(run).said()


@pytest.mark.parametrize("figure", [5, {}, on_gpu({"weights": -1}, 1), on_gpu({"weights": "many"}, 1), on_gpu({}, -1)])
def test_a_damaged_figure_is_named(figure: Any, make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"train/manifest.json cannot be read .*memory"):
        write_report([recorded(make_run(), figure)], tmp_path / "r.html")


def test_several_runs_have_ids_of_their_own(make_run: MakeRun, render: Render) -> None:
    page = render(*(recorded(make_run(name), on_gpu(PARTS, MIB)) for name in ("a", "b")))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {"run-1-memory", "run-2-memory"} <= set(ids) and len(ids) == len(set(ids))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Card:
    """What torch and the card would tell on a machine with a GPU, by figures made here."""
    card = Card("RTX 4090 24GB", 24 * 2**30, 89)
    monkeypatch.setattr(training, "card_at_hand", lambda: card)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 600)
    return card


def settings(**keys: Any) -> recipe.Train:
    given = {"method": "lora", "tokens": 64, "tokens_per_step": 64, "optimizer": {"learning_rate": 1e-3}} | keys
    return recipe.Train.model_validate(given)


def test_training_records_the_plan_of_the_micro_batch_that_ran(gpu: Card) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, vocab_size=128))
    packing, device = recipe.Packing(sequence_length=16), torch.device("cuda", 0)
    told = {n: training.memory_figures(model, settings(), packing, device, n)["memory"] for n in (1, 4)}
    assert (told[4]["reserved_bytes"], told[4]["allocated_bytes"]) == (700, 600)
    for windows, found in told.items():
        how = settings(micro_batch_size=windows)
        job = training.Job(model.config, recipe.Base(model=""), how, packing)
        assert found["predicted"] == plan(job, gpu).parts
    assert sum(told[4]["predicted"].values()) > sum(told[1]["predicted"].values())
    assert set(told[1]["predicted"]) == set(memory.PARTS) and set(TAGS) <= set(memory.PARTS)  # all can be translated


def test_a_plan_that_fails_leaves_the_measured_figures(gpu: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("a model of a new kind")

    monkeypatch.setattr(training, "plan", fails)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, vocab_size=128))
    packing = recipe.Packing(sequence_length=16)
    found = training.memory_figures(model, settings(), packing, torch.device("cuda", 0), 1)["memory"]
    assert found["predicted"] is None and "a model of a new kind" in found["why_not"] and found["reserved_bytes"] == 700
    assert training.memory_figures(model, settings(), packing, torch.device("cpu"), 1) == {}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to draw the page")
def test_the_bars_are_drawn_in_every_colour_and_fit_a_phone(make_run: MakeRun, tmp_path: Path) -> None:
    parts = {name: (n + 1) * MIB for n, name in enumerate(memory.PARTS)}
    write_report([recorded(make_run(), on_gpu(parts, 60 * MIB))], tmp_path / "r.html")
    with opened(tmp_path / "r.html", width=390) as page:
        for dark in (False, True):
            page.look(390, dark=dark)
            fills = page.value(
                "[...document.querySelectorAll('.bars rect')].map((r) => getComputedStyle(r).fill)"
                ".concat(getComputedStyle(document.documentElement).backgroundColor)"
            )
            assert len(set(fills)) == len(parts) + 1  # without the context, with the measured bar and the paper
        assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True
        assert page.errors == []
