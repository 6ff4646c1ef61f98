"""Greedy generation in batches: the answers to prompts, until a stop string or the end of the text.

    answers = generate(model, tokenizer, prompts, stop=["\\n"], max_new_tokens=64)

What all prompts begin with is run once. Rows are padded on the right; new tokens follow the padding, which no one sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from frbio_lite.errors import RequestError
from frbio_lite.evaluation.prefixes import Keys, common, masks, shares
from frbio_lite.evaluation.scoring import batch_tokens, max_positions, prefix_keys, too_small
from frbio_lite.model import Model, Tokenizer, causal_lm, hidden_states, logits
from frbio_lite.progress import say

SHORTEST_PREFIX = 40  # tokens; a forward pass of its own costs about as much (see prefixes.WORTH)
SLACK = 4  # tokens decoded before those that a stop string may span, so that a cut character spoils none of it

Stopped = Callable[[list[int]], bool]


def generate(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[list[int]], stop: Sequence[str], max_new_tokens: int
) -> list[str]:
    """The text after each prompt (token ids), cut before the first of the `stop` strings; special tokens are left out.

    Each token is the likeliest (the lowest id of equals). A prompt that leaves no room for `max_new_tokens` loses its
    beginning. The model is in eval mode. Raises RequestError for an empty prompt, for more new tokens than the model
    has positions, and when a GPU does not hold one sequence.
    """
    positions = max_positions(model)
    room = None if positions is None else positions - max_new_tokens
    if max_new_tokens < 1 or (room is not None and room < 1):
        raise RequestError(
            f"max_new_tokens {max_new_tokens}: use 1 or more, and fewer than the model's {positions} positions"
        )
    if not all(prompts):
        raise RequestError("a prompt has no tokens: begin it with the tokenizer's begin-of-text or end-of-text token")
    fitted = [prompt if room is None else prompt[-room:] for prompt in prompts]
    stops = [text for text in stop if text]
    found = generate_tokens(model, fitted, ends(model, tokenizer), _stopped(tokenizer, stops), max_new_tokens)
    return [_cut(_text(tokenizer, tokens), stops) for tokens in found]


def ends(model: Model, tokenizer: Tokenizer) -> set[int]:
    """The tokens that end a text: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(causal_lm(model), "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    listed = named if isinstance(named, list | tuple) else [named]
    return {int(token) for token in [tokenizer.eos_token_id, *listed] if token is not None}


def generate_tokens(
    model: Model, prompts: Sequence[list[int]], ends: set[int], stopped: Stopped, max_new_tokens: int
) -> list[list[int]]:
    """New tokens after each prompt: up to one of `ends`, which is left out, or until `stopped` holds of them."""
    if not shares(model):
        return [_alone(model, prompt, ends, stopped, max_new_tokens) for prompt in prompts]
    before, keys = _shared(model, prompts)
    config = causal_lm(model).config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = next(model.parameters()).element_size() if not _quantized(model) else 2
    held = 2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype
    rows = batch_tokens(model, 2 * held)  # while a step runs, what the one before it held is there too
    found: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    while order:
        length = len(prompts[order[0]]) + max_new_tokens
        batch = order[: max(1, rows // length)]
        made = _fitting(model, [prompts[i][before:] for i in batch], before, keys, ends, stopped, max_new_tokens)
        if made is None:
            if len(batch) == 1:
                raise too_small(length)
            torch.cuda.empty_cache()
            rows = len(batch) // 2 * length
            say(f"evaluate: out of memory, going on with {len(batch) // 2} answers at a time")
            continue
        found.update(zip(batch, made, strict=True))
        order = order[len(batch) :]
    return [found[i] for i in range(len(prompts))]


def _quantized(model: Model) -> bool:
    return getattr(causal_lm(model), "quantization_method", None) is not None


def _shared(model: Model, prompts: Sequence[list[int]]) -> tuple[int, Keys | None]:
    """How many tokens all prompts begin with, each keeping one of its own at least, and their keys; 0 for a few."""
    if len(prompts) < 2:
        return 0, None
    first = np.array(min(prompts), dtype=np.uint32)  # in sorted order the first and the last have the least in common
    last = np.array(max(prompts), dtype=np.uint32)
    before = min(common(first, last), *(len(prompt) - 1 for prompt in prompts))
    if before < SHORTEST_PREFIX:
        return 0, None
    return before, prefix_keys(model, first[:before].astype(np.int64), 0, None)


def _fitting(model: Model, *rest: Any) -> list[list[int]] | None:
    """`_batch`, or None when the GPU's memory did not hold it; by then what it held is free."""
    try:
        return _batch(model, *rest)
    except torch.OutOfMemoryError:
        return None


@torch.inference_mode()
def _batch(
    model: Model,
    prompts: Sequence[list[int]],
    before: int,
    keys: Keys | None,
    ends: set[int],
    stopped: Stopped,
    max_new_tokens: int,
) -> list[list[int]]:
    """Rows together, the longest first; those that end leave the batch."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = len(prompts[0])
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)
    columns = torch.arange(width, device=device)
    places = before + columns.expand(len(prompts), -1)
    key_places = torch.cat([torch.arange(before, device=device).expand(len(prompts), -1), places], dim=1)
    real = key_places < before + lengths[:, None]  # [B, S]: what is no padding
    seen = (key_places[:, None, :] <= places[:, :, None]) & real[:, None, :]
    seen[:, columns, before + columns] = True  # padding too: what sees nothing becomes NaN and spoils its neighbours
    held = Keys(keys, keep=True)
    hidden = hidden_states(model, ids, places, masks(model, seen, places, key_places), held)
    hidden = hidden[torch.arange(len(prompts), device=device), lengths - 1]
    found: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    places = before + lengths[:, None]
    while True:
        held.prefix = None
        tokens = logits(model, hidden).argmax(-1)
        kept = []
        for row, (number, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
            if token in ends:
                continue
            found[number].append(token)
            if len(found[number]) < max_new_tokens and not stopped(found[number]):
                kept.append(row)
        if not kept:
            return found
        if len(kept) < len(alive):
            rows = torch.tensor(kept, device=device)
            alive = [alive[row] for row in kept]
            tokens, places, key_places, real = (t[rows] for t in (tokens, places, key_places, real))
            held.layers = {layer: (k[rows], v[rows]) for layer, (k, v) in held.layers.items()}
        key_places = torch.cat([key_places, places], dim=1)
        real = torch.nn.functional.pad(real, (0, 1), value=True)
        held = Keys(held, keep=True)
        hidden = hidden_states(model, tokens[:, None], places, masks(model, real[:, None], places, key_places), held)[
            :, 0
        ]
        places = places + 1


@torch.inference_mode()
def _alone(model: Model, prompt: list[int], ends: set[int], stopped: Stopped, max_new_tokens: int) -> list[int]:
    """One prompt of an architecture whose cache we do not know: the whole text again for each token."""
    found: list[int] = []
    device = next(model.parameters()).device
    while len(found) < max_new_tokens and not stopped(found):
        hidden = hidden_states(model, torch.tensor([[*prompt, *found]], device=device))[:, -1]
        token = int(logits(model, hidden).argmax(-1))
        if token in ends:
            break
        found.append(token)
    return found


def _text(tokenizer: Tokenizer, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _stopped(tokenizer: Tokenizer, stops: Sequence[str]) -> Stopped:
    """Whether a stop string has just come: looked for in the last tokens, a token being a byte or more."""
    span = max((len(stop.encode()) for stop in stops), default=0) + SLACK

    def stopped(tokens: list[int]) -> bool:
        if not tokens or not any(stop in _text(tokenizer, tokens[-span:]) for stop in stops):
            return False
        return any(stop in _text(tokenizer, tokens) for stop in stops)

    return stopped
