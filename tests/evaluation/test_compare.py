"""Results side by side: figures by hand, verdicts on data with known effects, refusal of what cannot be paired."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, spearmanr

from frbio_lite import recipe
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import evaluate, load_tasks
from frbio_lite.evaluation.compare import Comparison, compare, group_table, task_table, update, write
from frbio_lite.evaluation.results import load

Line = dict[str, Any]
Row = dict[str, Any]
TASKS = {"med-a": "domain", "med-b": "domain", "gen-a": "general", "gen-b": "general"}


def question(task: str, number: int, correct: bool, **more: Any) -> Line:
    line = {"task": task, "id": f"q{number}", "prompt_hash": f"hash-{task}-{number}", "log_likelihoods": [-1.0, -2.0]}
    return line | {"prediction": 0, "gold": 0 if correct else 1, "correct": correct, "truncated": False} | more


def document(task: str, number: int, nats: float, size: int = 100) -> Line:
    return {"task": task, "id": f"d{number}", "prompt_hash": f"h{number}", "nats": nats, "bytes": size, "tokens": 9}


def row(task: str, group: str, lines: list[Line], **more: Any) -> Row:
    if "nats" in lines[0]:
        value = sum(x["nats"] for x in lines) / math.log(2) / sum(x["bytes"] for x in lines)
    else:
        value = sum(float(x.get("score", x["correct"])) for x in lines) / len(lines)
    metric = "bits_per_byte" if "nats" in lines[0] else "accuracy"
    made = {"task": task, "group": group, "split": "test", "metric": metric, "value": value, "low": None, "high": None}
    return made | {"items": len(lines), "shots": 0} | more


def save(directory: Path, model: str, tasks: dict[str, list[Line]], groups: dict[str, str], **more: Any) -> Path:
    directory.mkdir(parents=True)
    rows = [row(task, groups[task], lines, **more) for task, lines in tasks.items()]
    (directory / "results.json").write_text(json.dumps({"model": model, "rows": rows}))
    lines = [line for group in tasks.values() for line in group]
    (directory / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def simulated(
    path: Path, models: dict[str, dict[str, float]], items: int = 400, groups: dict[str, str] = TASKS
) -> list[Path]:
    """Models right on half of the reference's items, with `gains` of accuracy by group; the first is the reference."""
    rng = np.random.default_rng(5)
    base = {task: rng.random(items) < 0.5 for task in groups}
    made = []
    for model, gains in models.items():
        tasks = {}
        for task, right in base.items():
            gain = gains.get(groups[task], 0.0)
            flip = rng.random(items) < np.where(right, max(0.0, -gain), max(0.0, gain)) * 2
            tasks[task] = [question(task, n, bool(r)) for n, r in enumerate(right ^ flip)]
        made.append(save(path / model, model, tasks, groups))
    return made


def one_task(path: Path, base: list[Line], other: list[Line], group: str = "domain") -> Comparison:
    name = base[0]["task"]
    directories = [save(path / m, m, {name: x}, {name: group}) for m, x in (("base", base), ("new", other))]
    return compare(directories, resamples=2000)


# Figures


def test_figures_of_a_task_by_hand(tmp_path: Path) -> None:
    """100 items: 15 gained, 4 lost, 41 right before."""
    before = [n < 41 for n in range(100)]
    after = [(n < 41 and n >= 4) or 41 <= n < 56 for n in range(100)]
    found = one_task(
        tmp_path,
        [question("quiz", n, r) for n, r in enumerate(before)],
        [question("quiz", n, r) for n, r in reversed(list(enumerate(after)))],  # in another order: paired by id
    )
    (task,) = found.tasks
    assert (task.better, task.worse, task.items, task.units, task.test) == (15, 4, 100, 100, "McNemar")
    assert (task.reference_value, task.value, task.difference) == pytest.approx((0.41, 0.52, 11.0))
    assert task.p == task.adjusted_p == pytest.approx(binomtest(4, 19).pvalue)
    assert task.low is not None and task.high is not None
    error = 100 * math.sqrt(0.19 - 0.11**2) / 10
    assert task.low == pytest.approx(11 - 1.96 * error, abs=1.5)
    assert task.high == pytest.approx(11 + 1.96 * error, abs=1.5)
    assert task.detectable == pytest.approx(2.9 * error, abs=1.5)
    (group,) = found.groups
    assert (group.role, group.tasks, group.difference, group.verdict) == ("gain", 1, pytest.approx(11.0), "gained")
    assert (group.low, group.high) == pytest.approx((task.low, task.high))
    assert [(r.group, r.model, r.rank) for r in found.ranks] == [
        ("domain", "base", 2.0),
        ("domain", "new", 1.0),
        ("all", "base", 2.0),
        ("all", "new", 1.0),
    ]
    assert found.verdict.startswith("Compared with base, new gained on domain (+11.0 points, +")
    assert found.verdict.endswith("1 task).") and found.verdict.count(".") == found.verdict.count("+") + 1


def test_a_score_stands_in_for_correct(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = [question("sets", n, False, score=float(s)) for n, s in enumerate(rng.choice([0, 0.25, 0.5, 1.0], 200))]
    new = [line | {"score": min(1.0, line["score"] + (n % 3 == 0) * 0.25)} for n, line in enumerate(base)]
    (task,) = one_task(tmp_path, base, new).tasks
    gained = [b["score"] - a["score"] for a, b in zip(base, new, strict=True)]
    assert task.test == "sign-flip" and task.difference == pytest.approx(100 * np.mean(gained))
    assert (task.better, task.worse, task.p) == (sum(g > 0 for g in gained), 0, 1 / 2001)
    assert task.low is not None and task.low > 0


def test_clusters_are_resampled_as_a_whole(tmp_path: Path) -> None:
    """Ten cases of 20 items each, all of a case gained or lost together: certain by items, not by cases."""
    base = [question("cases", n, n // 20 in (0, 1, 2), cluster=f"case {n // 20}") for n in range(200)]
    new = [line | {"correct": n // 20 not in (0, 3, 4)} for n, line in enumerate(base)]
    (clustered,) = one_task(tmp_path / "a", base, new).tasks
    for line in (*base, *new):
        del line["cluster"]
    (plain,) = one_task(tmp_path / "b", base, new).tasks
    assert (clustered.units, plain.units) == (10, 200)
    assert clustered.test == "sign-flip" and clustered.p == pytest.approx(2 * 9 / 2**6 / 2, abs=0.2) and plain.p < 1e-9
    assert plain.low is not None and plain.low > 0
    assert clustered.low is not None and clustered.low < 0
    assert clustered.difference == plain.difference == 40.0


def test_items_without_a_label_are_clusters_of_their_own(tmp_path: Path) -> None:
    base = [question("cases", n, n % 2 == 0, **({"cluster": "q1"} if n < 4 else {})) for n in range(20)]
    (task,) = one_task(tmp_path, base, base).tasks
    assert task.units == 17
    alone = [line | {"cluster": f"case {n}"} for n, line in enumerate(base)]
    (task,) = one_task(tmp_path / "alone", alone, alone).tasks
    assert task.units == 20 and task.test == "McNemar"


def test_bits_per_byte_are_percent_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    nats = rng.gamma(2.0, 50.0, 60) + 5
    saved = nats * (0.97 + rng.normal(0, 0.02, 60))
    base = [document("held", n, float(x), 50 + n) for n, x in enumerate(nats)]
    new = [document("held", n, float(x), 50 + n) for n, x in enumerate(saved)]
    found = one_task(tmp_path, base, new, "general")
    (task,) = found.tasks
    assert task.difference == pytest.approx(100 * (1 - saved.sum() / nats.sum()))
    assert task.reference_value == pytest.approx(nats.sum() / math.log(2) / sum(50 + n for n in range(60)))
    assert task.low is not None and 1.5 < task.low < task.difference and task.p < 0.01
    assert task.better == (saved < nats).sum()
    assert found.groups[0].verdict == "non-inferior" and found.ranks[1].rank == 1.0
    assert task.verdict == "gained" and task.unit == found.groups[0].unit == "percent of bits"
    assert " % of bits saved, +" in found.verdict and "within the margin of 1 % of bits." in found.verdict
    assert "points" not in found.verdict
    for table in (task_table(found), group_table(found)):
        assert [f"{task.difference:+.1f}% (+" in cell for cell in table[1]].count(True) == 1
    tripled = [line | {"nats": 3 * line["nats"]} for line in base]
    worse = one_task(tmp_path / "worse", base, tripled, "general")  # a loss of more than 100 %
    assert worse.tasks[0].difference == worse.tasks[0].low == pytest.approx(-200.0)
    assert worse.groups[0].verdict == "degraded"


def test_correlations_are_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    golds = rng.integers(0, 6, 120)
    guesses = [np.round(golds + rng.normal(0, spread, 120), 1) for spread in (3.0, 1.0)]
    made = []
    for model, guess in zip(("base", "new"), guesses, strict=True):
        lines = [
            question("sts", n, False, prediction=float(p), gold=int(g))
            for n, (p, g) in enumerate(zip(guess, golds, strict=True))
        ]
        value = float(spearmanr(guess, golds).statistic)
        made.append(save(tmp_path / model, model, {"sts": lines}, {"sts": "domain"}, metric="spearman", value=value))
    (task,) = compare(made, resamples=1000).tasks
    assert task.difference == pytest.approx(100 * (task.value - task.reference_value)) and task.test == "sign-flip"
    assert task.value == pytest.approx(spearmanr(guesses[1], golds).statistic) and task.p < 0.01
    edit_rows(made[0], value=0.99)
    refused(made, "says spearman 0.99")


def test_accuracies_stand_for_a_group_that_has_both(tmp_path: Path) -> None:
    quiz = [question("quiz", n, n % 2 == 0) for n in range(50)]
    held = [document("held", n, 10.0 + n) for n in range(50)]
    groups = {"quiz": "domain", "held": "domain"}
    base = save(tmp_path / "base", "base", {"quiz": quiz, "held": held}, groups)
    better = [document("held", n, 5.0 + n) for n in range(50)]
    found = compare([base, save(tmp_path / "new", "new", {"quiz": quiz, "held": better}, groups)], resamples=1000)
    assert [t.p < 0.01 for t in found.tasks] == [False, True]
    assert [(t.unit, t.verdict) for t in found.tasks] == [
        ("points", "no difference shown"),
        ("percent of bits", "gained"),
    ]
    assert found.groups[0].tasks == 1 and found.groups[0].verdict == "no difference shown"
    assert {r.tasks for r in found.ranks} == {1}
    assert "shows no difference on domain (+0.0 points" in found.verdict


# Verdicts


def test_verdicts_of_several_models(tmp_path: Path) -> None:
    models: dict[str, dict[str, float]] = {
        "base": {},
        "merged": {"domain": 0.08},
        "adapted": {"domain": 0.10, "general": -0.08},
        "broken": {"domain": -0.1, "general": -0.1},
    }
    found = compare(simulated(tmp_path, models, items=800), resamples=2000)
    assert found.models == ("merged", "adapted", "broken") and found.reference == "base"
    verdicts = {(g.model, g.group): g.verdict for g in found.groups}
    assert verdicts == {
        ("merged", "domain"): "gained",
        ("merged", "general"): "non-inferior",
        ("adapted", "domain"): "gained",
        ("adapted", "general"): "degraded",
        ("broken", "domain"): "lost",
        ("broken", "general"): "degraded",
    }
    ranks = {(r.group, r.model): r.rank for r in found.ranks}
    assert ranks["general", "base"] == ranks["general", "merged"] == 1.5  # scores that are equal share their ranks
    assert ranks["all", "broken"] == pytest.approx((ranks["domain", "broken"] + ranks["general", "broken"]) / 2)
    assert ranks["domain", "broken"] == 4.0
    ps = [t.p for t in found.tasks]
    assert [t.adjusted_p for t in found.tasks] == pytest.approx(false_discovery_control(ps).tolist(), abs=0)
    assert sum(t.adjusted_p > t.p for t in found.tasks) >= 9
    for t in found.tasks:
        sure = t.adjusted_p <= 0.05
        assert t.verdict == ("no difference shown" if not sure else "gained" if t.difference > 0 else "lost")
    assert {t.verdict for t in found.tasks} == {"gained", "lost", "no difference shown"}
    assert len(found.tasks) == 12
    assert found.verdict.count(";") == 2 and "adapted gained on domain" in found.verdict
    assert "2 tasks), by more than the margin of 1 point; broken lost on domain" in found.verdict
    assert "is degraded on general" in found.verdict and "within the margin of 1 point" in found.verdict


def test_few_items_leave_it_open(tmp_path: Path) -> None:
    directories = simulated(tmp_path, {"base": {}, "new": {"domain": 0.05, "general": -0.02}}, items=40)
    found = compare(directories, resamples=2000)
    assert {g.group: g.verdict for g in found.groups} == {"domain": "no difference shown", "general": "inconclusive"}
    assert "a loss of more than the margin of 1 point is not excluded" in found.verdict
    maybe = compare(directories, resamples=500, margin=0.0).groups[1]
    assert maybe.high is not None and maybe.high >= 0 and maybe.verdict == "inconclusive"
    wide = compare(directories, resamples=2000, margin=25.0)
    assert wide.groups[1].verdict == "non-inferior"
    tiny = compare(simulated(tmp_path / "tiny", {"base": {}, "new": {}}, items=4), resamples=200)
    assert all(t.low is None and t.high is None for t in tiny.tasks)
    assert all(r.low is None for r in tiny.ranks)
    assert [g.verdict for g in tiny.groups] == ["no difference shown", "inconclusive"]
    assert "no interval" in tiny.verdict and "None" not in str(group_table(tiny) + task_table(tiny))


def test_controls_speak_only_when_they_move(tmp_path: Path) -> None:
    groups = {"fictional": "control", "med-a": "domain"}
    still = compare(simulated(tmp_path / "a", {"base": {}, "new": {"domain": 0.1}}, groups=groups), resamples=1000)
    assert [(g.group, g.role) for g in still.groups] == [("domain", "gain"), ("control", "control")]
    assert "control" not in still.verdict
    assert {r.tasks for r in still.ranks if r.group == "all"} == {1}
    moved = compare(
        simulated(tmp_path / "b", {"base": {}, "new": {"domain": 0.1, "control": 0.1}}, groups=groups), resamples=1000
    )
    assert "gained on domain" in moved.verdict and " and gained on the control" in moved.verdict
    only = {"fictional": "control"}
    alone = compare(simulated(tmp_path / "c", {"base": {}, "new": {}}, groups=only), resamples=1000)
    assert alone.verdict == "Compared with base, new was scored on controls only, which do not differ."


def test_the_same_seed_gives_the_same_comparison(tmp_path: Path) -> None:
    directories = simulated(tmp_path, {"base": {}, "new": {"domain": 0.05}})
    first = compare(directories, resamples=500)
    assert compare(directories, resamples=500) == first
    assert compare(directories, resamples=500, seed=18).groups != first.groups


# Output


def test_files_and_tables(tmp_path: Path) -> None:
    found = compare(simulated(tmp_path, {"base": {}, "new": {"domain": 0.1}}), resamples=500)
    write(found, tmp_path / "out" / "comparison")
    text = (tmp_path / "out" / "comparison" / "compare.json").read_text()
    assert json.loads(text, parse_constant=lambda c: pytest.fail(c)) == json.loads(json.dumps(found.to_json()))
    with (tmp_path / "out" / "comparison" / "compare.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["of"] for line in lines] == ["task"] * 4 + ["group"] * 2 + ["rank"] * 6
    assert float(lines[0]["difference"]) == found.tasks[0].difference
    assert lines[4]["verdict"] == "gained" and lines[4]["p"] == ""
    for table, count in ((task_table(found), 4), (group_table(found), 2)):
        assert len(table) == count + 1 and {len(cells) for cells in table} == {len(table[0])}
        assert all(isinstance(cell, str) for cells in table for cell in cells)
    assert group_table(found)[1][0] == "domain" and group_table(found)[1][-1] == "gained"
    assert sorted(p.name for p in (tmp_path / "out" / "comparison").iterdir()) == ["compare.csv", "compare.json"]


def test_the_correction_decides_whether_a_task_gained(tmp_path: Path) -> None:
    """p = 0.031 alone; among ten tasks that do not differ it is 0.34."""
    one = {"quiz": [question("quiz", n, n < 20) for n in range(40)]}
    gained = {"quiz": [question("quiz", n, n < 26) for n in range(40)]}
    rest = {f"still-{k}": [question(f"still-{k}", n, n < 20) for n in range(40)] for k in range(10)}
    groups = dict.fromkeys([*one, *rest], "domain")
    alone = compare([save(tmp_path / "a", "base", one, groups), save(tmp_path / "b", "new", gained, groups)])
    assert (alone.tasks[0].p, alone.tasks[0].verdict) == (0.03125, "gained")
    among = [
        save(tmp_path / "c", "base", one | rest, groups),
        save(tmp_path / "d", "new", gained | rest, groups),
    ]
    (task, *_) = compare(among, resamples=200).tasks
    assert (task.adjusted_p, task.verdict) == (pytest.approx(11 * 0.03125), "no difference shown")


def test_a_comparison_is_made_again_when_what_it_is_of_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, place = simulated(tmp_path, {"base": {}, "new": {"domain": 0.1}}, items=40), tmp_path / "place"

    def made(**how: Any) -> bool:
        update(both, place, **{"resamples": 200, **how})
        found = capsys.readouterr().err
        assert not found or json.loads((place / "compare.json").read_text())["verdict"] in found
        return bool(found)

    assert made() and not made()
    assert made(margin=2.0) and made() and made(seed=3) and made() and made(resamples=300) and made()
    edit(both[1], lambda x: x | {"truncated": True})
    assert made() and not made()
    both.reverse()
    assert made() and made() is False
    (place / "compare.csv").unlink()
    assert made() and (place / "compare.csv").is_file()
    for text in ("{", "[]", '{"results": {}}', ""):
        (place / "compare.json").write_text(text)
        assert made() and not made()
    with pytest.raises(RequestError, match="cannot be read"):
        update([both[0], tmp_path / "none"], place)


# Refusals


def edit(directory: Path, change: Callable[[Line], Line | None]) -> None:
    path = directory / "items.jsonl"
    lines = [change(json.loads(text)) for text in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line))


def edit_rows(directory: Path, **change: Any) -> None:
    found = json.loads((directory / "results.json").read_text())
    found["rows"][0] |= change
    (directory / "results.json").write_text(json.dumps(found))


def refused(directories: list[Path], *said: str) -> None:
    with pytest.raises(RequestError) as caught:
        compare(directories, resamples=200)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in said), message


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    both = simulated(tmp_path, {"base": {}, "new": {}}, items=20)
    edit(both[1], lambda x: x | ({"prompt_hash": "z"} if x["id"] in ("q3", "q7") and x["task"] == "gen-a" else {}))
    refused(both, "task gen-a: 2 of 20 items differ in their prompt, first q3", str(both[1]))


@pytest.mark.parametrize(
    "change, said",
    [({"shots": 3}, "shots is 0"), ({"split": "validation"}, "split is test"), ({"metric": "accuracy_norm"}, "metric")],
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    both = simulated(tmp_path, {"base": {}, "new": {}}, items=20)
    edit_rows(both[1], **change)
    refused(both, "task med-a:", said, str(next(iter(change.values()))), "evaluate both the same way")


def test_other_items_tasks_and_clusters_are_refused(tmp_path: Path) -> None:
    both = simulated(tmp_path, {"base": {}, "new": {}}, items=20)
    edit(both[1], lambda x: x | ({"id": "q99"} if (x["task"], x["id"]) == ("med-a", "q5") else {}))
    refused(both, "task med-a: 2 items are in one result only, first q5, in", "evaluate both the same way")
    fewer = simulated(tmp_path / "t", {"new": {}}, items=20, groups={"med-a": "domain"})
    refused([both[0], *fewer], "task med-b is in", "not in", "evaluate both on the same tasks")
    refused([*fewer, both[0]], "task med-b is in", "not in")
    labelled = simulated(tmp_path / "l", {"new": {}}, items=20)
    edit(labelled[0], lambda x: x | {"cluster": "one"})
    refused([both[0], *labelled], "task med-a: 20 of 20 items differ in their cluster, first q0")


def test_results_that_are_torn_or_stale_are_refused(tmp_path: Path) -> None:
    good, bad = simulated(tmp_path, {"base": {}, "new": {}}, items=20)
    items, results = (bad / "items.jsonl").read_text(), (bad / "results.json").read_text()
    refused([good], "two or more results")
    refused([good, good], "given twice")
    refused([good, tmp_path / "none"], "results.json cannot be read")
    for text, said in (
        (items + '{"task": "med-a"', "items.jsonl:81: not an item"),
        (items + items.splitlines()[0], "items.jsonl:81: task med-a has item q0 twice"),
        (items.split("\n", 1)[1], "counts 20 items and items.jsonl has 19"),
        (items.replace('"correct": true', '"correct": false', 1), "and the items in items.jsonl give"),
        (items.replace('"correct": true', '"score": 1.5', 1), "1.5 is not a score between 0 and 1"),
        (items.replace('"correct": true', '"score": NaN', 1), "nan is not a score between 0 and 1"),
        (
            items.replace('"correct"', '"right"'),
            "results.json is not the results of an evaluation: KeyError('correct')",
        ),
    ):
        (bad / "items.jsonl").write_text(text)
        refused([good, bad], said, "evaluate again")
    (bad / "items.jsonl").write_text(items)
    for text in ("{", "[]", '{"model": "new"}', '{"model": "new", "rows": [{}]}', '{"model": "new", "rows": []}'):
        (bad / "results.json").write_text(text)
        refused([good, bad], "results.json")
    (bad / "results.json").write_text(results)
    (bad / "manifest.json").write_text("{}")
    refused([good, bad], "manifest.json is not a manifest")
    with pytest.raises(RequestError, match="margin nan: write the points"):
        compare([good, good], margin=math.nan)


def test_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = (simulated(tmp_path / p, {"base": {}}, items=20)[0] for p in ("a", "b"))
    found = compare([first, second], resamples=200)
    assert found.reference == f"base ({first})" and found.models == (f"base ({second})",)


def test_the_first_metric_of_a_task_counts(tmp_path: Path) -> None:
    (directory,) = simulated(tmp_path, {"base": {}}, items=20)
    found = json.loads((directory / "results.json").read_text())
    found["rows"].insert(1, found["rows"][0] | {"metric": "accuracy_norm", "value": 0.0})
    (directory / "results.json").write_text(json.dumps(found))
    assert load(directory).tasks["med-a"].metric == "accuracy" and list(load(directory).tasks) == list(TASKS)


def test_controls_on_the_tasks_own_items_are_left_out(tmp_path: Path) -> None:
    both = simulated(tmp_path, {"base": {}, "new": {}}, items=20)
    plain = compare(both, resamples=200)
    found = json.loads((both[1] / "results.json").read_text())
    found["rows"].insert(0, found["rows"][0] | {"task": "med-a~permuted", "group": "control", "items": 7})
    (both[1] / "results.json").write_text(json.dumps(found))
    with (both[1] / "items.jsonl").open("a") as file:
        file.write(json.dumps(question("med-a~permuted", 0, True)) + "\n")
    assert replace(compare(both, resamples=200), results={}) == replace(plain, results={})


# With the evaluation itself, and its size


def test_what_an_evaluation_writes_is_read(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    settings = recipe.Eval(tasks=["demo-medical"], limit=8)
    tasks = load_tasks(["demo-medical", "demo-general"])
    for name in ("base", "new"):
        evaluate(model, tokenizer, tasks, "test", settings, tmp_path / name, model_name=name, seed=1)
    found = compare([tmp_path / "base", tmp_path / "new"], resamples=500)
    assert [(t.task, t.items, t.difference, t.p) for t in found.tasks] == [
        ("demo-medical", 8, 0.0, 1.0),
        ("demo-general", 8, 0.0, 1.0),
    ]


@pytest.mark.slow
def test_ten_tasks_of_5000_items_take_seconds(tmp_path: Path) -> None:
    groups = {f"t{n}": "domain" if n < 5 else "general" for n in range(10)}
    directories = simulated(tmp_path, {"base": {}, "new": {"domain": 0.02}}, items=5000, groups=groups)
    start = time.process_time()
    found = compare(directories)
    assert time.process_time() - start < 20
    assert [g.verdict for g in found.groups] == ["gained", "non-inferior"]
