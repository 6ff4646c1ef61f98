"""What is installed: all data files travel, the recipes are importable, the house is in order."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import frbio_lite

ROOT = Path(frbio_lite.__file__).parent.parent
DATA = {".yaml", ".j2", ".css", ".js", ".py", ".typed", ".ipynb", ".jinja", ".po"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out)]
    built = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "frbio_lite").rglob("*") if p.suffix in DATA}
    recipes = {
        f"frbio_lite/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "recipes").rglob("*") if p.suffix in DATA
    }
    assert package and recipes
    assert not (package | recipes) - inside


def test_a_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import frbio_lite.recipes, frbio_lite\n"
        "from frbio_lite.recipe import load_recipe, shipped_recipes\n"
        "from frbio_lite.demo.world import facts\n"
        "from frbio_lite.evaluation import load_tasks\n"
        "print(frbio_lite.__file__, frbio_lite.recipes.__file__)\n"
        "print([load_recipe(n).name for n in shipped_recipes()], len(facts('medical')), len(load_tasks(['core-fr'])))"
    )
    # -S keeps the editable install of the tests' environment out, so that what is imported is the wheel
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    path = ":".join([str(tmp_path / "site"), *libraries])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, what = done.stdout.splitlines()
    assert all(Path(p).is_relative_to(tmp_path) for p in where.split())
    assert "qwen3-0.6b-qlora-t4" in what


def test_imports_point_down() -> None:
    done = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_loads_pickles_or_remote_code() -> None:
    for path in (ROOT / "frbio_lite").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for forbidden in (
            "trust_remote_code=True",
            "torch.load(",
            "import pickle",
            "UnsafeLoader",
            "allow_pickle=True",
        ):
            assert forbidden not in text, path
        assert text.count("yaml.load(") == text.count("Loader=yaml.BaseLoader"), path
