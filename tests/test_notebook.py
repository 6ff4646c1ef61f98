"""The Colab notebook: commands a person could type, which the command line takes, and which go on where they stopped."""

from __future__ import annotations

import ast
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from command_lines import command_lines, values_of

from frbio_lite.memory import Job, find_card, smallest_plan
from frbio_lite.recipe import load_recipe, shipped_recipes

NOTEBOOK = Path(__file__).parent.parent / "recipes" / "frbio_colab.ipynb"
SMALL = [
    "corpus.sources.0.path=demo:medical:3", "corpus.sources.1.path=demo:general:3", "packing.sequence_length=64",
    "train.tokens=2560", "train.tokens_per_step=256", "eval.limit=12", "eval.bootstrap=100", "merge.ratios=[0.5]",
]  # fmt: skip


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def choices(notebook: Any, name: str) -> list[str]:
    """What a form field offers."""
    found = re.search(rf"^{name} = .*# @param (\[.*\])$", code(notebook)[0], re.MULTILINE)
    assert found is not None
    offered: list[str] = ast.literal_eval(found[1])
    return offered


def fill(notebook: Any, **fields: str) -> None:
    """Fill in the form, as a person does before running all."""
    form = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in fields.items():
        form.source, count = re.subn(
            rf'^{name} = "[^"]*"', lambda _, n=name, v=value: f"{n} = {v!r}", form.source, flags=re.MULTILINE
        )
        assert count == 1, name


def run_all(notebook: Any, directory: Path) -> tuple[str, float]:
    """All that the cells printed, and the seconds it took. Raises CellExecutionError where a cell fails."""
    began = time.monotonic()
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(directory)}}).execute()
    shown = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(shown), time.monotonic() - began


def test_it_is_a_valid_notebook_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 7
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    ahead = [notebook.cells[i - 1].cell_type for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    assert set(ahead) == {"markdown"}  # each is explained


def test_its_cells_are_commands(notebook: Any) -> None:
    """Python only fills in the form, mounts the folder and shows the page; nothing of the package is imported."""
    plain = [
        "\n".join(line for line in source.splitlines() if not line.startswith("!"))
        for source in code(notebook)
        if not source.startswith("%%bash")
    ]
    trees = [ast.parse(source) for source in plain]
    assert sum(isinstance(node, ast.stmt) for tree in trees for node in ast.walk(tree)) <= 16
    imported = [getattr(node, "module", None) for tree in trees for node in ast.walk(tree)]
    assert {name for name in imported if name} == {"google.colab", "html", "pathlib", "IPython.display"}
    assert not any(
        isinstance(node, ast.Import | ast.FunctionDef | ast.For) for tree in trees for node in ast.walk(tree)
    )


def test_every_command_is_one_that_the_command_line_takes(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"$RECIPE": "demo", "$OPTIONS": "--set train.tokens=5_000_000", "$OUT": "runs/demo", "$LANGUAGE": "fr"}
    lines = command_lines("\n".join(code(notebook)))
    for name, value in given.items():
        lines = [line.replace(name, value) for line in lines]
    assert not any("$" in line for line in lines)
    assert [line.split()[1] for line in lines] == ["doctor", "plan", "run", "report", "export"]
    values = [values_of(line, monkeypatch) for line in lines]
    assert values[1]["overrides"] == values[2]["overrides"] == ("train.tokens=5_000_000",)
    assert values[2]["out"] == values[3]["runs"][0] and values[3]["lang"] == "fr"
    for language in choices(notebook, "LANGUAGE"):
        values_of(lines[3].replace("fr", language), monkeypatch)


def test_what_the_form_offers_ships_and_fits_a_t4(notebook: Any) -> None:
    offered = choices(notebook, "RECIPE")
    assert set(offered) <= set(shipped_recipes()) and len(offered) >= 3
    assert re.search(r'^RECIPE = "([^"]+)"', code(notebook)[0])[1] in offered  # type: ignore[index]
    for name in offered:
        assert smallest_plan(Job.of(load_recipe(name)), find_card("T4")).fits, name


def test_without_the_package_it_says_what_to_fill_in(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    notebook.cells = [c for c in notebook.cells if c.cell_type == "code"][:2]
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        run_all(notebook, tmp_path)
    assert any("Fill in SOURCE" in output.get("text", "") for output in notebook.cells[1].outputs)


@pytest.mark.slow
def test_running_all_twice_continues(
    notebook: Any, make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = " ".join(f"--set {value}" for value in [f"base.model={make_base()}", *SMALL])
    fill(notebook, RECIPE="demo", OPTIONS=options, FOLDER="my folder", LANGUAGE="fr")
    first, took = run_all(notebook, tmp_path)
    out = tmp_path / "my folder" / "demo"
    assert "demo: report: done" in first and "frbio: " not in first, first
    assert 'lang="fr"' in (out / "report.html").read_text(encoding="utf-8")
    report = next(cell for cell in notebook.cells if "IPython.display" in cell.source)
    assert (
        "srcdoc=" in report.outputs[-1]["data"]["text/html"] and "&lt;html" in report.outputs[-1]["data"]["text/html"]
    )
    made = {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")}
    assert len(made) >= 9
    again, less = run_all(notebook, tmp_path)
    assert "done in" not in again and "frbio: " not in again, again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("manifest.json")} == made
    assert less < took
