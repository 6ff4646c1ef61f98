"""The page as a whole: self-contained, escaped, true to the artifacts, tolerant of what is not there yet."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from frbio_lite.artifacts import MANIFEST
from frbio_lite.cli import main
from frbio_lite.errors import RequestError
from frbio_lite.recipe import load_recipe
from frbio_lite.report import write_report

from .conftest import CURVES, RATIOS, MakeRun, Render, put, put_ablation, put_comparison, put_results, results
from .page import HOSTILE, with_json

ABLATION_HEAD = "method,ratio,task,group,split,metric,value\n"
CHOICE = '{"method": "slerp", "ratio": 0.5, '
TENSORS_HEAD = "name,model,relative_change,angle_degrees,slerp_is_linear,effective_ratio\n"


def test_the_page_loads_nothing(make_run: MakeRun, render: Render) -> None:
    page = render(make_run())
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert not {"src", "srcset", "data", "action", "style"} & attributes.keys(), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert (attributes.get("href") or "#").startswith("#")
    html = page.html
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'") and "unsafe" not in policy


def test_the_page_has_one_title_ids_once_and_a_language(make_run: MakeRun, render: Render) -> None:
    page = render(make_run("a"), make_run("b"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert [t for t, _ in page.elements].count("h1") == 1
    assert next(a for t, a in page.elements if t == "html")["lang"] == "en"
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "data-filters"):
            assert attributes.get(name) is None or attributes[name] in ids


def test_the_task_table_holds_the_values_of_the_results(make_run: MakeRun, render: Render) -> None:
    page = render(make_run())
    for row in results(0.0):
        cells = page.row(row["task"] + row["metric"].replace("_", " "))
        for column, ratio in ((1, 0.0), (2, 0.5), (4, 1.0)):
            told = next(r for r in results(ratio) if r["task"] == row["task"])
            bounds = [told[k] for k in ("value", "low", "high")]
            if row["metric"] == "accuracy":
                value, low, high = (f"{100 * b:.1f}" for b in bounds)
                assert cells[column] == f"{value}%{low}–{high}"
            else:
                value, low, high = (f"{b:.3f}" for b in bounds)
                assert cells[column] == f"{value}{low}–{high}"
        assert cells[-2:] == ["400", "3"]
    assert page.row("demo-medical")[3].startswith("▲ +74.0 points")
    assert page.row("demo-general")[3].startswith("= −3.0 points")
    assert page.row("demo-general")[5].startswith("▼ −49.0 points")
    assert page.row("heldout-domain")[3].startswith("▲ +22.0% of bits")
    assert page.row("heldout-general")[3].startswith("▼ −6.9% of bits")


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def test_what_is_proved_is_what_the_comparison_says(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    page, found = render(run), json.loads((run / "eval/compare.json").read_text(encoding="utf-8"))
    marks = {"gained": "▲", "lost": "▼", "no difference shown": "="}
    assert len(found["tasks"]) == 8 and {t["verdict"] for t in found["tasks"]} == set(marks)
    for task in found["tasks"]:
        cell = page.row(task["task"])[{"merged": 3, "adapted": 5}[task["model"]]]
        assert cell.startswith(f"{marks[task['verdict']]} {signed(task['difference'])}")
        assert f"{signed(task['low'])} to {signed(task['high'])}, p " in cell
        assert cell.endswith("p < 0.001" if task["adjusted_p"] < 0.001 else f"p = {task['adjusted_p']:.3f}")
    names = {"domain": "Medical tasks", "general": "General tasks"}
    assert [g["verdict"] for g in found["groups"]] == ["gained", "degraded", "gained", "inconclusive"]
    for g in found["groups"]:
        (row,) = [r for r in page.cells if r[0].startswith(names[g["group"]]) and r[1:2] == [g["model"]]]
        asked = {"gain": "is there a gain?", "retain": "is a loss of more than 1 point excluded?"}[g["role"]]
        difference = f"{signed(g['difference'])} points{signed(g['low'])} to {signed(g['high'])}"
        assert row[0].endswith(asked) and row[2:] == [g["verdict"], difference, "1"]
    said = page.said()
    assert "compared with its base, the merged model gained on medical tasks (+74.0 points, 95% interval" in said
    assert "a loss of more than 1 point is not excluded" in said
    assert "Without merging, the adapted model gained on medical tasks (+88.0 points" in said
    assert "is degraded on general tasks (−49.0 points" in said


def test_another_verdict_in_the_comparison_is_another_on_the_page(make_run: MakeRun, render: Render) -> None:
    """The page judges nothing by itself, whatever the figures beside a verdict."""
    run = make_run()

    def turned(found: Any) -> None:
        for line in (*found["tasks"], *found["groups"]):
            line["verdict"] = {"gained": "lost", "inconclusive": "non-inferior"}.get(line["verdict"], line["verdict"])
        found["margin"] = 2.5

    with_json(run / "eval/compare.json", turned)
    page = render(run)
    assert "the merged model lost on medical tasks (+74.0 points" in page.said()
    assert "within the margin of 2.5 points" in page.said() and "whole interval lies above −2.5" in page.said()
    assert page.row("demo-medical")[3].startswith("▼ +74.0") and "▲" not in "".join(page.row("heldout-domain"))


def test_a_run_that_was_not_compared_says_so(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    (run / "eval/compare.json").unlink()
    page = render(run)
    assert "The merged model was not compared with its base question by question: run the recipe again" in page.said()
    assert "Not compared question by question: the differences are plain ones" in page.said()
    for word in ("Without merging", "verdict by group", "gained on", "▲", "▼"):
        assert word not in page.said()
    assert page.row("demo-medical")[3] == "+74.0 points" and page.row("heldout-domain")[3] == "−0.226"
    assert page.row("heldout-general")[5] == "+1.687"


def test_a_comparison_of_other_evaluations_proves_nothing(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    put_results(run, "merged", results(0.25))
    page = render(run)
    assert "The merged model was not compared" in page.said() and "Without merging" in page.said()
    assert "eval/compare.json is not of all of these evaluations: run the recipe again" in page.said()
    assert page.row("demo-medical")[3] == "+19.0 points" and page.row("demo-medical")[5].startswith("▲ +88.0 points")
    put_results(run, "base", results(0.75))
    assert "Without merging" not in render(run).said() and "▲" not in "".join(render(run).row("demo-medical"))
    put_comparison(run)
    assert "not of all" not in render(run).said() and "lost on medical tasks" in render(run).said()


def test_results_of_eval_and_compare_are_a_run_too(tmp_path: Path, render: Render) -> None:
    """`frbio eval` names models by their directories, and twice the same here."""
    run = tmp_path / "run"
    for place, ratio in (("base", 0.0), ("merged", 0.5)):
        put_results(run, place, results(ratio))
        with_json(run / f"eval/{place}/results.json", lambda v: v.update(model="runs/one/model"))
    arguments = ["compare", run / "eval/base", run / "eval/merged", "--margin", "9", "--out", run / "eval"]
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    said = render(run).said()
    assert "the merged model gained on medical tasks (+74.0 points" in said and "within the margin of 9 points" in said
    assert "not of all" not in said


def test_what_does_not_count_is_shown_and_counts_for_nothing(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    plain = render(run)
    for model, value in (("base", 0.1), ("adapted", 0.5), ("merged", 0.9)):
        bounds = {"value": value, "low": value - 0.01, "high": value + 0.01}

        def add(content: Any, bounds: dict[str, float] = bounds) -> None:
            first, *others = content["rows"]
            beside = {**first, **bounds, "metric": "f1", "primary": False}
            control = {**first, **bounds, "task": "demo-medical~permuted", "group": "control", "primary": True}
            own = {**first, **bounds, "task": "own", "group": "own"}
            content["rows"] = [{**first, "primary": True}, beside, *others, control, own]

        with_json(run / f"eval/{model}/results.json", add)
    table = (run / "ablation/ablation.csv").read_text(encoding="utf-8").splitlines()
    table = [table[0] + ",primary", *(f"{line},True" for line in table[1:])]
    for ratio in RATIOS:
        table.append(f"slerp,{ratio},demo-medical,domain,validation,f1,0.9,0.8,1.0,False")
        table.append(f"slerp,{ratio},demo-medical~permuted,control,validation,accuracy,0.9,0.8,1.0,True")
    (run / "ablation/ablation.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    page = render(run)
    for row in ("demo-medicalf1", "demo-medical~permutedaccuracy", "ownaccuracy"):
        cells = page.row(row)
        assert [cells[1], cells[2], cells[4]] == ["10.0%9.0–11.0", "90.0%89.0–91.0", "50.0%49.0–51.0"]
        assert [cells[3], cells[5]] == ["+80.0 points", "+40.0 points"]
    assert page.row("demo-medical~permuted")[6] == "Controls"
    assert [a.get("class") for t, a in page.elements if t == "tr"].count("beside") == 3
    assert "Grey rows without a mark" in page.said() and "Grey rows" not in plain.said()
    # All else is as without those rows: verdict, glance, charts and the numbers behind them.
    for start, end in (("frbio_lite report", "Task by task"), ("Training", "How it was made")):
        told, before = (p.said()[p.said().index(start) : p.said().index(end)] for p in (page, plain))
        assert told == before
    points = [[a.get("aria-label") for t, a in p.elements if t == "g"] for p in (page, plain)]
    assert points[0] == points[1]


def test_several_runs_count_the_same_rows(make_run: MakeRun, render: Render) -> None:
    one, two = make_run("one"), make_run("two")
    for model, shift in (("base", 0.0), ("merged", 0.4)):
        extra = {"value": 0.1 + shift, "low": 0.0 + shift, "high": 0.2 + shift, "primary": False, "metric": "f1"}
        with_json(two / f"eval/{model}/results.json", lambda v, x=extra: v["rows"].append({**v["rows"][0], **x}))
    page = render(one, two)
    assert page.row("demoone")[1:] == page.row("demotwo")[1:]


def test_the_chosen_ratio_is_marked_in_charts_and_table(make_run: MakeRun, render: Render) -> None:
    page = render(make_run())
    assert [a["data-chosen"] for _, a in page.elements if a.get("class") == "chosen"] == ["0.5", "0.5"]
    assert [row for row in page.cells if "← chosen" in row] == [["slerp", "0.5", "+74.0", "−3.0", "yes", "← chosen"]]
    assert (
        "Ratio 0.5 (50% adapted model, 50% base; slerp) was chosen on validation items: it gains most on medical tasks"
        in page.said()
    )
    labels = [a["aria-label"] or "" for _, a in page.elements if (a.get("class") or "").startswith("point")]
    for i, ratio in enumerate(RATIOS):
        value = f"{100 * CURVES['demo-medical'][i]:.1f}%"
        assert any(label.startswith(f"Medical tasks, ratio {ratio:g}: {value}") for label in labels)


def test_the_numbers_behind_the_curves_are_those_of_the_ablation(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    page = render(run)
    rows = list(csv.DictReader(io.StringIO((run / "ablation/ablation.csv").read_text(encoding="utf-8"))))
    for row in rows:
        value = float(row["value"])
        shown = f"{100 * value:.1f}%" if row["metric"] == "accuracy" else f"{value:.3f}"
        wanted = [row["method"], f"{float(row['ratio']):g}", row["task"]]
        assert [cells[5] for cells in page.cells if cells[:3] == wanted] == [shown]


def test_the_glance_holds_the_mean_of_each_group_and_model(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    extra = {
        "task": "autre",
        "group": "domain",
        "split": "test",
        "metric": "accuracy_norm",
        "low": 0,
        "high": 1,
        "items": 400,
        "shots": 3,
    }
    for model, value in (("base", 0.5), ("adapted", 0.25), ("merged", 0.75)):
        with_json(
            run / f"eval/{model}/results.json",
            lambda v, x=value: v["rows"].extend(
                [{**extra, "value": x}, {**extra, "value": 0.99, "split": "validation"}]
            ),
        )
    said = render(run).said()
    assert "Medical tasks accuracy, mean of 2 tasks base 31.0% adapted 62.5% merged 80.5%" in said
    assert "General tasks accuracy, demo-general base 80.0% adapted 31.0% merged 77.0%" in said


def test_demonstration_and_warning(make_run: MakeRun, render: Render) -> None:
    demo = render(make_run("a")).said()
    real = render(make_run("b", ("base.model=Qwen/Qwen3-0.6B-Base",))).said()
    assert "This is a demonstration, not a medical model." in demo
    assert "demonstration" not in real
    assert "Not for clinical decisions" in demo and "Not for clinical decisions" in real
    assert "not proof that there is none" in real


def test_corpus_packing_recipe_and_stages_are_shown(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    page = render(run)
    source = page.row("demo:medical:30")
    assert source[1:3] == ["cc0-1.0", "domain"] and source[4] == "2,000300,000 words1.91 MiB"
    assert page.row("repair mojibake") == ["repair mojibake", "31", "32"]
    first, second = (source.name for source in load_recipe("demo").corpus.sources)
    assert [first, "3"] in page.cells and [second, "4"] in page.cells and [first, "77"] in page.cells
    assert "Personal identifiers found and masked" in page.said() and "Places changed, by rule" in page.said()
    assert page.row("skipped") == ["skipped", "1", "1"] and page.row("digest")[1] == "d" * 32
    assert page.row("questions found") == ["questions found", "2"] and "0123456789abcdef" not in page.html
    assert page.row("Training")[1:4] == ["1 min 45 s", "1.00 GiB", "17"]
    assert page.row("Evaluation of the base")[1:3] == ["12.5 s", "3.00 GiB"]
    digest = json.loads((run / "train" / MANIFEST).read_text(encoding="utf-8"))["digest"]
    assert any(a.get("title") == digest for _, a in page.elements)
    assert (run / "recipe.yaml").read_text(encoding="utf-8").strip() in "".join(page.text)


def test_what_was_counted_for_no_source_is_none(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    with_json(run / "corpus/funnel.json", lambda v: v.update(rules={name: {} for name in v["rules"]}))
    said = render(run).said()
    assert "Documents changed, by rule none Documents dropped, by reason" in said


def test_hostile_text_is_shown_not_run(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    plain = render(run)
    (run / "recipe.yaml").write_text(
        json.dumps(
            {
                "name": HOSTILE,
                "base": {"model": HOSTILE, "revision": HOSTILE},
                "corpus": {"sources": [{"path": HOSTILE, "license": HOSTILE, "role": HOSTILE}]},
            }
        ),
        encoding="utf-8",
    )
    for model in ("base", "adapted", "merged"):
        with_json(
            run / f"eval/{model}/results.json",
            lambda v: [r.update(task=HOSTILE + r["task"], group=HOSTILE) for r in v["rows"]],
        )
    with_json(
        run / "eval/compare.json",
        lambda v: [g.update(group=HOSTILE, task=HOSTILE) for g in (*v["groups"], *v["tasks"])],
    )
    with_json(
        run / "corpus/funnel.json",
        lambda v: v.update(
            steps=[{"step": HOSTILE, "by_source": {HOSTILE: {"documents": 1}}}],
            rules={HOSTILE: {HOSTILE: 1}},
            dropped={HOSTILE: HOSTILE},
            contamination={HOSTILE: [HOSTILE]},
        ),
    )
    with_json(
        run / "ablation/choice.json",
        lambda v: v.update(
            method=HOSTILE,
            rule={"maximise": HOSTILE, "retain": {HOSTILE: 1}},
            candidates=[{"method": HOSTILE, "ratio": 0.5, "gains": {HOSTILE: 1}, "eligible": True}],
            adapter_base={"chosen": HOSTILE, "bf16": 0.8},
        ),
    )
    with_json(
        run / "merge" / MANIFEST,
        lambda v: v.update(settings={"method": HOSTILE, "dtype": HOSTILE, "profile": [[HOSTILE, [HOSTILE]]]}),
    )
    table = (run / "ablation/ablation.csv").read_text(encoding="utf-8")
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    (run / "ablation/ablation.csv").write_text(
        table.replace("slerp", quoted).replace(",domain,", f",{quoted},"), encoding="utf-8"
    )
    tensors = "".join(f"layers.{i}.x,{quoted}{i},0.1,5,false,0.5\n" for i in range(2))
    (run / "merge/tensors.csv").write_text(TENSORS_HEAD + tensors, encoding="utf-8")
    with_json(
        run / "train" / MANIFEST,
        lambda v: v.update(figures={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}, key=HOSTILE),
    )
    page = render(run)
    for tag in ("script", "style", "pre", "meta"):
        assert [t for t, _ in page.elements].count(tag) == [t for t, _ in plain.elements].count(tag), tag
    said = page.said()
    assert said.count("<script>alert(1)</script>") > 30
    for start in ("The adapter was added to ", "for each of 2 adapted models (", "the ratio, over depth "):
        assert start + "<script>alert(1)</script>" in said, start
    assert "<script>alert" not in page.html
    assert escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page.html


def test_halves_of_surrogate_pairs_do_not_stop_the_page(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    path = run / "eval/base/results.json"
    path.write_text(path.read_text(encoding="utf-8").replace("demo-medical", "demo\\ud800medical"), encoding="utf-8")
    assert "demo?medical" in render(run).said()


STAGES = ["corpus", "packed", "train", "ablation", "merge", "eval/base", "eval/adapted", "eval/merged", "recipe.yaml"]


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_may_be_missing(stage: str, make_run: MakeRun, render: Render) -> None:
    run = make_run()
    place = run / stage
    place.unlink() if place.is_file() else shutil.rmtree(place)
    assert "not there yet" in render(run).said().lower()


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_may_be_the_only_one(stage: str, make_run: MakeRun, render: Render) -> None:
    run = make_run()
    for other in STAGES:
        if other != stage:
            place = run / other
            place.unlink() if place.is_file() else shutil.rmtree(place)
    said = render(run).said()
    assert "not there yet" in said.lower() and "Not for clinical decisions" in said


def test_a_finished_run_misses_nothing(make_run: MakeRun, render: Render, tmp_path: Path) -> None:
    run = make_run()
    assert "not there yet" not in render(run).said().lower()
    assert write_report([run], tmp_path / "r.html")["runs"][0]["missing"] == []


def test_an_unfinished_stage_counts_as_missing(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    (run / "train").rename(run / "train.partial")
    (run / "ablation" / MANIFEST).unlink()
    said = render(run).said()
    assert "Training: not there yet." in said and "The ablation over merge ratios: not there yet." in said


def test_two_runs_are_compared(make_run: MakeRun, render: Render) -> None:
    one, two = make_run("one"), make_run("two", ("name=autre-run",), ("linear", "slerp"))
    shutil.rmtree(two / "ablation")
    put_ablation(two, ("linear", "slerp"), chosen=0.25)
    put_results(two, "merged", results(0.25))
    assert render(one, two).row("autre-runtwo")[-3:] == ["–", "–", "not compared"]
    put_comparison(two)
    page = render(one, two)
    assert "2 runs compared" in page.said()
    assert page.row("demoone")[1:] == ["demo", "0.5 (slerp)", "+74.0", "−3.0", "+74.0", "−3.0", "▲ 2 ▼ 1 = 1"]
    assert page.row("autre-runtwo")[2:] == ["0.25 (slerp)", "+19.0", "−1.0", "+19.0", "−1.0", "▲ 2 ▼ 1 = 1"]
    targets = {a["href"] for t, a in page.elements if t == "a"}
    assert targets == {"#run-1", "#run-2"} <= {f"#{a['id']}" for _, a in page.elements if "id" in a}
    assert any(a.get("stroke-dasharray") for _, a in page.elements)  # a second method has another stroke
    assert "Medical tasks, linear" in page.said()
    stand_out = [a["aria-label"] or "" for _, a in page.elements if a.get("class") == "point is-chosen"]
    assert [text.split(":")[0] for text in stand_out[4:]] == [
        "Medical tasks, slerp, ratio 0.25",
        "General tasks, slerp, ratio 0.25",
    ] * 2


def test_csv_with_commas_quotes_and_empty_bounds(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    shutil.rmtree(run / "ablation")
    put(
        run / "ablation",
        "Ablation",
        {
            "ablation.csv": "method,ratio,task,group,split,metric,value,low,high\r\n"
            'slerp,0.0,"a, ""b"" et\nc",domain,validation,accuracy,0.25,,\r\n'
            "slerp,1,d,domain,validation,accuracy,nan,0.1,0.2\r\n"
            "slerp,1.0,e,domain,test,accuracy,0.99,0.9,1.0\r\n",
            "choice.json": '{"method": "slerp", "ratio": 0, "candidates": []}',
        },
        {},
    )
    page = render(run)
    assert ["slerp", "0", 'a, "b" et\nc', "Medical tasks", "accuracy", "25.0%", ""] in page.cells
    assert ["slerp", "1", "d", "Medical tasks", "accuracy", "–", "10.0–20.0"] in page.cells
    assert not [row for row in page.cells if row[2:3] == ["e"]]  # the curve is made of validation items
    labels = [a["aria-label"] for _, a in page.elements if "point" in (a.get("class") or "").split()]
    assert [label for label in labels if label and "ratio" in label] == ['Medical tasks, ratio 0: 25.0%, a, "b" et\nc']
    assert "The base itself (ratio 0) was chosen on validation items." in page.said()


def test_losses_that_are_not_numbers_are_told(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    lines = (run / "train/log.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3] = re.sub(r'"loss": [^,]+', '"loss": NaN', lines[3])
    lines[9] = re.sub(r'"loss": [^,]+', '"loss": null', lines[9])
    lines.append(lines[20])  # a step written again after a resume
    (run / "train/log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    page = render(run)
    assert "2 steps had a loss that is not a finite number" in page.said()
    assert "nan" not in page.said().lower().split()


def test_a_stale_artifact_and_another_ratio_are_told(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    packed = json.loads((run / "packed" / MANIFEST).read_text(encoding="utf-8"))["digest"]
    with_json(run / "train" / MANIFEST, lambda v: v.update(parents={"packed": packed}))
    assert "older state" not in render(run).said()
    with_json(run / "train" / MANIFEST, lambda v: v.update(parents={"packed": "0" * 64}))
    with_json(run / "eval/merged" / MANIFEST, lambda v: v.update(parents={"model": "0" * 64}))
    with_json(run / "merge" / MANIFEST, lambda v: v["settings"].update(ratio=0.75))
    said = render(run).said()
    assert "“Training” was made from an older state of “Packing”" in said
    assert "“Evaluation of the merged model” was made from an older state of “Merge”" in said
    assert "stands at 0.75, not at the chosen 0.5" in said


def test_a_long_training_stays_a_small_page(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    line = '{{"step": {0}, "tokens": {1}, "loss": {2}, "learning_rate": 1e-4}}\n'
    text = "".join(line.format(s, s * 131_072, 9.5 if s == 7_777 else 2.0) for s in range(1, 20_001))
    (run / "train/log.jsonl").write_text(text, encoding="utf-8")
    page = render(run)
    assert 50_000 < len(page.html) < 300_000
    assert "10" in page.text  # the axis reaches the one spike, 9.5


def test_same_runs_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    write_report([run], tmp_path / "a.html")
    write_report([run], tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_what_is_no_run_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere", make_run() / "eval" / "base"):
        with pytest.raises(RequestError, match="is not a run"):
            write_report([wrong], output)
    with pytest.raises(RequestError, match="at least one run"):
        write_report([], output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("eval/base/results.json", '{"rows": [{"task": "t"', "results.json"),
        ("eval/base/results.json", '{"rows": [{"task": "t"}]}', "rows.0.group Field required"),
        ("eval/base/results.json", "[" * 100_000, "results.json"),
        ("ablation/ablation.csv", ABLATION_HEAD + "slerp,half,t,g,s,m,1\n", "line 2: ratio"),
        ("ablation/ablation.csv", ABLATION_HEAD + "slerp,1.5,t,g,s,m,1\n", "line 2: ratio"),
        ("ablation/ablation.csv", "method,ratio\nslerp,1\n", "line 2: task Field required"),
        ("ablation/choice.json", "[]", "choice.json"),
        ("ablation/choice.json", CHOICE + '"adapter_base": {"bf16": 1}}', "adapter_base.chosen Field required"),
        ("ablation/choice.json", CHOICE + '"adapter_base": {"chosen": "bf16", "live": "x"}}', "adapter_base.live"),
        ("ablation/choice.json", CHOICE + '"screened_out": 3}', "screened_out"),
        ("merge/tensors.csv", "name,model\na.weight,train\n", "line 2: relative_change Field required"),
        ("merge/tensors.csv", TENSORS_HEAD + "a.weight,train,much,1,true,0.5\n", "line 2: relative_change"),
        ("merge/tensors.csv", TENSORS_HEAD + "a,train,1,1,true,0.5\nb,train,0.", "line 3: slerp_is_linear"),
        ("merge/tensors.csv", "", "it holds no rows"),
        ("ablation/ablation.csv", ABLATION_HEAD, "it holds no rows"),
        ("eval/compare.json", "{", "remove"),
        ("eval/compare.json", '{"groups": [{"group": "g"}]}', "compare.json and run its stage again"),
        ("eval/compare.json", '{"margin": "one"}', "margin"),
        ("train/log.jsonl", '{"step": 1}\n{"step": 2, "lo', "line 2"),
        ("train/log.jsonl", '{"step": 1, "loss": "low"}\n', "line 1: loss"),
        ("corpus/funnel.json", "\x00", "funnel.json"),
        ("recipe.yaml", "a: [", "recipe.yaml is not valid YAML"),
        ("recipe.yaml", "- a", "recipe.yaml is not a recipe"),
        ("merge/manifest.json", "{}", "manifest.json is not a manifest"),
    ],
)
def test_damaged_files_are_named(file: str, text: str, told: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    (run / file).write_text(text, encoding="utf-8")
    output = tmp_path / "r.html"
    output.write_text("the page of yesterday")
    with pytest.raises(RequestError, match=re.escape(told)) as error:
        write_report([run], output)
    assert file.split("/")[-1] in str(error.value) and "\n" not in str(error.value)
    assert output.read_text() == "the page of yesterday"


def test_a_data_file_that_is_gone_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    for file in ("eval/merged/results.json", "merge/tensors.csv"):
        (run / file).rename(run / "aside")
        with pytest.raises(RequestError, match=re.escape(f"{file} cannot be read")):
            write_report([run], tmp_path / "r.html")
        (run / "aside").rename(run / file)


def test_an_output_that_cannot_be_written_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    with pytest.raises(RequestError, match="is a directory"):
        write_report([run], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "r.html")


def test_a_page_that_would_be_too_large_is_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    size = write_report([run], tmp_path / "fits.html")["bytes"]
    monkeypatch.setattr("frbio_lite.report.LARGEST_PAGE", size)
    write_report([run], tmp_path / "fits.html")
    monkeypatch.setattr("frbio_lite.report.LARGEST_PAGE", size - 1)
    with pytest.raises(RequestError, match="report fewer runs"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
