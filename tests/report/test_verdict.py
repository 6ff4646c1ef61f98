"""The verdict in words: taken from the comparison as it is, never judged again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from frbio_lite.evaluation import statistics
from frbio_lite.report.language import speaking
from frbio_lite.report.load import Candidate, Choice, Comparison, GroupDifference, Result, Rule, Run, TaskDifference
from frbio_lite.report.means import main_family, mean_with_interval
from frbio_lite.report.verdict import (
    MARKS,
    VERDICTS,
    describe,
    difference,
    group_gain,
    outcomes,
    points,
    rule_in_words,
    sentences,
)


def row(
    value: float,
    low: float | None,
    high: float | None,
    metric: str = "accuracy",
    task: str = "t",
    group: str = "domain",
    split: str = "test",
) -> Result:
    return Result(task=task, group=group, split=split, metric=metric, value=value, low=low, high=high, items=9, shots=0)


def group(verdict: str, difference: float, low: float | None, high: float | None, **more: Any) -> GroupDifference:
    given = {"group": "domain", "role": "gain", "model": "merged", "unit": "points", "tasks": 1}
    told = {"difference": difference, "low": low, "high": high, "verdict": verdict}
    return GroupDifference.model_validate(given | told | more)


def general(verdict: str, difference: float, low: float | None, high: float | None, **more: Any) -> GroupDifference:
    return group(verdict, difference, low, high, **{"group": "general", "role": "retain"} | more)


def run_of(*groups: GroupDifference, margin: float = 1.0, models: tuple[str, ...] = ("base", "merged")) -> Run:
    choice = Choice(method="slerp", ratio=0.5)
    results = {model: (row(0.5, 0.4, 0.6),) for model in models}
    comparison = Comparison(margin=margin, groups=list(groups)) if groups else None
    return Run(Path("r"), "", {}, {}, choice=choice, results=results, comparison=comparison)


def test_the_sentences_say_what_was_gained_kept_and_chosen() -> None:
    found = run_of(group("gained", 41.24, 36.02, 46.4, tasks=3), general("non-inferior", -0.2, -0.9, 0.5))
    first, second = sentences(found)
    assert first == (
        "On test items, compared with its base, the merged model gained on medical tasks "
        "(+41.2 points, 95% interval +36.0 to +46.4, mean of 3 tasks) and is non-inferior on general tasks "
        "(−0.2 points, 95% interval −0.9 to +0.5), within the margin of 1 point."
    )
    assert second == "Ratio 0.5 (50% adapted model, 50% base; slerp) was chosen on validation items."


def tried(ratio: float, domain: float | None, general: float | None, eligible: bool = True) -> Candidate:
    return Candidate(method="slerp", ratio=ratio, gains={"domain": domain, "general": general}, eligible=eligible)


BOTH = Rule(maximise="domain", retain={"general": -2.5})
BASE, BEST, WORSE = tried(0.0, 0.0, 0.0), tried(0.25, 7.26, -1.0), tried(1.0, 9.0, -12.0, eligible=False)


@pytest.mark.parametrize(
    ("ratio", "rule", "candidates", "said"),
    [
        (0.25, BOTH, [BASE, BEST, WORSE], "Ratio 0.25 (25% adapted model, 75% base; slerp) was chosen on validation items: it "
         "gains most on medical tasks (+7.3 points; −1.0 points on general tasks) and is the only merge with a loss of at most "
         "2.5 points on general tasks."),
        (0.25, BOTH, [BASE, BEST, tried(0.5, 3, 0)], " among the 2 merges with a loss of at most 2.5 points on"),
        (0.25, Rule(maximise="domain"), [BASE, BEST], "items: it gains most on medical tasks (+7.3 points)."),
        (0.25, Rule(maximise="general", retain={"domain": 2.0}), [BEST], "it gains most on general tasks (−1.0 points; +7.3 "
         "points on medical tasks) and is the only merge with a gain of at least 2 points on medical tasks."),
        (1.0, BOTH, [BASE, tried(1.0, 9, -1)], "The adapted model itself (ratio 1, slerp) was chosen on validation items: it "
         "gains most on"),
        (0.0, BOTH, [BASE], "The base itself (ratio 0) was chosen on validation items: nothing else was scored."),
        (0.0, BOTH, [BASE, WORSE], "validation items: no merge has a loss of at most 2.5 points on general tasks."),
        (0.0, BOTH, [BASE, tried(0.5, -1, 0)], "items: no merge that the rule allows gains anything on medical tasks."),
        (0.25, BOTH, [BASE], "slerp) was chosen on validation items."),
        (0.25, Rule(), [BASE, BEST], "slerp) was chosen on validation items."),
        (0.25, BOTH, [tried(0.25, None, None)], "it gains most on medical tasks and is the only merge"),
    ],
)  # fmt: skip
def test_why_the_ratio_was_chosen(ratio: float, rule: Rule, candidates: list[Candidate], said: str) -> None:
    choice = Choice(method="slerp", ratio=ratio, rule=rule, candidates=candidates)
    assert said in sentences(Run(Path("r"), "", {}, {}, choice=choice))[1]


def test_the_rule_in_words() -> None:
    assert rule_in_words(Rule()) == ""
    assert rule_in_words(Rule(maximise="own")) == "the largest gain on own"
    rule = Rule(maximise="domain", retain={"general": -1.0, "domain": 0.5})
    assert rule_in_words(rule) == (
        "the largest gain on medical tasks, with a loss of at most 1 point on general tasks and a gain of at least 0.5 points "
        "on medical tasks"
    )


def test_the_verdict_in_french() -> None:
    found = run_of(group("gained", 41.24, 36.02, 46.4, tasks=3), general("inconclusive", -0.2, -1.9, 0.5))
    choice = Choice(method="slerp", ratio=0.25, rule=BOTH, candidates=[BASE, BEST, WORSE])
    with speaking("fr"):
        first, second = (told.replace("\u00a0", "~").replace("\u202f", "^") for told in sentences(found))
        third = sentences(Run(Path("r"), "", {}, {}, choice=choice))[1].replace("\u00a0", "~").replace("\u202f", "^")
        assert [points(value) for value in (-1.9, 2.0, 0.04)] == [
            "−1,9\u00a0point",
            "+2,0\u00a0points",
            "0,0\u00a0point",
        ]
        assert difference(group("lost", -3, -5, -1, unit="percent of bits")) == "−3,0\u00a0% des bits"
    assert first == (
        "Sur les items de test, par rapport à sa base, le modèle fusionné progresse sur les tâches médicales "
        "(+41,2~points^; IC à 95~%~: +36,0 à +46,4^; moyenne de 3~tâches) et ne permet pas de conclure sur les tâches "
        "générales (−0,2~point^; IC à 95~%~: −1,9 à +0,5)~: une perte de plus de 1~point n’est pas exclue."
    )
    assert (
        second == "Le ratio 0,5 (50~% de modèle adapté, 50~% de base^; slerp) a été choisi sur les items de validation."
    )
    assert third.endswith(
        "~: c’est le plus grand gain sur les tâches médicales (+7,3~points^; −1,0~point sur les tâches générales) et la seule "
        "fusion avec une perte d’au plus 2,5~points sur les tâches générales."
    )
    assert sentences(found)[0].startswith("On test items")  # English again


@pytest.mark.parametrize(
    ("line", "margin", "said"),
    [
        (group("lost", -3, -5, -1), 1.0, "lost on medical tasks (−3.0 points, 95% interval −5.0 to −1.0)."),
        (group("no difference shown", 0, -2, 2), 1.0, "shows no difference on medical tasks (0.0 points, 95%"),
        (general("degraded", -9, -12, -6), 2.5, "is degraded on general tasks (−9.0 points, 95% interval −12.0 to "
         "−6.0), by more than the margin of 2.5 points."),
        (general("degraded", -1, -1.9, -0.1), 1.0, "(−1.0 points, 95% interval −1.9 to −0.1), possibly by more than "
         "the margin of 1 point."),
        (general("inconclusive", -1, -3, 1), 1.0, "is inconclusive on general tasks (−1.0 points, 95% interval −3.0 to "
         "+1.0): a loss of more than 1 point is not excluded."),
        (general("inconclusive", -1, None, None), 2.0, "(−1.0 points, no interval): a loss of more than 2 points is"),
        (general("non-inferior", 2.2, 0.4, 3, unit="percent of bits"), 1.0, "is non-inferior on general tasks (+2.2% of "
         "bits saved, 95% interval +0.4 to +3.0), within the margin of 1% of bits."),
        (group("gained", 3, 1, 5, role="control", group="control"), 1.0, "gained on controls (+3.0 points, 95% "
         "interval +1.0 to +5.0), a control."),
        (group("no difference shown", 3, -1, 5, role="control", group="own"), 1.0, "the merged model was scored on "
         "controls only, which do not differ."),
    ],
)  # fmt: skip
def test_the_phrases(line: GroupDifference, margin: float, said: str) -> None:
    assert said in sentences(run_of(line, margin=margin))[0]


def test_every_verdict_of_the_comparison_has_its_phrase_and_mark() -> None:
    assert set(MARKS) == set(get_args(statistics.Change))
    assert set(VERDICTS) == {*get_args(statistics.Change), *get_args(statistics.Retention)}
    for verdict in (*get_args(statistics.Change), *get_args(statistics.Retention)):
        assert "medical tasks" in sentences(run_of(group(verdict, 1, 0, 2)))[0]


def test_controls_are_told_only_when_they_move() -> None:
    still = group("no difference shown", 0, -2, 2, role="control", group="control")
    moved = group("lost", -5, -8, -2, role="control", group="control")
    assert "control" not in sentences(run_of(group("gained", 3, 1, 5), still))[0]
    assert " and lost on controls (−5.0 points" in sentences(run_of(group("gained", 3, 1, 5), moved))[0]


def test_the_sentences_of_unfinished_and_uncompared_runs() -> None:
    assert "not evaluated yet" in sentences(run_of(models=()))[0]
    assert "Only the base" in sentences(run_of(models=("base",)))[0]
    assert sentences(run_of())[0].startswith("The merged model was not compared with its base")
    adapted = group("gained", 3, 1, 5, model="adapted")
    assert "the adapted model gained on" in sentences(run_of(adapted, models=("base", "adapted")))[0]
    both = run_of(adapted, models=("base", "adapted", "merged"))
    assert "The merged model was not compared" in sentences(both)[0] and "frbio compare RUN/eval" in sentences(both)[0]
    assert describe(both, "adapted").startswith("gained on medical tasks (+3.0") and describe(both, "merged") == ""
    assert sentences(Run(Path("r"), "", {}, {}))[1] == "No merge ratio is chosen yet."


def test_tasks_that_count_are_counted() -> None:
    def task(group: str, verdict: str, model: str = "merged") -> TaskDifference:
        told = {"task": "t", "metric": "accuracy", "group": group, "model": model, "unit": "points"}
        figures = {"difference": 1.0, "low": 0.5, "high": 1.5, "adjusted_p": 0.5}
        return TaskDifference.model_validate(told | figures | {"verdict": verdict})

    tasks = [task("domain", "gained"), task("general", "gained"), task("general", "lost")]
    tasks += [task("control", "lost"), task("own", "lost"), task("domain", "lost", "adapted")]
    tasks.append(task("general", "no difference shown"))
    run = Run(Path("r"), "", {}, {}, comparison=Comparison(tasks=tasks))
    assert outcomes(run, "merged") == [2, 1, 1] and outcomes(run, "adapted") == [0, 1, 0]
    assert outcomes(run, "base") == outcomes(Run(Path("r"), "", {}, {}), "merged") == []


def test_the_gain_of_a_group_carries_its_unit() -> None:
    groups = [group("gained", 41.24, 36.02, 46.4), general("degraded", -2.0, -3.0, -1.0, unit="percent of bits")]
    assert [group_gain(groups, name) for name in ("domain", "general", "own")] == ["+41.2", "−2.0%", "–"]


def test_evaluations_are_known_by_their_digests() -> None:
    groups = [group("gained", 3, 1, 5, model="m (b)"), group("lost", -3, -5, -1, model="m (c)")]
    found = Comparison(results={"m (a)": "1", "m (b)": "2", "m (c)": "3"}, margin=2.0, groups=groups)
    every = found.named({"base": "1", "adapted": "3", "merged": "2"})
    assert [(g.model, g.verdict) for g in every.groups] == [("merged", "gained"), ("adapted", "lost")]
    assert every.margin == 2.0 and every.results == {"base": "1", "adapted": "3", "merged": "2"}
    fewer = found.named({"base": "1", "adapted": "9", "merged": "2"})  # the adapted one was evaluated again
    assert [g.model for g in fewer.groups] == ["merged"] and set(fewer.results) == {"base", "merged"}
    assert found.named({"base": "9", "merged": "2"}) == Comparison()  # another base: nothing can be told
    assert found.named({"base": "2", "merged": "3"}) == Comparison()  # its reference was another model
    assert found.named({"merged": "2"}) == Comparison() == Comparison().named({"base": "1"})
    twins = found.model_copy(update={"results": {"m (a)": "1", "m (b)": "1", "m (c)": "1"}})
    assert [g.model for g in twins.named(dict.fromkeys(("base", "adapted", "merged"), "1")).groups] == [
        "adapted",
        "merged",
    ]


def test_mean_of_one_task_keeps_its_interval_and_of_four_halves_it() -> None:
    one = row(0.5, 0.42, 0.6)
    assert mean_with_interval([one]) == pytest.approx((0.5, 0.42, 0.6))
    assert mean_with_interval([one] * 4) == pytest.approx((0.5, 0.46, 0.55))
    assert mean_with_interval([one, row(0.7, None, None)]) == (pytest.approx(0.6), None, None)
    assert mean_with_interval([]) is None


def test_accuracies_stand_for_a_group_that_has_both() -> None:
    bits = row(1.0, 0.9, 1.1, metric="bits_per_byte")
    assert main_family([bits, row(0.5, 0.4, 0.6, metric="accuracy_norm")]) == "accuracy"
    assert main_family([bits]) == "bits_per_byte"
