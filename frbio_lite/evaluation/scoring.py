"""Log-likelihoods: of choices after a prompt, and of documents in windows.

Both are the same request: a sequence of tokens of which the last `scored` count. `prefixes` finds what requests have in
common; each token is then run once per forward pass, and the head is applied to the positions that are read alone, a chunk
at a time, so that logits stay small whatever the vocabulary.

Rows are padded on the right. Padding is not read and seen by nothing: causal attention looks back only, and our own masks
leave it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frbio_lite.errors import RequestError
from frbio_lite.evaluation.prefixes import Group, Keys, Row, masks, plan, row_mask, shares
from frbio_lite.evaluation.prefixes import Request as Request  # part of this module's face
from frbio_lite.kernels.linear_cross_entropy import log_probabilities
from frbio_lite.model import LOGITS_BYTES as GPU_LOGITS_BYTES
from frbio_lite.model import Model, Tokenizer, causal_lm, hidden_states, leading_tokens, logits
from frbio_lite.progress import say

BATCH_TOKENS = 2048  # tokens of one forward pass on a CPU, prefix and padding included; more gain nothing and hold more
LARGEST_BATCH = 65_536  # the same on a GPU, where the free memory decides below it
RESERVE = (
    0.5  # of the GPU's free memory: the estimate of what a token takes is rough, and other masks and chunks come on top
)
LOGITS_BYTES = (
    32 * 2**20
)  # fp32 logits held at once on a CPU: twice as many gain 15 % where the head is most of the work
WINDOW = 1024  # longest window for documents; shorter where the model has fewer positions


def prefix_token(tokenizer: Tokenizer) -> int:
    """The token before a text that nothing precedes: begin-of-text where the tokenizer has one, else end-of-text."""
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if token is None:
        raise RequestError("the tokenizer has neither a begin-of-text nor an end-of-text token")
    return int(token)


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without special tokens."""
    if not texts:
        return []
    encoded: Any = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    )
    return list(encoded["input_ids"])


def choice_requests(
    tokenizer: Tokenizer, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
) -> list[list[Request]]:
    """For each prompt a request per continuation, split into tokens as lm-evaluation-harness does.

    Spaces that end the prompt move to the continuation; prompt and continuation are encoded together, and what follows
    the prompt's own number of tokens is scored. An empty prompt becomes the prefix token; the others follow what the
    tokenizer puts before every text, if anything.
    Raises RequestError when a continuation adds no token.
    """
    prefix, lead = prefix_token(tokenizer), leading_tokens(tokenizer)
    contexts = [prompt.rstrip() for prompt in prompts]
    wholes = [p + c for p, choices in zip(prompts, continuations, strict=True) for c in choices]
    context_tokens = encode(tokenizer, contexts)
    whole_tokens = iter(encode(tokenizer, wholes))
    made = []
    for prompt, before, choices in zip(prompts, context_tokens, continuations, strict=True):
        requests = []
        for choice in choices:
            whole = next(whole_tokens)
            scored = len(whole) - len(before)
            if scored < 1:
                raise RequestError(f"the choice {choice!r} adds no token to the prompt that ends in {prompt[-40:]!r}")
            requests.append(Request([*lead, *whole] if before else [prefix, *whole], scored))
        made.append(requests)
    return made


def truncated(request: Request, positions: int | None) -> Request:
    """The request with its beginning cut so that it fits the model's `positions` (None: no limit).

    The last token is only predicted, never read, so `positions` + 1 tokens fit.
    Raises RequestError when the scored part alone does not.
    """
    if positions is None or len(request.tokens) <= positions + 1:
        return request
    if request.scored > positions:
        raise RequestError(f"a choice of {request.scored} tokens does not fit the model's {positions} positions")
    return Request(request.tokens[-(positions + 1) :], request.scored)


def windows(tokens: Sequence[int], prefix: int, size: int) -> list[Request]:
    """Windows that score each token of a document once, up to `size` tokens each.

    Each begins with `prefix`; between it and its scored tokens the later ones hold the token before them.
    """
    made = []
    for start in range(0, len(tokens), size):
        part = tokens[max(start - 1, 0) : start + size]
        made.append(Request([prefix, *part], len(part) - (start > 0)))
    return made


def max_positions(model: Model) -> int | None:
    """How many tokens the model can read at once; None when its configuration sets no limit."""
    limit = getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def log_likelihoods(model: Model, requests: Sequence[Request]) -> npt.NDArray[np.float64]:
    """Summed log-probabilities in nats, [N]: fp32 log-softmax, float64 sums. The model is in eval mode.

    Raises RequestError when a GPU does not hold even one sequence beside the model.
    """
    sums = np.full(len(requests), np.nan)
    for done, found in iter_log_likelihoods(model, requests):
        sums[done] = found
    return sums


def iter_log_likelihoods(
    model: Model, requests: Sequence[Request]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """The same as they are found: positions [K] of requests (int64) and their sums [K]. Each request comes once.

    All that is to be scored should come in one call: what requests share is found within it.
    """
    budget = _Budget(batch_tokens(model))
    chain: list[tuple[Group | None, Keys | None]] = [(None, None)]  # prefixes whose extensions are not yet done
    for group in plan(requests, share=shares(model)):
        while chain[-1][0] is not group.parent:
            chain.pop()
        keys = chain[-1][1]
        if len(group.prefix):
            before = len(group.parent.prefix) if group.parent is not None else 0
            keys = prefix_keys(model, group.prefix, before, keys)
            chain.append((group, keys))
        yield from _score_group(model, group, keys, budget)


@dataclass
class _Budget:
    """Tokens of a forward pass; halved when they did not fit."""

    tokens: int


def batch_tokens(model: Model, kept: int = 0) -> int:
    """BATCH_TOKENS on a CPU; on a GPU what its free memory holds, `kept` bytes of each token outliving its layer.

    In a layer a token takes about 12 vectors of the hidden size (the stream, its norms in fp32), 8 of the attention's width
    (queries, keys and values, turned and repeated for their heads) and 4 of the MLP's.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return BATCH_TOKENS
    config = causal_lm(model).config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    token = 4 * (12 * config.hidden_size + 8 * width + 4 * config.intermediate_size) + kept
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + held
    return max(1, min(LARGEST_BATCH, int(((1.0 - RESERVE) * free - 3 * GPU_LOGITS_BYTES) / token)))


@torch.inference_mode()
def prefix_keys(model: Model, prefix: npt.NDArray[np.int64], before: int, parent: Keys | None) -> Keys:
    """Keys and values of a prefix whose first `before` tokens are those of `parent`."""
    keys = Keys(parent, keep=True)
    device = next(model.parameters()).device
    width = len(prefix) - before
    positions = torch.arange(len(prefix), device=device)[None]
    seen = torch.ones(width, len(prefix), dtype=torch.bool, device=device).tril(before)[None]
    inputs = torch.from_numpy(prefix[None, before:]).to(device)
    try:
        mask = masks(model, seen, positions[:, before:], positions)
        hidden_states(model, inputs, positions[:, before:], mask, keys)
    except torch.OutOfMemoryError as error:
        raise too_small(len(prefix)) from error
    keys.prefix = None  # what it held is in `keys` now
    return keys


def _score_group(
    model: Model, group: Group, keys: Keys | None, budget: _Budget
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """Batches of a group's rows, as many at a time as the budget holds; fewer once they did not fit on the GPU."""
    rows, before = list(group.rows), len(group.prefix)
    while rows:
        tokens = before + rows[0].width  # of the longest; the prefix's keys stand in each row
        batch = rows[: max(1, budget.tokens // tokens)]
        try:
            found = _score(model, batch, before, keys, group.masked)
        except torch.OutOfMemoryError as error:
            if len(batch) == len(batch[0].parts) == 1:
                raise too_small(tokens) from error
            found = None
        if found is not None:
            rows = rows[len(batch) :]
            yield found
            continue
        torch.cuda.empty_cache()  # here, where the failed pass holds nothing any more
        if len(batch) == 1:
            rows = sorted((Row((part,)) for row in rows for part in row.parts), key=lambda row: -row.width)
        else:
            budget.tokens = len(batch) // 2 * tokens
            say(f"evaluate: out of memory, going on with {len(batch) // 2} sequences of {tokens} tokens at a time")


def too_small(tokens: int) -> RequestError:
    return RequestError(
        f"the GPU's memory does not hold one sequence of {tokens} tokens beside the model: "
        "use fewer --shots, a smaller model or a larger GPU; what was scored is kept"
    )


@torch.inference_mode()
def _score(
    model: Model, batch: Sequence[Row], before: int, keys: Keys | None, masked: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Run rows, the longest first, and sum what they score by request."""
    device = next(model.parameters()).device
    width = batch[0].width
    inputs, positions = (np.zeros((len(batch), width), dtype=np.int64) for _ in range(2))
    readers, targets, owners = [], [], []
    for number, row in enumerate(batch):
        start = 0
        for part in row.parts:
            stop = start + len(part.tokens)
            inputs[number, start:stop], positions[number, start:stop] = part.tokens, part.positions
            readers.append(number * width + start + part.readers)
            targets.append(part.targets)
            owners.append(part.owners)
            start = stop
    ids = torch.from_numpy(inputs).to(device)
    if masked:
        places = torch.from_numpy(positions).to(device)
        key_places = torch.cat([torch.arange(before, device=device).expand(len(batch), -1), places], dim=1)
        seen = torch.from_numpy(row_mask(batch, width, before)).to(device)
        hidden = hidden_states(model, ids, places, masks(model, seen, places, key_places), keys and Keys(keys))
    else:
        hidden = hidden_states(model, ids)
    nats = _log_probabilities(model, hidden.flatten(0, 1), np.concatenate(readers), np.concatenate(targets))
    done, of = np.unique(np.concatenate(owners), return_inverse=True)
    return done, np.bincount(of, weights=nats).astype(np.float64)


def _log_probabilities(
    model: Model, hidden: Tensor, readers: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Log-probabilities [S], computed in fp32, of targets [S] after rows [S] of hidden states [R, H].

    A row that several read goes through the head once; a chunk of logits exists at a time.
    """
    places, of = np.unique(readers, return_inverse=True)
    held = LOGITS_BYTES if hidden.device.type == "cpu" else GPU_LOGITS_BYTES
    chunk = max(1, held // (4 * causal_lm(model).config.get_text_config().vocab_size))
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    order = np.argsort(of, kind="stable")
    for start in range(0, len(places), chunk):
        rows = torch.from_numpy(places[start : start + chunk]).to(hidden.device)
        low, high = np.searchsorted(of[order], [start, start + chunk])
        mine = order[low:high]
        which, wanted = (torch.from_numpy(x[mine]).to(hidden.device) for x in (of - start, targets))
        found[torch.from_numpy(mine).to(hidden.device)] = log_probabilities(logits(model, hidden[rows]), which, wanted)
    return found.double().cpu().numpy()
