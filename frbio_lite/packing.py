"""Documents → fixed-length windows of tokens with document boundaries, and their batches for training.

    figures = pack(corpus_directory, tokenizer, recipe.packing, recipe.corpus.sources, recipe.seed, directory)
    packed = PackedTokens(directory)
    batch = packed.batch(window_order(packed.windows, epoch=0, seed=17)[:8])

No token is lost. Each document ends with EOS, and begins with BOS where the model's tokenizer puts one.
Long documents fill whole windows; the rests are placed best-fit
decreasing, and the windows that this fills least are taken apart, their pieces split over the gaps of the others: less
than one window is empty.
"""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from frbio_lite.errors import RequestError
from frbio_lite.model import leading_tokens
from frbio_lite.progress import Progress
from frbio_lite.recipe import Packing, Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, LENGTHS, OFFSETS, STREAM = "tokens.npy", "piece_lengths.npy", "piece_offsets.npy", "stream.tmp"
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 2_000_000
MOST_PASSES = 4  # times that a source is repeated at most to reach its weight
IGNORED = -100  # torch's ignore_index: a position without a target
Piece = tuple[int, int]  # (first token in the stream, length)


def pack(
    corpus_directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: Packing,
    sources: list[Source],
    seed: int,
    directory: Path,
) -> dict[str, Any]:
    """Tokenise, mix and pack the training documents of a Documents artifact into `directory`.

    Writes `tokens.npy` [windows, sequence_length], uint16 for vocabularies below 65,536 tokens and uint32 above;
    `piece_lengths.npy` [pieces] int32, in the order of the windows; `piece_offsets.npy` [windows + 1] int64: the pieces
    of window w are `piece_lengths[piece_offsets[w]:piece_offsets[w + 1]]`, and what they leave of the window is padding
    (EOS). Raises RequestError when there is nothing to train on, the weights exceed 1, or the tokenizer has no EOS.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise RequestError(
            "the tokenizer of `base.model` has no end-of-text token (eos_token): documents cannot be told apart"
        )
    check_weights(sources)
    dtype = np.dtype(np.uint16 if len(tokenizer) < 1 << 16 else np.uint32)
    stream_path = directory / STREAM
    try:
        documents = _tokenise(corpus_directory, tokenizer, eos, sources, stream_path, dtype)
        stream = np.memmap(stream_path, dtype=dtype, mode="r")
        chosen, mixing = mix(documents, sources, seed)
        plan, split = plan_windows(documents.starts[chosen], documents.lengths[chosen], settings.sequence_length)
        order = np.random.default_rng([seed, 1]).permutation(len(plan))
        _write(directory, stream, [plan[i] for i in order], settings.sequence_length, eos)
    finally:
        stream_path.unlink(missing_ok=True)
    tokens = int(documents.lengths[chosen].sum())
    return {
        "windows": len(plan),
        "sequence_length": settings.sequence_length,
        "tokens": tokens,
        "documents": len(np.unique(chosen)),
        "fill": tokens / (len(plan) * settings.sequence_length),
        "pieces": sum(map(len, plan)),
        "pieces_split": split,
        "sources": mixing,
    }


@dataclass(frozen=True)
class TokenisedDocuments:
    """Where each document lies in the token stream, EOS included: three arrays of one length, int64."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    sources: NDArray[np.int64]  # the place of its source in the recipe


def check_weights(sources: Sequence[Source]) -> None:
    """Raise RequestError when the weights leave no share for what is trained on."""
    weighted = [s for s in sources if s.weight]
    total = sum(s.weight or 0.0 for s in weighted)
    shown = " + ".join(f"{s.weight:g} ({s.name})" for s in weighted)
    if total > 1 + 1e-9:
        raise RequestError(f"corpus.sources: the weights add up to {total:g}, more than all training tokens: {shown}")
    whole = [s.name for s in sources if s.weight is None]
    if whole and total > 1 - 1e-9:
        raise RequestError(
            f"corpus.sources: {shown} are all training tokens, which leaves none for {', '.join(whole)}: give it a "
            "weight, or weight 0.0 to measure it only"
        )


def _tokenise(
    corpus_directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    eos: int,
    sources: Sequence[Source],
    path: Path,
    dtype: np.dtype[Any],
) -> TokenisedDocuments:
    """Write the tokens of all training documents to `path`, one after the other, EOS behind each."""
    lengths, places, found = array("q"), array("q"), 0
    lead = leading_tokens(tokenizer)
    with path.open("wb") as file, Progress("packing", None, "tokens") as bar:
        for texts, indices in _training_texts(corpus_directory, sources):
            # text that spells a special token, such as <|endoftext|>, is text
            encoded = tokenizer(
                texts, add_special_tokens=False, return_attention_mask=False, verbose=False, split_special_tokens=True
            )["input_ids"]
            for ids, index in zip(encoded, indices, strict=True):
                np.array([*lead, *ids, eos], dtype=dtype).tofile(file)
                lengths.append(len(lead) + len(ids) + 1)
                places.append(index)
                found += len(ids)
                bar.advance(len(ids) + 1)
    if not found:
        raise RequestError(
            f"{corpus_directory} holds no training text: none of its documents is of the split 'train' and a source of "
            "weight above 0"
        )
    sizes = np.array(lengths, dtype=np.int64)
    return TokenisedDocuments(np.cumsum(sizes) - sizes, sizes, np.array(places, dtype=np.int64))


def _training_texts(corpus_directory: Path, sources: Sequence[Source]) -> Iterator[tuple[list[str], list[int]]]:
    """Batches of (texts, places of their sources in the recipe), in the order of the parts."""
    import pyarrow.parquet as pq

    parts = sorted((corpus_directory / "documents").glob("*.parquet"))
    if not parts:
        raise RequestError(
            f"{corpus_directory} is no Documents artifact: it has no documents/*.parquet; run the corpus stage first"
        )
    texts: list[str] = []
    indices: list[int] = []
    characters = 0
    for part in parts:
        with pq.ParquetFile(part) as file:
            for rows in file.iter_batches(batch_size=BATCH_DOCUMENTS, columns=["text", "split", "recipe_source"]):
                for text, split, index in zip(*(column.to_pylist() for column in rows.columns), strict=True):
                    if split != "train" or sources[index].weight == 0.0:
                        continue
                    texts.append(text)
                    indices.append(index)
                    characters += len(text)
                    if len(texts) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
                        yield texts, indices
                        texts, indices, characters = [], [], 0
    if texts:
        yield texts, indices


def mix(
    documents: TokenisedDocuments, sources: Sequence[Source], seed: int
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """(documents to train on, with repeats, [n] int64; by source: documents, tokens, passes, share wanted and got).

    A source without weight gives all its documents once. The total N is such that no weighted domain source gives fewer
    than all its tokens and the sources without weight have their remainder: the largest of tokens / weight over the
    former and (tokens without weight) / (1 - weights); without either, the first rule over all weighted sources.
    Then each weighted source gives weight × N tokens: a part of its documents, or all of them up to MOST_PASSES times.
    """
    members = [np.flatnonzero(documents.sources == i) for i in range(len(sources))]
    tokens = [int(documents.lengths[m].sum()) for m in members]
    total = _total(tokens, sources)
    chosen = []
    for i, source in enumerate(sources):
        goal = source.weight * total if source.weight else float(tokens[i])
        chosen.append(_take(members[i], documents.lengths, goal, np.random.default_rng([seed, 0, i])))
    got = [int(documents.lengths[c].sum()) for c in chosen]
    figures = {
        source.name: {
            "role": source.role,
            "documents": len(np.unique(c)),
            "tokens": n,
            "passes": n / available if available else 0.0,
            "share_wanted": source.weight,
            "share": n / sum(got),
        }
        for source, c, n, available in zip(sources, chosen, got, tokens, strict=True)
    }
    return np.concatenate(chosen), figures


def _total(tokens: Sequence[int], sources: Sequence[Source]) -> float:
    weighted = [(s, n) for s, n in zip(sources, tokens, strict=True) if s.weight and n]
    rest = 1.0 - sum(s.weight or 0.0 for s, _ in weighted)
    whole = sum(n for s, n in zip(sources, tokens, strict=True) if s.weight is None)
    anchors = [n / s.weight for s, n in weighted if s.weight and s.role == "domain"]
    if whole:
        anchors.append(whole / rest)
    return max(anchors or [n / s.weight for s, n in weighted if s.weight], default=0.0)


def _take(
    members: NDArray[np.int64], lengths: NDArray[np.int64], goal: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Documents worth about `goal` tokens: whole passes, then documents in random order while they come nearer."""
    size = int(lengths[members].sum())
    if not size:
        return members
    whole = min(int((goal + 0.5) // size), MOST_PASSES)
    taken = [members] * whole
    if whole < MOST_PASSES:
        order = rng.permutation(members)
        middle = np.cumsum(lengths[order]) - lengths[order] / 2
        last = order[: max(int(np.searchsorted(middle, goal - whole * size)), 0 if whole else 1)]
        taken.append(np.sort(last))
    return np.concatenate(taken)


def plan_windows(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], sequence_length: int
) -> tuple[list[list[Piece]], int]:
    """(the pieces of each window, how often a piece that fits a window was split).

    Best-fit decreasing on what whole windows leave of each document; then the least filled windows above ceil(tokens /
    length) are poured into the gaps of the others.
    """
    windows: list[list[Piece]] = []
    rests: list[Piece] = []
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        whole = length - length % sequence_length
        windows.extend([(start + done, sequence_length)] for done in range(0, whole, sequence_length))
        if whole < length:
            rests.append((start + whole, length - whole))
    bins = _best_fit(rests, sequence_length)
    needed = -(-sum(length for _, length in rests) // sequence_length)
    bins.sort(key=lambda pieces: -sum(length for _, length in pieces))
    kept, poured = bins[:needed], [piece for pieces in bins[needed:] for piece in pieces]
    split = _pour(poured, kept, sequence_length)
    return windows + kept, split


def _best_fit(pieces: list[Piece], capacity: int) -> list[list[Piece]]:
    """Each piece, longest first, into the fullest bin that has room for it."""
    bins: list[list[Piece]] = []
    with_room: dict[int, list[int]] = {}  # free tokens → bins
    rooms: list[int] = []  # the keys of `with_room`, sorted
    for piece in sorted(pieces, key=lambda p: -p[1]):
        place = bisect.bisect_left(rooms, piece[1])
        if place == len(rooms):
            bins.append([])
            room, target = capacity, len(bins) - 1
        else:
            room = rooms[place]
            target = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        bins[target].append(piece)
        left = room - piece[1]
        if left:
            if left not in with_room:
                with_room[left] = []
                bisect.insort(rooms, left)
            with_room[left].append(target)
    return bins


def _pour(pieces: list[Piece], bins: list[list[Piece]], capacity: int) -> int:
    """Fill the gaps of `bins`, in their order, with all of `pieces`, splitting where a gap ends; how often."""
    waiting = list(reversed(pieces))
    split = 0
    for target in bins:
        room = capacity - sum(length for _, length in target)
        while room and waiting:
            start, length = waiting.pop()
            now = min(room, length)
            target.append((start, now))
            room -= now
            if now < length:
                waiting.append((start + now, length - now))
                split += 1
    assert not waiting, "the kept windows have room for every token"
    return split


def _write(directory: Path, stream: NDArray[Any], plan: list[list[Piece]], sequence_length: int, padding: int) -> None:
    tokens = np.lib.format.open_memmap(
        directory / TOKENS, mode="w+", dtype=stream.dtype, shape=(len(plan), sequence_length)
    )
    for row, pieces in zip(tokens, plan, strict=True):
        end = 0
        for start, length in pieces:
            row[end : end + length] = stream[start : start + length]
            end += length
        row[end:] = padding
    tokens.flush()
    np.save(directory / LENGTHS, np.array([length for pieces in plan for _, length in pieces], dtype=np.int32))
    np.save(directory / OFFSETS, np.cumsum([0, *map(len, plan)], dtype=np.int64))


def window_order(windows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """The order of the windows in one epoch, [windows] int64; the arguments fix it, so training resumes anywhere."""
    return np.random.default_rng([seed, 2, epoch]).permutation(windows).astype(np.int64)


class PackedTokens:
    """The windows of a PackedTokens artifact, memory-mapped. Raises RequestError when `directory` holds none."""

    def __init__(self, directory: Path) -> None:
        try:
            self._tokens = np.load(directory / TOKENS, mmap_mode="r", allow_pickle=False)
            self._lengths = np.load(directory / LENGTHS, allow_pickle=False)
            self._offsets = np.load(directory / OFFSETS, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RequestError(f"{directory} holds no packed tokens ({error}): run the packing stage again") from error
        self.windows, self.sequence_length = map(int, self._tokens.shape)
        self.tokens = int(self._lengths.sum())

    def pieces(self, window: int) -> NDArray[np.int32]:
        """Lengths in tokens of the pieces of one window, [pieces] int32; what they leave is padding."""
        lengths: NDArray[np.int32] = self._lengths[self._offsets[window] : self._offsets[window + 1]]
        return lengths

    def order(self, epoch: int, seed: int) -> list[int]:
        """The windows in the order of one epoch; see `window_order`."""
        order: list[int] = window_order(self.windows, epoch, seed).tolist()
        return order

    def batch(self, indices: Sequence[int] | NDArray[np.int64], document_mask: bool = True) -> dict[str, torch.Tensor]:
        """`input_ids`, `position_ids` and `labels`, each [len(indices), sequence_length] int64.

        `labels[t]` is token t + 1, already shifted, and -100 where there is none. With `document_mask` the positions
        start again at 0 with each piece, and with the padding, and a piece's last token has no label; without, a window
        counts as one text.
        """
        ids = np.asarray(self._tokens[np.asarray(indices, dtype=np.int64)], dtype=np.int64)  # [B, L]
        length = self.sequence_length
        positions = np.broadcast_to(np.arange(length), ids.shape).copy()
        labels = np.full_like(ids, IGNORED)
        labels[:, :-1] = ids[:, 1:]
        for row, window in enumerate(indices):
            ends = np.cumsum(self.pieces(int(window)), dtype=np.int64)
            labels[row, ends[-1] - 1 :] = IGNORED
            if document_mask:
                labels[row, ends - 1] = IGNORED
                starts = np.concatenate([[0], ends])
                positions[row] -= np.repeat(starts, np.diff(starts, append=length))
        return {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "labels": torch.from_numpy(labels),
        }
