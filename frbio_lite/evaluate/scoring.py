"""Log-likelihoods: of choices after a prompt, and of documents in windows.

Both are the same request: a sequence of tokens of which the last `scored` count. Requests are batched by length, run
through the model once, and the head is applied to the scored positions alone, so that logits stay small whatever the
vocabulary.

Rows are padded on the right and no attention mask is given: with causal attention a position sees those before it,
padding comes after all real tokens, and what the model computes at padding is not read.
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
from frbio_lite.model import LOGITS_BYTES, Model, Tokenizer, causal_lm, hidden_states, leading_tokens, token_losses

BATCH_TOKENS = 8192  # input tokens of one forward pass, padding included
WINDOW = 1024  # longest window for documents; shorter where the model has fewer positions


@dataclass(frozen=True)
class Request:
    """`tokens` of which the last `scored` are scored, each given all before it; at least one comes before them."""

    tokens: list[int]
    scored: int


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


@torch.inference_mode()
def log_likelihoods(model: Model, requests: Sequence[Request]) -> npt.NDArray[np.float64]:
    """Summed log-probabilities in nats, [N]: fp32 log-softmax, float64 sums. The model is in eval mode."""
    sums = np.empty(len(requests))
    for batch in _batches(requests):
        sums[batch] = _score([requests[i] for i in batch], model)
    return sums


def _batches(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Positions of the requests, longest first, as many at a time as the token budget holds."""
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].tokens))
    start = 0
    while start < len(order):
        rows = max(1, BATCH_TOKENS // (len(requests[order[start]].tokens) - 1))
        yield order[start : start + rows]
        start += rows


def _score(batch: Sequence[Request], model: Model) -> npt.NDArray[np.float64]:
    width = len(batch[0].tokens) - 1  # the longest comes first; the last token is only predicted
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    for row, request in enumerate(batch):
        inputs[row, : len(request.tokens) - 1] = request.tokens[:-1]
    counts = np.array([request.scored for request in batch])
    ends = np.arange(len(batch)) * width + np.array([len(request.tokens) - 1 for request in batch])
    picked = np.concatenate([np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    targets = np.concatenate([request.tokens[-request.scored :] for request in batch])
    device = next(model.parameters()).device
    hidden = hidden_states(model, torch.from_numpy(inputs).to(device)).flatten(0, 1)  # [B*T, H]
    nats = _losses(model, hidden[torch.from_numpy(picked).to(device)], torch.from_numpy(targets).to(device))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return -np.add.reduceat(nats.double().cpu().numpy(), starts)


def _losses(model: Model, hidden: Tensor, targets: Tensor) -> Tensor:
    """Negative log-probabilities, fp32 [R], of targets [R] after hidden states [R, H], a chunk of logits at a time."""
    vocabulary = causal_lm(model).config.get_text_config().vocab_size
    rows = max(1, LOGITS_BYTES // (4 * vocabulary))
    parts = [
        token_losses(model, h, t) for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(parts)
