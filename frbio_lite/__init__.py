"""Adapt a small open LLM to French medicine on one consumer GPU, merge it back into its base, and prove what changed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frbio_lite.api import ablate, compare, evaluate, merge, run, train

__all__ = ["ablate", "compare", "evaluate", "merge", "run", "train"]


def __getattr__(name: str) -> Any:
    """The verbs, loaded when first asked for: the command line starts without them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from frbio_lite import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
