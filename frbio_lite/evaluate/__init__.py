"""Score a model on benchmarks and held-out text.

tasks = load_tasks(["core-fr", "heldout-domain"])
prepared = prepare(tasks, tokenizer, "test", recipe.eval, documents=Path("run/corpus"))
rows = evaluate_prepared(model, prepared, recipe.eval, Path("run/eval"), "my-model", seed=17)
"""

from frbio_lite.evaluate.items import benchmark_texts, load_items
from frbio_lite.evaluate.metrics import Row, gains
from frbio_lite.evaluate.run import Prepared, evaluate, evaluate_prepared, prepare
from frbio_lite.evaluate.tasks import Task, load_tasks, task_names

__all__ = [
    "Prepared",
    "Row",
    "Task",
    "benchmark_texts",
    "evaluate",
    "evaluate_prepared",
    "gains",
    "load_items",
    "load_tasks",
    "prepare",
    "task_names",
]
