"""The few-shot examples that lm-evaluation-harness 0.4.13 shows before each item.

Its default sampler is one `random.Random(seed)` per task that the items draw from in their published order, so what an item
is shown depends on how many items came before it, and on nothing else. Where the examples come from the split that is
scored, one more is drawn, and those equal to the item are left out. The examples stand in the order they were drawn in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from frbio_lite.errors import RequestError

SEED = 1234  # its default `fewshot_random_seed`


def parity_shots(
    count: int, examples: Sequence[object], items: int | Sequence[object], seed: int = SEED
) -> list[list[int]]:
    """Positions in `examples` of the `count` that precede each item, a list per item in published order.

    `examples` are all rows of the split they come from. `items`: how many are scored; or, where they are of that very split,
    their rows, compared by `==`. Raises RequestError when there are too few examples to draw from.
    """
    rng = random.Random(seed)
    own = None if isinstance(items, int) else items
    number = items if isinstance(items, int) else len(items)
    drawn = count if own is None else count + 1
    if count and len(examples) < drawn:
        raise RequestError(f"{len(examples)} examples where {drawn} are to be drawn for each item: use fewer --shots")
    places = range(len(examples))
    if count == 0:
        return [[] for _ in range(number)]
    if own is None:
        return [rng.sample(places, count) for _ in range(number)]
    return [_without(row, rng, count, examples) for row in own]


def _without(row: object, rng: random.Random, count: int, examples: Sequence[object]) -> list[int]:
    """As many of one more as are no copies of the row; where several copies were drawn, all of them anew."""
    kept = [place for place in rng.sample(range(len(examples)), count + 1) if examples[place] != row][:count]
    if len(kept) == count:
        return kept
    others = [place for place, example in enumerate(examples) if example != row]
    if len(others) < count:
        raise RequestError(
            f"{len(others)} examples that differ from the item where {count} are needed: use fewer --shots"
        )
    return rng.sample(others, count)
