"""The questions whose answers changed: counted from the items, drawn evenly, shown as they were asked, and browsed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from frbio_lite.errors import RequestError
from frbio_lite.report import LARGEST_PAGE, examples, write_report

from .browser import CHROMIUM, opened
from .conftest import MakeRun, Render, put, put_comparison
from .page import HOSTILE, Page

OPTIONS = ["le rein", "la rate", "le foie"]
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to run the page's script")
Lines = dict[str, list[dict[str, Any]]]


def row(task: str, metric: str = "accuracy", **more: Any) -> dict[str, Any]:
    return {"task": task, "group": "domain", "split": "test", "metric": metric, "items": 0, "shots": 0} | more


def answers(task: str, base: str, merged: str) -> Lines:
    """Items that base and merged model answered right (`1`) or wrong (`0`): gold is option 0, a wrong answer option 1."""

    def line(n: int, right: str) -> dict[str, Any]:
        chosen = 1 - int(right)
        scores = [-0.5 if k == chosen else -2.0 - k for k in range(len(OPTIONS))]
        item = {"task": task, "id": f"i{n:04d}", "prompt_hash": f"{task}{n}", "log_likelihoods": scores}
        return item | {"prediction": chosen, "gold": 0, "correct": bool(int(right))}

    return {m: [line(n, r) for n, r in enumerate(of)] for m, of in (("base", base), ("merged", merged))}


def asked(task: str, count: int, license: str = "cc-by-4.0", text: str = "{task}, question {n} ?") -> dict[str, Any]:
    items = {f"i{n:04d}": {"text": text.format(task=task, n=n), "options": OPTIONS} for n in range(count)}
    return {task: {"license": license, "source": f"somebody/{task}", "language": "fr", "items": items}}


def fill(
    run: Path,
    lines: Lines,
    questions: dict[str, Any] | None,
    rows: list[dict[str, Any]],
    compared: bool = True,
) -> Path:
    """Put these evaluations in the place of the run's own; the adapted model answers as the base does."""
    shutil.rmtree(run / "eval")
    for model in ("base", "adapted", "merged"):
        mine = lines["base" if model == "adapted" else model]
        scored = []
        for one in rows:
            found = [x["correct"] for x in mine if x["task"] == one["task"] and "correct" in x]
            scored.append(one | ({"items": len(found), "value": sum(found) / len(found)} if found else {}))
        files = {
            "results.json": json.dumps({"model": model, "rows": scored}),
            "items.jsonl": "\n".join(map(json.dumps, mine)),
        }
        put(
            run / "eval" / model,
            "EvalResult",
            files | ({"questions.json": json.dumps(questions)} if questions else {}),
            {},
        )
    if compared:
        put_comparison(run)
    return run


def one_task(run: Path, base: str, merged: str, **how: Any) -> Path:
    return fill(run, answers("quiz", base, merged), asked("quiz", len(base), **how), [row("quiz")])


def several(run: Path, tasks: dict[str, tuple[str, str]], **how: Any) -> Path:
    """Tasks by name, with who answered what right; nobody compares them, which takes its time."""
    lines: Lines = {"base": [], "merged": []}
    questions: dict[str, Any] = {}
    for task, (base, merged) in tasks.items():
        for model, found in answers(task, base, merged).items():
            lines[model] += found
        questions |= asked(task, len(base), **how)
    return fill(run, lines, questions, [row(task) for task in tasks], compared=False)


def shown(page: Page) -> list[str]:
    """The texts of the questions, in the order of the page."""
    return re.findall(r'<p class="question" lang="fr">(.*?)</p>', page.html, re.DOTALL)


def section(page: Page) -> str:
    return re.findall(r'<section aria-labelledby="run-\d+-examples">.*?</section>', page.html, re.DOTALL)[0]


def test_counts_are_those_of_the_items_with_the_paired_test(make_run: MakeRun, render: Render) -> None:
    lines = answers("quiz", "1" * 30 + "0" * 20, "1" * 28 + "0" * 2 + "1" * 15 + "0" * 5)
    beside = answers("quiz~calibrated", "10", "01")
    for model in ("base", "merged"):
        lines[model] += beside[model] + [{"task": "held", "id": "d", "prompt_hash": "d", "nats": 20.0, "bytes": 40}]
    held = row("held", "bits_per_byte", value=20 / 40 / math.log(2), items=1)
    run = fill(make_run(), lines, asked("quiz", 50), [row("quiz"), held])
    page = render(run)
    tested = next(t for t in json.loads((run / "eval/compare.json").read_text())["tasks"] if t["model"] == "merged")
    assert (tested["worse"], tested["better"], tested["test"]) == (2, 15, "McNemar")
    p = f"p = {tested['adjusted_p']:.3f}"
    assert page.row("quizcc-by-4.0") == ["quizcc-by-4.0", "50", "2", "15", f"{p}McNemar", "17"]
    assert "not simply right or wrong: held." in page.said()
    assert "quiz~calibrated" not in section(page)
    assert sorted(shown(page)) == sorted(f"quiz, question {n} ?" for n in [28, 29, *range(30, 45)])


def test_an_example_has_its_options_the_right_one_the_choices_and_their_shares(
    make_run: MakeRun, render: Render
) -> None:
    page = render(one_task(make_run(), "1", "0"))
    weights = [math.exp(-0.5), math.exp(-3.0), math.exp(-4.0)]  # base: option 0; merged: option 1, then -2, -0.5, -4
    base = [w / sum(weights) for w in weights]
    weights = [math.exp(-2.0), math.exp(-0.5), math.exp(-4.0)]
    merged = [w / sum(weights) for w in weights]
    assert page.row("le rein") == ["le rein ✓ right answer", f"● {base[0]:.1%}", f"{merged[0]:.1%}"]
    assert page.row("la rate") == ["la rate", f"{base[1]:.1%}", f"● {merged[1]:.1%}"]
    assert page.row("le foie") == ["le foie", f"{base[2]:.1%}", f"{merged[2]:.1%}"]
    assert "somebody/quiz, license cc-by-4.0" in page.said() and "softmax over their log-likelihoods" in page.said()
    assert "No question changed this way." in page.said()  # the other direction


LICENSES = {
    "cc0-1.0": True,
    "CC BY-NC-SA 4.0": True,
    "apache-2.0": True,
    "mit and cc-by-4.0": True,
    "etalab-2.0": True,
    "cc-by-nd-4.0": False,
    "cc-by-nc-nd-4.0": False,
    "mit + cc-by-nd-4.0": False,
    "unknown": False,
    "unstated": False,
    "research-only": False,
    "own": False,
    "": False,
}


def test_only_a_license_that_allows_it_lets_items_be_shown(make_run: MakeRun, render: Render) -> None:
    tasks = {f"t{n}": ("10", "01") for n in range(len(LICENSES))}
    lines: Lines = {"base": [], "merged": []}
    questions: dict[str, Any] = {}
    for task, license in zip(tasks, LICENSES, strict=True):
        for model, found in answers(task, *tasks[task]).items():
            lines[model] += found
        questions |= asked(task, 2, license=license)
    page = render(fill(make_run(), lines, questions, [row(task) for task in tasks]))
    read = Counter(text.split(",")[0] for text in shown(page))
    for (license, may), task in zip(LICENSES.items(), tasks, strict=True):
        assert examples.shareable(license) == may
        line = next(r for r in page.cells if r and r[0] == task + license and len(r) == 6)
        assert line[1:4] == ["2", "1", "1"]  # counted in any case
        assert (read[task], f"somebody/{task}," in page.html) == ((2, True) if may else (0, False))
        assert ("does not let items be shown" in line[5]) != may


def test_every_shipped_license_is_one_or_the_other() -> None:
    """The forms that the shipped tasks use, so that a new spelling is noticed."""
    folder = Path(examples.__file__).parents[1] / "evaluation" / "tasks"
    found = {re.findall(r"^license: (.+)$", f.read_text(encoding="utf-8"), re.M)[0] for f in folder.glob("*.yaml")}
    assert {name for name in found if not examples.shareable(name)} == {
        "other (free use with attribution)",
        "research-only",
        "that of the corpus",
        "unstated",
    }


def test_texts_are_escaped(make_run: MakeRun, render: Render) -> None:
    run = make_run()
    lines = answers("quiz", "10", "01")
    for model in ("base", "merged"):
        for line in lines[model]:
            line["id"] = HOSTILE + line["id"]
    items = {HOSTILE + f"i{n:04d}": {"text": HOSTILE * 2, "options": [HOSTILE, "b", "c"]} for n in range(2)}
    questions = {"quiz": {"license": "mit", "source": HOSTILE, "language": '"><b>', "items": items}}
    page = render(fill(run, lines, questions, [row("quiz")]))
    assert "<script>alert" not in page.html and "alert(1)" in page.said()
    assert not [tag for tag, _ in page.elements if tag == "b"]
    assert [tag for tag, _ in page.elements].count("script") == 1


def test_the_same_are_drawn_again_and_both_directions_alike(make_run: MakeRun, render: Render) -> None:
    base, merged = "1" * 200 + "0" * 100, "0" * 200 + "1" * 100
    page = render(one_task(make_run("a"), base, merged))
    numbers = [int(text.split()[2]) for text in shown(page)]
    lost, gained = numbers[: examples.MOST], numbers[examples.MOST :]
    assert len(set(lost)) == len(set(gained)) == examples.MOST == 24
    assert max(lost) < 200 <= min(gained) and "200 questions, 24 shown" in page.said()
    assert lost != sorted(lost)  # drawn, not the first of the file
    assert max(lost) - min(lost) > 100 and max(gained) - min(gained) > 40
    assert shown(render(one_task(make_run("b"), base, merged))) == shown(page)
    reversed_lines = {m: found[::-1] for m, found in answers("quiz", base, merged).items()}
    other = fill(make_run("c"), reversed_lines, asked("quiz", 300), [row("quiz")])
    assert shown(render(other)) == shown(page)  # whatever the order of scoring


def test_long_texts_share_the_bytes_evenly_and_the_page_stays_small(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = {f"t{n}": ("1" * 40 + "0" * 40, "0" * 40 + "1" * 40) for n in range(10)}
    long = "{task}, question {n} : " + "cas clinique détaillé. " * 300
    runs = [several(make_run(name), tasks, text=long) for name in ("a", "b")]
    sizes = {}
    for count in (1, 2):
        written = write_report(runs[:count], tmp_path / "r.html")["bytes"]
        html = (tmp_path / "r.html").read_text(encoding="utf-8")
        drawn = Counter(re.findall(r'lang="fr">(t\d+), question', html))
        assert set(drawn) == set(tasks) and max(drawn.values()) - min(drawn.values()) <= 2 * count
        sizes[count] = sum(len(x.encode()) for x in re.findall(r'<li class="example">.*?</li>', html, re.DOTALL))
        assert written < LARGEST_PAGE
    assert 0.8 * examples.BUDGET < sizes[1] <= examples.BUDGET
    assert 0.8 * examples.BUDGET < sizes[2] <= examples.BUDGET


def test_short_texts_are_within_what_was_reckoned(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = {f"t{n}": ("1" * 30 + "0" * 30, "0" * 30 + "1" * 30) for n in range(60)}
    write_report([several(make_run(), tasks, text="{n} & <{task}> ?")], tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    size = sum(len(x.encode()) for x in re.findall(r'<li class="example">.*?</li>', html, re.DOTALL))
    assert 0.5 * examples.BUDGET < size <= examples.BUDGET


def test_an_older_evaluation_is_counted_and_the_page_says_how_to_read_it(make_run: MakeRun, render: Render) -> None:
    run = fill(make_run(), answers("quiz", "110", "011"), None, [row("quiz")])
    page = render(run)
    assert "remove the run’s eval folder and run the recipe again" in page.said()
    line = next(r for r in page.cells if r and r[0] == "quiz" and len(r) == 6)
    assert line[1:4] == ["3", "1", "1"] and line[5] == "0"
    assert '<div class="browser"' not in page.html


def test_nothing_changed_and_nothing_there(make_run: MakeRun, render: Render) -> None:
    page = render(one_task(make_run("same"), "110", "110"))
    assert '<div class="browser"' not in page.html and "remove the run’s eval folder" not in page.said()
    run = make_run("unmerged")
    shutil.rmtree(run / "eval" / "merged")
    (run / "eval" / "compare.json").unlink()
    assert "both the base and the merged model must be evaluated" in render(run).said()


def test_items_asked_differently_are_no_pair(make_run: MakeRun, render: Render) -> None:
    run = one_task(make_run(), "11", "00")
    lines = (run / "eval/merged/items.jsonl").read_text(encoding="utf-8").replace('"quiz0"', '"another"')
    (run / "eval/merged/items.jsonl").write_text(lines, encoding="utf-8")
    page = render(run)
    line = next(r for r in page.cells if r and r[0] == "quizcc-by-4.0")
    assert line[1:4] == ["1", "1", "0"] and shown(page) == ["quiz, question 1 ?"]


@pytest.mark.parametrize(
    "scores, prediction, cells, note",
    [
        # a yes and a no for each: 0.8, 0.1 and 0.5 of yes
        ([*map(math.log, (0.8, 0.2, 0.1, 0.9)), -3.0, -3.0], [0], ["● 80.0%", "10.0%", "50.0%"], "that of yes"),
        ([-3.0, -1.0, -2.0, -5.0, -4.0, -9.0, -8.0], [0, 2], ["●", "", "●"], "Sets of options"),
    ],
)  # fmt: skip
def test_several_right_answers(
    scores: list[float], prediction: list[int], cells: list[str], note: str, make_run: MakeRun, render: Render
) -> None:
    lines = answers("quiz", "1", "0")
    for model in ("base", "merged"):
        lines[model][0] |= {"log_likelihoods": scores, "prediction": prediction, "gold": [0, 1]}
    page = render(fill(make_run(), lines, asked("quiz", 1), [row("quiz", "exact_set")]))
    table = [next(r for r in page.cells if r and r[0].startswith(option)) for option in OPTIONS]
    assert [r[1].strip() for r in table] == cells
    assert ["right answer" in r[0] for r in table] == [True, True, False]
    assert note in page.said()


def test_a_choice_by_length_is_explained(make_run: MakeRun, render: Render) -> None:
    run = fill(make_run(), answers("quiz", "1", "0"), asked("quiz", 1), [row("quiz", "accuracy_norm")])
    assert "per character, so the largest percentage is not always the choice" in render(run).said()


def test_answers_in_the_models_own_words(make_run: MakeRun, render: Render) -> None:
    lines = answers("quiz", "1", "0")
    for model, text in (("base", "Donc 12."), ("merged", "<b>13</b>")):
        lines[model][0] |= {"log_likelihoods": [], "gold": "12", "answer": text, "prediction": text.strip("Donc .")}
    questions = asked("quiz", 1)
    questions["quiz"]["items"]["i0000"]["options"] = []
    page = render(fill(make_run(), lines, questions, [row("quiz", "exact_match")]))
    told = dict(zip(*[iter(re.findall(r"<d[td][^>]*>(.*?)</d[td]>", section(page)))] * 2, strict=True))
    assert told == {
        "reference": "12",
        "base": "Donc 12.",
        "base, read as": "12",
        "merged": "&lt;b&gt;13&lt;/b&gt;",
    }


def test_what_was_cut_is_told(make_run: MakeRun, render: Render) -> None:
    lines = answers("quiz", "10", "01")
    lines["merged"][0]["truncated"] = True
    page = render(fill(make_run(), lines, asked("quiz", 2), [row("quiz")]))
    assert page.said().count("read without its beginning") == 1


@pytest.mark.parametrize(
    "file, text",
    [
        ("questions.json", "{"),
        ("questions.json", '{"quiz": {"license": "mit"}}'),
        ("items.jsonl", '{"task": "quiz"}'),
        ("items.jsonl", '{"task": "quiz", "id": "1", "prompt_hash": "h", "log_likelihoods": [NaN]}'),
    ],
)
def test_damaged_files_are_named(file: str, text: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = one_task(make_run(), "10", "01")
    (run / "eval/merged" / file).write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=re.escape(f"eval/merged/{file} cannot be read")):
        write_report([run], tmp_path / "r.html")


def test_shares_of_extreme_scores() -> None:
    assert examples.option_shares([-1e4, -2e4], 2) == [1.0, 0.0]
    assert examples.option_shares([-1e4, -10.0, -10.0, -1e4], 2) == pytest.approx([0.0, 1.0])
    assert examples.option_shares([-1.0, -2.0], 3) == [] == examples.option_shares([], 0)


TWO = {"quiz": ("111000", "000110"), "second": ("10", "01")}
SEEN = """[...document.querySelectorAll("#run-{run} .example")].filter((e) => e.checkVisibility())
  .map((e) => e.querySelector(".question").textContent)"""


@in_a_browser
def test_next_previous_direction_and_task_change_what_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([several(make_run(name), TWO) for name in ("a", "b")], tmp_path / "r.html")
    with opened(tmp_path / "r.html", width=390) as page:

        def seen(run: int = 1) -> list[str]:
            return list(page.value(SEEN.replace("{run}", str(run))))

        def counted() -> str:
            return str(page.value("document.querySelector('#run-1 .steps output').textContent"))

        (first,) = seen()
        assert first.startswith("quiz, question") and int(first.split()[2]) < 3 and counted() == "1 of 3"
        page.click("#run-1 [data-step='1']")
        (second,) = seen()
        page.click("#run-1 [data-step='1']")
        (third,) = seen()
        assert len({first, second, third}) == 3 and counted() == "3 of 3"
        page.click("#run-1 [data-step='1']")  # round to the first
        assert seen() == [first] and counted() == "1 of 3"
        page.click("#run-1 [data-step='-1']")
        assert seen() == [third]
        page.press("ArrowLeft")  # the focus is on the button
        assert seen() == [second]
        page.click("#run-1 input[value='gained']")
        (other,) = seen()
        assert int(other.split()[2]) in {3, 4} and counted() == "1 of 2"
        page.value(
            "(() => { const s = document.querySelector('#run-1 select'); s.value = 'second';"
            " s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        assert seen() == ["second, question 1 ?"] and counted() == "1 of 1"
        assert page.value("document.querySelector('#run-1 [data-step]').disabled") is True
        assert seen(2) == [first]  # the other run's browser stands as it was
        assert page.value("document.querySelector('#run-2 input[value=lost]').checked") is True
        assert page.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True
        assert page.errors == []


@in_a_browser
def test_without_a_script_lists_open_and_on_paper_three_of_each_stand(make_run: MakeRun, tmp_path: Path) -> None:
    write_report([one_task(make_run(), "1" * 9 + "0" * 5, "0" * 9 + "1" * 5)], tmp_path / "r.html")
    with opened(tmp_path / "r.html") as page:
        page.look(800, paper=True)
        assert len(page.value(SEEN.replace("{run}", "1"))) == 6
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.look(800)
        page.go(tmp_path / "r.html")
        assert page.value(SEEN.replace("{run}", "1")) == []
        assert page.value("document.querySelector('.controls').checkVisibility()") is False
        page.click(".changed summary")
        assert len(page.value(SEEN.replace("{run}", "1"))) == 9
        assert page.errors == []
