"""What a merge did: sentences, parts of the model, the chart over depth, and the section of the page."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from frbio_lite.artifacts import MANIFEST
from frbio_lite.errors import RequestError
from frbio_lite.merging.gram import Gram
from frbio_lite.merging.stream import COLUMNS, Measured
from frbio_lite.report import format as fmt
from frbio_lite.report import merging
from frbio_lite.report.curves import depth
from frbio_lite.report.load import AdapterBase, Choice, MergedTensor, MergeFigures, Run, load_run

from .conftest import LAYERS, MOVED, MakeRun, Render, put, put_ablation
from .page import with_json


def tensor(
    name: str,
    change: float | None = 0.1,
    angle: float | None = 5.0,
    linear: bool = False,
    kept: float | None = 0.5,
    model: str = "train",
) -> MergedTensor:
    return MergedTensor(
        name=name,
        model=model,
        relative_change=change,
        angle_degrees=angle,
        slerp_is_linear=linear,
        effective_ratio=kept,
    )


def run_of(*tensors: MergedTensor, choice: dict[str, Any] | None = None) -> Run:
    chosen = Choice.model_validate({"method": "slerp", "ratio": 0.5, **choice}) if choice else None
    return Run(Path("r"), "", {}, {}, choice=chosen, tensors=tensors)


@pytest.mark.parametrize(
    ("name", "part", "layer"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "attention", 11),
        ("model.layers.0.self_attn.q_norm.weight", "norms", 0),
        ("model.layers.3.post_attention_layernorm.weight", "norms", 3),
        ("model.layers.3.mlp.gate_proj.weight", "MLP", 3),
        ("model.layers.3.mlp.experts.7.down_proj.weight", "MLP", 3),
        ("model.layers.3.block_sparse_moe.gate.weight", "MLP", 3),
        ("model.embed_tokens.weight", "embedding and head", None),
        ("lm_head.weight", "embedding and head", None),
        ("model.norm.weight", "norms", None),
        ("transformer.wte.weight", "embedding and head", None),
        ("transformer.h.2.ln_1.bias", "norms", 2),
        ("transformer.h.2.attn.c_attn.weight", "attention", 2),
        ("transformer.h.2.mlp.c_fc.weight", "MLP", 2),
        ("transformer.ln_f.weight", "norms", None),
        ("gpt_neox.layers.5.attention.dense.weight", "attention", 5),
        ("gpt_neox.embed_out.weight", "embedding and head", None),
        ("backbone.layers.4.mixer.in_proj.weight", "other", 4),
        ("", "other", None),
    ],
)
def test_a_name_tells_part_and_layer(name: str, part: str, layer: int | None) -> None:
    assert (merging.part_of(name), merging.layer_of(name)) == (part, layer)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.04431, "4.4%"),
        (0.99949, "99.9%"),
        (0.2, "20%"),
        (0.00996, "1.00%"),
        (0.000123, "0.012%"),
        (5e-6, "0.00050%"),
        (1e-9, "< 0.0001%"),
        (1.744, "174.4%"),
    ],
)
def test_shares_keep_the_digits_that_tell_something(share: float, text: str) -> None:
    assert fmt.share(share) == text


def test_any_share_is_near_its_text() -> None:
    chance = random.Random()
    for _ in range(2000):
        value = 10 ** chance.uniform(-5.9, 0.3)
        assert float(fmt.share(value).rstrip("%")) / 100 == pytest.approx(value, rel=0.051), value


@pytest.mark.parametrize(
    ("change", "share", "kept", "ratio", "told"),
    [
        (
            0.0443,
            0.12,
            0.4014,
            0.4,
            "Adaptation changed the weights by 4.4% of their length; the merged model holds 0.40 of that change, at a merge "
            "ratio of 0.4; for 12% of the changed tensors slerp is a straight line, so slerp and linear give the same there.",
        ),
        (0.01, 1.0, 1.0, 1.0, "holds 1.00 of that change, at a merge ratio of 1; for all of the changed tensors"),
        (0.01, 0.0, 0.0, 0.0, "holds none of that change, at a merge ratio of 0; no changed tensor lies so close"),
        (0.01, None, 1.7366, None, "by 1% of their length; the merged model moved 1.74 times as far."),
        (0.01, None, None, 0.5, "Adaptation changed the weights by 1% of their length."),
        (0.0, None, None, 0.5, "Adaptation changed no weight: the merged model is the base itself."),
        (None, 0.5, 0.5, 0.5, ""),
    ],
)  # fmt: skip
def test_the_sentence(
    change: float | None, share: float | None, kept: float | None, ratio: float | None, told: str
) -> None:
    figures = MergeFigures(relative_change=change, slerp_is_linear_share=share, effective_ratio=kept)
    sentence = merging.sentence(figures, ratio)
    assert told in sentence if told else sentence == ""
    assert sentence.endswith(".") or not sentence


def test_a_part_is_summed_up_over_the_tensors_that_changed() -> None:
    chance = random.Random()
    moved = [
        tensor(
            f"layers.{i}.mlp.x.weight", chance.uniform(0.02, 0.5), chance.uniform(1, 30), i % 3 == 0, chance.random()
        )
        for i in range(9)
    ]
    zero_base = tensor("layers.1.mlp.bias", None, None, True, 0.25)
    still = [tensor("layers.0.mlp.y.weight", 0.0, 0.0, True, None), tensor("layers.0.mlp.z", None, None, True, None)]
    everything = [*moved, zero_base, *still]
    chance.shuffle(everything)
    row = merging.table(everything)
    assert len(row) == 1
    changes = [t.relative_change or 0 for t in moved]
    ratios = sorted([0.25, *(t.effective_ratio or 0 for t in moved)])
    assert row[0] == {
        "part": "MLP",
        "tensors": "12",
        "changed": "10",
        "median": fmt.share(median(changes)),
        "largest": fmt.share(max(changes)),
        "angle": f"{max(t.angle_degrees or 0 for t in moved):.3g}°",
        "linear": "40%",
        "kept": f"{ratios[0]:.3f}–{ratios[-1]:.3f}",
    }


def test_a_part_that_did_not_change_has_no_figures() -> None:
    row = merging.table([tensor("model.norm.weight", 0.0, 0.0, True, None)])[0]
    assert [row[key] for key in ("tensors", "changed")] == ["1", "0"]
    assert {row[key] for key in ("median", "largest", "angle", "linear", "kept")} == {fmt.ABSENT}


def test_tensors_of_several_models_are_counted_once() -> None:
    rows = [tensor("lm_head.weight", c, c * 50, c < 0.02, 0.4, m) for m, c in (("a", 0.01), ("b", 0.03), ("c", 0.05))]
    row = merging.table(rows)[0]
    assert (row["tensors"], row["changed"], row["median"], row["largest"]) == ("1", "1", "3%", "5%")
    assert (row["linear"], row["kept"]) == ("33.3%", "0.400")


def test_the_columns_are_those_that_a_merge_writes() -> None:
    assert tuple(MergedTensor.model_fields) == COLUMNS
    matrix = np.array([[4.0, 0.1, 0.0], [0.1, 0.09, 0.0], [0.0, 0.0, 0.0]])  # the second model is the base itself
    nothing = np.zeros((3, 3))
    written = [
        *Measured("x", Gram(matrix), 0.075).rows(["a", "b"]),
        *Measured("y", Gram(nothing), 0.0).rows(["a", "b"]),
    ]
    first, second, *zeros = [MergedTensor.model_validate(dict(zip(COLUMNS, row, strict=True))) for row in written]
    assert first.relative_change == pytest.approx(0.3 / 2)
    assert first.angle_degrees == pytest.approx(math.degrees(math.atan2(math.sqrt(4 * 0.09 - 0.01), 4.1)), rel=1e-5)
    assert first.effective_ratio == second.effective_ratio == pytest.approx(0.075 / 0.15)
    assert (first.slerp_is_linear, second.slerp_is_linear, second.relative_change) == (False, True, 0.0)
    for row in zeros:
        assert (row.relative_change, row.angle_degrees, row.effective_ratio) == (None, None, None)
        assert not merging.changed(row)


def test_the_chart_has_a_line_for_each_part_that_changed() -> None:
    tensors = [tensor("model.embed_tokens.weight")]
    for layer in range(12):
        tensors += [
            tensor(f"model.layers.{layer}.self_attn.q_proj.weight", 0.01 * (layer + 1)),
            tensor(f"model.layers.{layer}.self_attn.v_proj.weight", 0.03 * (layer + 1)),
            tensor(f"model.layers.{layer}.self_attn.k_proj.weight", 0.0, kept=None),
            tensor(f"model.layers.{layer}.mlp.up_proj.weight", 0.05 if layer > 5 else 0.0),
            tensor(f"model.layers.{layer}.input_layernorm.weight", 0.0, kept=None),
        ]
    (chart,) = depth(run_of(*tensors))
    labels = re.findall('aria-label="((?:Attention|MLP|Norms)[^"]+)"', chart.svg)
    assert labels[0] == "Attention, layer 0: 2%, tensors from 1% to 3%"
    assert labels[11] == "Attention, layer 11: 24%, tensors from 12% to 36%"
    assert labels[12:] == [f"MLP, layer {i}: {'5%' if i > 5 else '0%'}" for i in range(12)]
    assert chart.legend.count("<li>") == 2
    assert 'class="line attention quiet"' in chart.svg and 'class="line mlp quiet"' in chart.svg
    ticks = re.findall('text-anchor="middle">([^<]*)<|class="tick" text-anchor="middle">([^<]*)<', chart.svg)
    assert {"0", "2", "10"} <= {a or b for a, b in ticks} and "12" not in {a or b for a, b in ticks}


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (tensor("lm_head.weight"),),
        (tensor("layers.0.mlp.x"), tensor("layers.0.attn.x")),
        (tensor("layers.0.mlp.x", 0.0, kept=None), tensor("layers.1.mlp.x", 0.0, kept=None)),
    ],
)
def test_no_chart_without_change_over_layers(tensors: tuple[MergedTensor, ...]) -> None:
    assert depth(run_of(*tensors)) == []


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        ({"chosen": "bf16", "live": 0.8, "bf16": 0.81, "nf4-dequant": 0.82}, "the stored weights (bf16): it then needs fewer"),
        ({"chosen": "nf4-dequant", "live": 0.8, "bf16": 0.82, "nf4-dequant": 0.81}, "(nf4-dequant): it then needs fewer"),
        ({"chosen": "bf16", "bf16": 0.8, "nf4-dequant": 0.8}, "all need the same bits"),
        ({"chosen": "bf16", "bf16": 0.83, "nf4-dequant": 0.8}, "though others need fewer"),
        ({"chosen": "bf16"}, "as it was told to be; no other weights were tried."),
        ({"chosen": "bf16", "bf16": 0.83, "nf4-dequant": "nan"}, "no other weights were tried."),
        ({"chosen": "later-kind", "bf16": 0.83}, "added to later-kind, as it was told"),
    ],
)  # fmt: skip
def test_the_base_of_an_adapter_is_explained(bits: dict[str, Any], told: str) -> None:
    shown = merging.adapter_base(AdapterBase.model_validate(bits))
    assert shown is not None and told in shown["why"]
    known = [f"{v:.4f}" for k, v in bits.items() if k != "chosen" and v != "nan"]
    assert [row["bits"] for row in shown["rows"]] == known
    assert sum(row["chosen"] for row in shown["rows"]) == (bits["chosen"] in bits)
    assert merging.adapter_base(None) is None


def test_the_screen_is_counted() -> None:
    left = [{"method": "ties", "ratio": 0.1, "gains": {"domain": -1.0}}]
    told = [merging.screened(run_of(choice={"screened_out": out})) for out in (None, [], left, left * 12)]
    assert told[0] == merging.screened(run_of()) == ""
    assert told[1].startswith("The screen left out no merge")
    assert told[2].startswith("Before the choice 1 merge was screened out")
    assert told[3].startswith("Before the choice 12 merges were screened out")


def test_a_profile_is_read_from_recipes_and_from_merges() -> None:
    both = [
        [{"filter": "mlp", "values": [0.0, 0.5]}, {"filter": "*", "values": [1]}],
        [["mlp", [0.0, 0.5]], ["*", [1]]],
    ]
    assert [merging.profile(value) for value in both] == ["mlp × 0.0, 0.5; * × 1"] * 2
    odd: list[Any] = [None, [], "x", [3], [["mlp"]], [["mlp", 3]], [{}]]
    assert {merging.profile(value) for value in odd} == {""}


def test_the_section_tells_what_the_merge_did(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    page = render(run)
    said = page.said()
    assert "holds 0.40 of that change, at a merge ratio of 0.5; for 76.5% of the changed tensors" in said
    ends = [MOVED["self_attn.q_proj"], MOVED["self_attn.o_proj"]]
    changes = [first + growth * layer for first, growth, *_ in ends for layer in range(LAYERS)]
    assert page.row("attention") == [
        "attention", "8", "8", fmt.share(median(changes)), fmt.share(max(changes)), "1.8°", "100%", "0.420–0.440",
    ]  # fmt: skip
    assert page.row("MLP")[5:] == ["2.9°", "0%", "0.390"]
    assert page.row("embedding and head") == [
        "embedding and head",
        "2",
        "1",
        "0.61%",
        "0.61%",
        "0.35°",
        "100%",
        "0.401",
    ]
    assert page.row("norms")[1:4] == ["8", "4", "0.10%"]
    assert [row[0] for row in page.cells if row and row[0] == "other"] == []
    labels = [a.get("aria-label") or "" for _, a in page.elements]
    assert "MLP, layer 3: 2%" in labels and "Attention, layer 0: 2.5%, tensors from 2% to 3%" in labels
    assert "The weights that the adapter was added to" not in said and "screened out" not in said
    assert "Beaten by none" not in said
    for name in ("adapter base bf16", "dtype bfloat16", "angle degrees max 2.9"):
        assert name in said


def test_the_choice_shows_its_front_its_screen_and_the_adapters_base(make_run: MakeRun, render: Render) -> None:
    run = make_run()

    def change(choice: Any) -> None:
        for candidate in choice["candidates"]:
            candidate["front"] = candidate["ratio"] == 0.5
        choice["screened_out"] = [{"method": "ties", "ratio": r, "gains": {}} for r in (0.25, 0.75)]
        choice["adapter_base"] = {"chosen": "nf4-dequant", "live": 0.801, "bf16": 0.80951, "nf4-dequant": 0.80149}

    with_json(run / "ablation/choice.json", change)
    with_json(run / "merge" / MANIFEST, lambda v: v["settings"].update(profile=[{"filter": "mlp", "values": [0, 1]}]))
    page = render(run)
    assert "Before the choice 2 merges were screened out" in page.said()
    assert page.row("merged into what 4 bits hold")[1:] == ["0.8015", "← chosen"]
    assert page.row("merged into the stored weights")[1:] == ["0.8095", ""]
    assert page.row("not merged: the live adapter")[1:] == ["0.8010", ""]
    assert "the ratio, over depth mlp × 0, 1" in page.said()
    assert [row[-2:] for row in page.cells if row[:2] == ["slerp", "0.5"] and "yes" in row] == [["yes", "← chosen"]]
    assert ["slerp", "1", "+88.0", "−49.0", "no", "no", ""] in page.cells


def test_a_merge_of_several_models_says_so(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    text = (run / "merge/tensors.csv").read_text(encoding="utf-8")
    head, rows = text.split("\n", 1)
    (run / "merge/tensors.csv").write_text(f"{head}\n{rows}{rows.replace(',train,', ',cœur,')}", encoding="utf-8")
    page = render(run)
    assert "for each of 2 adapted models (train, cœur)" in page.said()
    assert page.row("attention")[1:3] == ["8", "8"]


def test_the_section_stands_with_what_there_is(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    shutil.rmtree(run / "merge")
    assert "The merge" not in [text.strip() for text in render(run).text]
    with_json(run / "ablation/choice.json", lambda v: v.update(adapter_base={"chosen": "bf16"}))
    said = render(run).said()
    assert "added to the stored weights (bf16), as it was told to be" in said and "By part of the model" not in said
    put(run / "merge", "MergedModel", {}, {"tensors": 3}, {"method": "slerp", "ratio": 0.5})  # of an earlier version
    said = render(run).said()
    assert "The merged model method slerp ratio 0.5 tensors 3" in said and "By part of the model" not in said
    shutil.rmtree(run / "ablation")
    put_ablation(run)
    assert load_run(run).tensors == ()


def test_figures_that_are_no_numbers_are_named(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    with_json(run / "merge" / MANIFEST, lambda v: v["figures"].update(effective_ratio=None, slerp_is_linear_share=None))
    assert "by 4.4% of their length." in render(run).said()
    path = run / "merge" / MANIFEST
    content = json.loads(path.read_text(encoding="utf-8"))
    content["figures"]["relative_change"] = "much"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RequestError, match=r"merge/manifest\.json cannot be read \(figures: relative_change"):
        render(run)
