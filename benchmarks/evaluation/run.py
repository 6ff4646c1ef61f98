"""Scoring against the `hf` backend of lm-evaluation-harness in one run: seconds, peak memory, agreement, growth.

    pip install -e ".[bench]"
    python benchmarks/evaluation/run.py                     a random model of Qwen3's architecture, 8 layers, vocabulary 151,936
    python benchmarks/evaluation/run.py --model DIR         a model of yours, such as the demo's base
    python benchmarks/evaluation/run.py --only growth       one part: cases, memory, parity, growth

Writes results/*.csv and growth.svg beside this file. Both score the same texts, each in a process of its own that has loaded
the model before the clock starts; the two take turns. This process stays small and imports no torch: the peak memory of a
child counts what its parent held when it was started.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from plot import drawing
from texts import CASES, POSITIONS, Items, case_items, parity_items, sentence, shipped_items

RESULTS = Path(__file__).parent / "results"
# lm_eval's own default is one sequence at a time: its smallest memory; eight at a time were faster in a trial of all cases
TOOLS = ("frbio", "lm_eval", "lm_eval, batches of 8")
FAST, SMALL_MEMORY = (TOOLS[0], TOOLS[2]), (TOOLS[0], TOOLS[1])
VOCABULARY = 151_936  # Qwen3's
SMALL = (64, 2, 2048)  # width, layers, vocabulary of the model that parity is shown on: no clock runs
PARTS = ("cases", "memory", "parity", "growth")

# ---- what runs in a process of its own


def build(directory: Path, hidden: int, layers: int, vocabulary: int) -> None:
    """A random model of Qwen3's architecture in fp32, with a byte-level tokenizer made of the items' words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    torch.manual_seed(0)
    heads = hidden // 64
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=64,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.1,  # log-probabilities that differ well
    )
    logging.disable_progress_bar()
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    rng = random.Random(1)
    tokenizer.train_from_iterator((sentence(rng, 30) for _ in range(500)), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    made.save_pretrained(directory)


def scorer(tool: str, model: Path) -> Any:
    """A function of items to their log-likelihoods, a list for each."""
    if tool != "frbio":
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        rows = 8 if tool.endswith("8") else 1
        peer = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=rows)

        def theirs(items: Items) -> list[list[float]]:
            pairs = [(prompt, c) for prompt, given in items for c in given]
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            found = iter(peer.loglikelihood(asked, disable_tqdm=True))
            return [[next(found)[0] for _ in given] for _, given in items]

        return theirs

    import torch

    from frbio_lite.evaluation.scoring import choice_requests, log_likelihoods, max_positions, truncated
    from frbio_lite.model import load_model, load_tokenizer

    loaded = load_model(model, dtype=torch.float32, device=torch.device("cpu"))
    tokenizer = load_tokenizer(model)

    def ours(items: Items) -> list[list[float]]:
        made = choice_requests(tokenizer, [prompt for prompt, _ in items], [given for _, given in items])
        fitted = [truncated(request, max_positions(loaded)) for requests in made for request in requests]
        found = iter(log_likelihoods(loaded, fitted).tolist())
        return [[next(found) for _ in given] for _, given in items]

    return ours


def work(tool: str, model: Path) -> None:
    """Answer lines of items with a line of seconds, peak memory and scores, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    score = scorer(tool, model)
    unit = 1 if platform.system() == "Darwin" else 1024
    for line in sys.stdin:
        items = json.loads(line)
        loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        began = time.perf_counter()
        found = score(items)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        print(
            json.dumps({"seconds": seconds, "loaded": loaded, "peak": peak, "scores": found}), file=answers, flush=True
        )


# ---- what drives them

CAPTURED: dict[str, Any] = {"check": True, "text": True, "stdout": subprocess.PIPE}


class Worker:
    """A tool with the model in memory, in another process."""

    def __init__(self, tool: str, model: Path, log: Path) -> None:
        self.tool = tool
        with log.open("a", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker", tool, "--model", str(model)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={"GOMP_SPINCOUNT": "1000", **os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        self.log = log

    def ask(self, items: Items) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(items) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.tool} failed:\n{self.log.read_text(encoding='utf-8')[-2000:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(model: Path, log: Path, tools: Iterable[str]) -> Iterator[list[Worker]]:
    started = [Worker(tool, model, log) for tool in tools]
    try:
        for worker in started:
            worker.ask(case_items("letters", 0, True, 1))  # loaded and warm
        yield started
    finally:
        for worker in started:
            worker.close()


def write(name: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)
    click.echo(f"{name} written")


def measure_cases(model: Path, log: Path, count: int, repeats: int) -> None:
    """seconds.csv: every run, in turns; ratios.csv: medians."""
    rows: list[list[object]] = []
    ratios: list[list[object]] = []
    with workers(model, log, FAST) as ready:
        for name, settings in CASES.items():
            items = case_items(*settings, count=count)
            seen: dict[str, list[float]] = {tool: [] for tool in FAST}
            for repeat in range(repeats):
                for worker in ready:
                    seconds = worker.ask(items)["seconds"]
                    seen[worker.tool].append(seconds)
                    rows.append([name, worker.tool, repeat, f"{seconds:.3f}", f"{os.getloadavg()[0]:.2f}"])
            ours, theirs = (statistics.median(seen[tool]) for tool in FAST)
            ratios.append([name, count, f"{ours:.3f}", f"{theirs:.3f}", f"{theirs / ours:.2f}"])
            click.echo(f"{name}: {ours:.2f} s against {theirs:.2f} s, {theirs / ours:.1f} times faster")
    write("seconds.csv", ["case", "tool", "run", "seconds", "load_average"], rows)
    write("ratios.csv", ["case", "items", "frbio_seconds", "lm_eval_seconds", "times_faster"], ratios)


def measure_memory(model: Path, log: Path, count: int) -> None:
    """memory.csv: peak resident memory of a process that scores one case, and what of it is beyond the loaded model."""
    rows: list[list[object]] = []
    for name, settings in CASES.items():
        for tool in SMALL_MEMORY:
            worker = Worker(tool, model, log)
            told = worker.ask(case_items(*settings, count=count))
            worker.close()
            rows.append([name, tool, f"{told['peak'] / 1e6:.0f}", f"{(told['peak'] - told['loaded']) / 1e6:.0f}"])
            click.echo(f"{name}, {tool}: {rows[-1][2]} MB")
    write("memory.csv", ["case", "tool", "peak_mb", "beyond_the_loaded_model_mb"], rows)


def measure_parity(model: Path, log: Path) -> None:
    """parity.csv: items whose best choice is the same, and the largest difference of a log-likelihood."""
    rows: list[list[object]] = []
    forms = {("synthetic", form): items for form, items in parity_items().items()}
    told = subprocess.run([sys.executable, __file__, "--worker", "items", "--model", str(model)], **CAPTURED)
    forms |= {(name, "as shipped"): items for name, items in json.loads(told.stdout).items()}
    with workers(model, log, SMALL_MEMORY) as ready:
        for (task, form), items in forms.items():
            ours, theirs = (worker.ask(items)["scores"] for worker in ready)
            same = sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(ours, theirs, strict=True))
            worst = max(abs(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True))
            rows.append([task, form, len(items), same, f"{worst:.1e}"])
            click.echo(f"{task}, {form}: {same} of {len(items)} the same, largest difference {worst:.1e}")
    write("parity.csv", ["task", "form", "items", "same_argmax", "largest_difference_nats"], rows)


def measure_growth(model: Path, log: Path) -> None:
    """growth.csv, growth.svg: seconds against items, shots and choices, sentences behind fixed shots; the better of two."""
    axes: dict[str, list[dict[str, int]]] = {
        "items": [{"count": n} for n in (1, 2, 4, 8)],
        "shots": [{"shots": n} for n in (0, 2, 4, 6)],
        "choices": [{"choices": n} for n in (2, 4, 6, 8)],
    }
    usual = {"count": 3, "shots": 3, "choices": 4}
    rows: list[list[object]] = []
    with workers(model, log, FAST) as ready:
        for axis, points in axes.items():
            for point in points:
                s = usual | point
                items = case_items("sentences", s["shots"], True, s["count"], s["choices"])
                for worker in ready:
                    seconds = min(worker.ask(items)["seconds"] for _ in range(2))
                    rows.append([axis, next(iter(point.values())), worker.tool, f"{seconds:.3f}"])
    write("growth.csv", ["axis", "value", "tool", "seconds"], rows)
    (RESULTS / "growth.svg").write_text(drawing(rows, FAST), encoding="utf-8")


def machine(model: str) -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    widest = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "")
    rows = [["processor", f"{name} {widest}".strip()], ["cores", os.cpu_count()], ["python", platform.python_version()]]
    rows += [[package, version(package)] for package in ("torch", "transformers", "lm_eval", "tokenizers")]
    rows += [["model", model], ["load_average_at_start", f"{os.getloadavg()[0]:.2f}"]]
    write("machine.csv", ["what", "value"], rows)


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option(
    "--model", type=click.Path(exists=True, path_type=Path), help="A model directory; without it a random one."
)
@click.option("--hidden", default=256, show_default=True, help="Width of the random model.")
@click.option("--layers", default=8, show_default=True)
@click.option("--vocabulary", default=VOCABULARY, show_default=True)
@click.option("--items", "count", default=12, show_default=True, help="Questions of a case.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Parts to measure; all by default.")
@click.option("--worker", type=click.Choice([*TOOLS, "build", "items"]), hidden=True)
def main(
    model: Path | None,
    hidden: int,
    layers: int,
    vocabulary: int,
    count: int,
    repeats: int,
    only: tuple[str, ...],
    worker: str | None,
) -> None:
    if worker is not None and model is not None:
        if worker == "build":
            build(model, hidden, layers, vocabulary)
        elif worker == "items":
            click.echo(json.dumps(shipped_items()))
        else:
            work(worker, model)
        return
    parts = only or PARTS
    with tempfile.TemporaryDirectory() as temporary:
        log = Path(temporary) / "log.txt"
        made = f"random, Qwen3 architecture, {layers} layers of {hidden}, vocabulary {vocabulary}"
        machine(str(model) if model else made)
        if "parity" in parts:
            measure_parity(model or random_model(Path(temporary) / "small", *SMALL), log)
        if set(parts) == {"parity"}:
            return
        place = model or random_model(Path(temporary) / "model", hidden, layers, vocabulary)
        if "cases" in parts:
            measure_cases(place, log, count, repeats)
        if "memory" in parts:
            measure_memory(place, log, min(count, 4))
        if "growth" in parts:
            measure_growth(place, log)


def random_model(directory: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    directory.mkdir()
    shape = ["--hidden", str(hidden), "--layers", str(layers), "--vocabulary", str(vocabulary)]
    subprocess.run([sys.executable, __file__, "--worker", "build", "--model", str(directory), *shape], check=True)
    return directory


if __name__ == "__main__":
    main()
