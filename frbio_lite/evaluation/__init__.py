"""Score a model on benchmarks and held-out text, and compare what was scored.

tasks = load_tasks(["core-fr", "heldout-domain"])
prepared = prepare(tasks, tokenizer, "test", recipe.eval, documents=Path("run/corpus"))
rows = evaluate_prepared(model, prepared, recipe.eval, Path("run/eval"), "my-model", seed=17)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frbio_lite.evaluation.items import benchmark_texts, load_items, own_digests
    from frbio_lite.evaluation.metrics import Row, gains
    from frbio_lite.evaluation.prepared import Prepared
    from frbio_lite.evaluation.rows import at_hand
    from frbio_lite.evaluation.run import evaluate, evaluate_prepared, prepare
    from frbio_lite.evaluation.tasks import Task, load_tasks, task_names

# Loaded when first asked for: listing and comparing need no torch, which takes seconds.
_MODULES = {
    "items": ("benchmark_texts", "load_items", "own_digests"),
    "metrics": ("Row", "gains"),
    "prepared": ("Prepared",),
    "rows": ("at_hand",),
    "run": ("evaluate", "evaluate_prepared", "prepare"),
    "tasks": ("Task", "load_tasks", "task_names"),
}

__all__ = [
    "Prepared",
    "Row",
    "Task",
    "at_hand",
    "benchmark_texts",
    "evaluate",
    "evaluate_prepared",
    "gains",
    "load_items",
    "load_tasks",
    "own_digests",
    "prepare",
    "task_names",
]


def __getattr__(name: str) -> Any:
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{module}"), name)
