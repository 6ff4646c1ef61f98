"""The files around the code say what is: versions, tools, verbs, keys, links, and figures that stand in the results."""

from __future__ import annotations

import configparser
import csv
import hashlib
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

import frbio_lite
from frbio_lite.cli import main
from frbio_lite.evaluation.tasks import Kind, Metric, Splits, Task
from frbio_lite.recipe import Corpus

ROOT = Path(frbio_lite.__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
TASKS = ROOT / "frbio_lite" / "evaluation" / "tasks" / "README.md"
FOLDERS = [ROOT / name for name in ("benchmarks", "frbio_lite", "recipes")]
TEXTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in folder.rglob("*.md"))])
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
VERSION, LICENSE = SETUP["metadata"]["version"], SETUP["metadata"]["license"]
APACHE_2 = (
    "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # sha256 of apache.org/licenses/LICENSE-2.0.txt
)


def read(*parts: str) -> str:
    return ROOT.joinpath(*parts).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a `## heading`, up to the next one."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a Markdown text, without heads and rules."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = re.search(r"(?m)^lint:.*\n((?:\t.+\n)+)", read("Makefile"))
    assert recipe is not None
    linted = [line.strip().removeprefix("$(BIN)/") for line in recipe[1].splitlines()]
    hooks = [hook for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repo["hooks"]]
    assert [hook["entry"].removeprefix(".venv/bin/") for hook in hooks] == linted
    assert not any(hook["pass_filenames"] for hook in hooks)  # the tools look at the whole tree, as in CI
    tools = {line.split()[0].replace("lint-imports", "import-linter") for line in linted} | {"pre-commit"}
    assert tools <= set(SETUP["options.extras_require"]["dev"].split())


def test_the_version_is_one() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == VERSION and citation["license"] == LICENSE
    assert re.findall(r"(?m)^## \[(.+?)\]", read("CHANGELOG.md"))[0] == VERSION


def test_the_citation_has_what_its_schema_requires() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"authors", "message", "title"} <= citation.keys()
    for reference in citation["references"]:
        assert {"authors", "title", "type"} <= reference.keys()
    # no named person is said to have written this package
    assert all(author.keys() == {"name"} for author in citation["authors"])


def test_the_license_is_whole() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2 and LICENSE == "Apache-2.0"


def test_the_readme_has_the_verbs_and_their_parts() -> None:
    text = section(read("README.md"), "The verbs")
    assert set(re.findall(r"`frbio ([a-z]+)", text)) == main.commands.keys()
    for verb, parts in re.findall(r"`frbio (\w+) (\w+(?: / \w+)+)`", text):
        assert set(parts.split(" / ")) == getattr(main.commands[verb], "commands").keys()  # noqa: B009


def test_every_key_of_a_task_is_described_and_no_other() -> None:
    text = TASKS.read_text(encoding="utf-8")
    known = {*Task.model_fields, *Splits.model_fields}
    assert known <= set(re.findall(r"`(\w+)`", text))
    named = {key for cells in rows(text) if cells[0].startswith("`") for key in re.findall(r"`(\w+)`", cells[0])}
    assert named and named <= Task.model_fields.keys()
    for values in (Kind, Metric):
        assert set(get_args(values)) <= set(re.findall(r"`(\w+)`", text))


def test_the_example_of_a_corpus_is_one() -> None:
    found = re.search(r"```yaml\n(.+?)```", read("frbio_lite", "corpus", "README.md"), re.DOTALL)
    assert found is not None
    assert len(Corpus.model_validate(yaml.safe_load(found[1])["corpus"]).sources) == 3


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(text: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (text.parent / target.partition("#")[0]).exists(), target


def test_every_benchmark_is_in_the_index() -> None:
    folders = {path.parent.name for path in BENCHMARKS.glob("*/README.md")}
    assert folders == {
        cells[0][1:].partition("]")[0] for cells in rows(read("benchmarks", "README.md"))[1:][: len(folders)]
    }


def numbers(path: Path) -> Iterator[float]:
    """All that a results file says: its cells, shares as percent, and the medians of the rows that share the first column."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in table(path):
        first = next(iter(row.values()))
        for column, cell in row.items():
            try:
                value = float(cell)
            except ValueError:
                continue
            groups[first, column].append(value)
    for values in groups.values():
        yield from (*values, *(100 * value for value in values), statistics.median(values))


def figures() -> list[tuple[str, str, Path]]:
    """(what, figure, file) of each number in the columns of ours and of what stands beside it."""
    found = []
    for what, ours, beside, link in rows(section(read("benchmarks", "README.md"), "The main figures"))[1:]:
        file = BENCHMARKS / re.findall(r"\((.+?)\)", link)[0]
        text = re.sub(r"arXiv [\d.]+", "", f"{ours} ; {beside}")
        found += [(what, number, file) for number in re.findall(r"(?<![\w.])[\d,]*\d(?:\.\d+)?(?:e-?\d+)?", text)]
    return found


@pytest.mark.parametrize(("what", "figure", "file"), figures())
def test_a_figure_stands_in_its_file(what: str, figure: str, file: Path) -> None:
    text = figure.replace(",", "")
    digits = len(text.partition("e")[0].partition(".")[2])
    if "e" in text:
        assert f"{float(text):g}" in {f"{value:g}" for value in numbers(file)}
    else:
        assert text in {f"{value:.{digits}f}" for value in numbers(file)}, f"{what}: {figure} is not in {file.name}"


def test_no_kernel_spills() -> None:
    assert {row["spilled_bytes"] for row in table(BENCHMARKS / "kernels" / "results" / "compiled.csv")} == {"0"}


def test_the_readme_tells_the_demo_as_measured() -> None:
    measured = {
        (
            row["task"],
            row["model"],
        ): f"{float(row['value']):.1%} ({float(row['low']) * 100:.1f}–{float(row['high']) * 100:.1f})"
        for row in table(BENCHMARKS / "end_to_end" / "results" / "demo_test.csv")
    }
    told = {
        cells[0]: [cell.replace(" %", "%") for cell in cells[1:]] for cells in rows(read("README.md").split("\n## ")[0])
    }
    models = ("base", "adapted", "merged")
    assert told["medical questions"] == [measured["demo-medical", model] for model in models]
    assert told["general questions"] == [measured["demo-general", model] for model in models]
