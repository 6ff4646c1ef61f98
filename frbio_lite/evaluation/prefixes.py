"""What requests have in common, so that it is computed once: a plan of forward passes over a trie of tokens.

    for group in plan(requests):      # its `prefix` is run first, and its keys and values are kept
        for row in group.rows:        # what follows the prefix, each token of the trie once
            ...

Two ways to share. Requests that part late (the choices after a question) become one row, a flattened trie: a mask lets
each token see its own ancestors only. What many rows begin with (the examples before every question) becomes a cached
prefix, and prefixes may extend each other (examples, then a passage). Both need the same tokens from the very first, so
examples drawn anew for each question are shared by its choices alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from frbio_lite.model import Model, causal_lm

# Classes that take a mask of our own making; tests hold each. Others share only what plain causal attention shares.
ARCHITECTURES = {"gemma3_text", "llama", "mistral", "qwen3", "smollm3"}
BRANCH_TOKENS = 512  # the most tokens that part from each other in one row; each of them is masked from most others
# A forward pass of its own, of a prefix, costs about as much as 40 more tokens in a batch (measured on a CPU, 8 layers of
# 512). Rows hold BRANCH_TOKENS, so this share of what a group computes is 100 tokens and more.
WORTH = 0.2

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Request:
    """`tokens` of which the last `scored` are scored, each given all before it; at least one comes before them."""

    tokens: list[int]
    scored: int


@dataclass(frozen=True)
class Part:
    """Requests that share a row's piece: a flattened trie of U tokens behind the group's prefix."""

    tokens: Ints  # [U]
    positions: Ints  # [U], from the beginning of the text
    branches: tuple[tuple[int, Ints], ...]  # where each branch begins, and the earlier tokens [*] that it sees
    readers: Ints  # [S] of each scored token: the place of the one before it,
    targets: Ints  # [S] itself,
    owners: Ints  # [S] and the request that it belongs to


@dataclass(frozen=True)
class Row:
    """Parts side by side; none sees another."""

    parts: tuple[Part, ...]

    @property
    def width(self) -> int:
        return sum(len(part.tokens) for part in self.parts)


@dataclass(eq=False)
class Group:
    """Rows, longest first, behind one prefix. `parent` is the group whose prefix begins this one's.

    Groups that are not `masked` have no prefix and one path of tokens per row: plain causal attention is right for them.
    """

    prefix: Ints
    parent: Group | None
    masked: bool
    rows: list[Row] = field(default_factory=list)


@dataclass
class _Node:
    """A range of the sorted requests; a leaf becomes a part. `shared`: tokens that all begin with, none of them a reader."""

    low: int
    high: int
    shared: int
    parent: int | None
    leaf: bool
    leaves: int = 0
    tokens: int = 0  # of all its leaves, each from the beginning of the text


class _Sorted:
    """The inputs of requests (all tokens but the last, which is only predicted) in the order of a trie."""

    def __init__(self, requests: Sequence[Request]) -> None:
        # big-endian bytes of one width sort as the numbers do
        keys = [np.array(r.tokens[:-1], dtype=">u4").tobytes() for r in requests]
        self.order = sorted(range(len(keys)), key=lambda i: (keys[i], requests[i].scored))
        self.requests = [requests[i] for i in self.order]
        self.inputs = [np.frombuffer(keys[i], dtype=">u4") for i in self.order]
        self.lengths = [len(given) for given in self.inputs]
        # what each has in common with the one before it
        self.common = [0, *(common(a, b) for a, b in pairwise(self.inputs))]
        self.added = [0, *accumulate(n - c for n, c in zip(self.lengths, self.common, strict=True))]
        self.unread = [len(r.tokens) - r.scored - 1 for r in self.requests]

    def tokens(self, low: int, high: int) -> int:
        """Distinct tokens of the trie of a range, from the beginning of the text."""
        return self.lengths[low] + self.added[high] - self.added[low + 1]

    def trunk(self, low: int, high: int) -> int:
        """How many tokens a range begins with in common."""
        return min(self.common[low + 1 : high], default=self.lengths[low])

    def path(self, low: int, high: int) -> bool:
        """Whether each continues the one before it, so that the range has one branch."""
        return all(self.common[i] == self.lengths[i - 1] for i in range(low + 1, high))

    def children(self, low: int, high: int, trunk: int) -> Iterator[tuple[int, int]]:
        """The parts of a range that part from each other after its trunk."""
        bounds = [low, *(i for i in range(low + 1, high) if self.common[i] == trunk), high]
        return pairwise(bounds)


def common(a: npt.NDArray[np.unsignedinteger[Any]], b: npt.NDArray[np.unsignedinteger[Any]]) -> int:
    """How many tokens two texts begin with in common."""
    size = min(len(a), len(b))
    differing = np.flatnonzero(a[:size] != b[:size])
    return int(differing[0]) if len(differing) else size


def plan(requests: Sequence[Request], *, share: bool = True) -> list[Group]:
    """Groups of rows that cover every request once, a parent before its children, else the longest first.

    Without `share` only requests whose inputs continue each other (choices of one token after one prompt) share a row.
    """
    if not requests:
        return []
    given = _Sorted(requests)
    nodes = _nodes(given, share)
    bare, tree = Group(_EMPTY, None, False), Group(_EMPTY, None, True)
    groups, mine = [bare, tree], [tree] * len(nodes)
    pieces: dict[int, list[Part]] = {}
    for number, node in enumerate(nodes):
        group = tree if node.parent is None else mine[node.parent]
        before = len(group.prefix)
        if not node.leaf and _worth(node, before):
            prefix = given.inputs[node.low][: node.shared].astype(np.int64)
            group = Group(prefix, group if before else None, True)
            groups.append(group)
        mine[number] = group
        if node.leaf:
            alone = not before and given.path(node.low, node.high)
            pieces.setdefault(id(bare if alone else group), []).append(_part(given, node, before))
    for group in groups:
        group.rows = _rows(pieces.get(id(group), []), BRANCH_TOKENS if len(group.prefix) else 0)
    return _ordered([group for group in groups if group.rows or len(group.prefix)])


_EMPTY: Ints = np.empty(0, dtype=np.int64)


def _nodes(given: _Sorted, share: bool) -> list[_Node]:
    """The trie above the parts, a parent before its children."""
    nodes: list[_Node] = []
    stack: list[tuple[int, int, int | None]] = [(0, len(given.order), None)]
    while stack:
        low, high, parent = stack.pop()
        trunk, total = given.trunk(low, high), given.tokens(low, high)
        branched = total - trunk
        together = share and branched <= BRANCH_TOKENS and trunk >= WORTH * branched
        leaf = together or given.path(low, high)
        shared = min(trunk, *given.unread[low:high])
        nodes.append(_Node(low, high, shared, parent, leaf, int(leaf), total if leaf else 0))
        if not leaf:
            stack += [(a, b, len(nodes) - 1) for a, b in given.children(low, high, trunk)]
    for node in reversed(nodes):
        if node.parent is not None:
            nodes[node.parent].leaves += node.leaves
            nodes[node.parent].tokens += node.tokens
    if not share:  # without masks there is no prefix either
        for node in nodes:
            node.shared = 0
    return nodes


def _worth(node: _Node, before: int) -> bool:
    """Whether caching what the node's leaves share, beyond the `before` tokens that are cached, saves enough."""
    saved = (node.shared - before) * (node.leaves - 1)
    return saved > 0 and saved >= WORTH * (node.tokens - node.leaves * node.shared)


def _part(given: _Sorted, node: _Node, before: int) -> Part:
    tokens: list[Ints] = []
    positions: list[Ints] = []
    branches: list[tuple[int, Ints]] = []
    readers: list[Ints] = []
    targets: list[int] = []
    owners: list[int] = []
    size, path = 0, _EMPTY
    for i in range(node.low, node.high):
        kept = before if i == node.low else max(before, given.common[i])
        length = given.lengths[i]
        seen = path[: kept - before]
        if length > kept:
            branches.append((size, seen))
            tokens.append(given.inputs[i][kept:].astype(np.int64))
            positions.append(np.arange(kept, length))
        path = np.concatenate([seen, np.arange(size, size + length - kept)])
        size += length - kept
        request = given.requests[i]
        readers.append(path[len(path) - request.scored :])
        targets += request.tokens[len(request.tokens) - request.scored :]
        owners += [given.order[i]] * request.scored
    return Part(
        np.concatenate(tokens),
        np.concatenate(positions),
        tuple(branches),
        np.concatenate(readers),
        np.array(targets, dtype=np.int64),
        np.array(owners, dtype=np.int64),
    )


def _rows(parts: Sequence[Part], room: int) -> list[Row]:
    """Rows, longest first. Behind a prefix several parts fill one of `room` tokens: each row copies the prefix's keys."""
    rows: list[Row] = []
    filling: list[Part] = []
    used = 0
    for part in sorted(parts, key=lambda p: -len(p.tokens)):
        if filling and used + len(part.tokens) > room:
            rows.append(Row(tuple(filling)))
            filling, used = [], 0
        filling.append(part)
        used += len(part.tokens)
    if filling:
        rows.append(Row(tuple(filling)))
    return sorted(rows, key=lambda row: -row.width)


def _ordered(groups: list[Group]) -> list[Group]:
    """Groups without a parent by their longest row, each followed by those that extend its prefix."""
    children: dict[int, list[Group]] = {}
    for group in groups:
        children.setdefault(id(group.parent), []).append(group)
    stack = sorted(children.get(id(None), []), key=lambda g: len(g.prefix) + max((r.width for r in g.rows), default=0))
    found = []
    while stack:
        found.append(stack.pop())
        stack += children.get(id(found[-1]), [])
    return found


class Keys:
    """Keys and values of a prefix of one row, behind which rows of other tokens attend. Stands for a transformers cache.

    `keep` collects what the layers give, to serve as the next prefix; otherwise nothing outlives a layer.
    """

    def __init__(self, prefix: Keys | None = None, keep: bool = False) -> None:
        self.prefix, self.keep = prefix, keep
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values [B, heads, T, D] of new tokens → those of the prefix and theirs, [B, heads, P + T, D]."""
        if self.prefix is not None:
            before = (t.expand(keys.shape[0], -1, -1, -1) for t in self.prefix.layers[layer])
            keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (keys, values), strict=True))
        if self.keep:
            self.layers[layer] = keys, values
        return keys, values


def shares(model: Model) -> bool:
    """Whether the model computes under our masks and prefixes what it computes on whole sequences."""
    config = causal_lm(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    stretched = "dynamic" in str(rope) or "longrope" in str(rope)  # these turn keys by the length of the whole input
    return bool(config.model_type in ARCHITECTURES and config._attn_implementation == "sdpa" and not stretched)


def masks(model: Model, seen: Tensor, positions: Tensor, key_positions: Tensor) -> Tensor | dict[str, Tensor]:
    """`seen` bool [B, T, S] as the model's layers want it: cut to the sliding window where they have one.

    `positions` [B, T] of the queries and `key_positions` [B, S] (int64) count from the beginning of the text.
    """
    config = causal_lm(model).config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    whole: Tensor = seen[:, None]
    if window is None or "sliding_attention" not in kinds:
        return whole
    near: Tensor = (positions[:, :, None] - key_positions[:, None, :] < window)[:, None]
    if config.model_type == "mistral":  # all its layers slide, and it takes no mask by type
        return whole & near
    return {"full_attention": whole, "sliding_attention": whole & near}


def row_mask(rows: Sequence[Row], width: int, before: int) -> npt.NDArray[np.bool_]:
    """[B, width, before + width]: what each token of rows sees of the prefix and of its row.

    Padding sees the prefix and itself: a position that sees nothing would become NaN and spoil what it is multiplied with.
    """
    seen = np.zeros((len(rows), width, before + width), dtype=bool)
    seen[:, :, :before] = True
    seen[:, np.arange(width), before + np.arange(width)] = True
    for table, row in zip(seen, rows, strict=True):
        start = 0
        for part in row.parts:
            ends = [begin for begin, _ in part.branches[1:]] + [len(part.tokens)]
            for (begin, path), end in zip(part.branches, ends, strict=True):
                a, z = start + begin, start + end
                table[a:z, before + start + path] = True
                table[a:z, before + a : before + z] = np.tri(z - a, dtype=bool)
            start += len(part.tokens)
    return seen
