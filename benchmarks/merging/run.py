"""Merging against mergekit 0.1.5 in one run: seconds, peak memory and agreement; ratios in place against merges and loads.

    pip install -e ".[bench]"
    python benchmarks/merging/run.py                         Qwen3-0.6B's shape, random weights; merges in a RAM disk and on disk
    python benchmarks/merging/run.py --sizes                 also 1.7B and 4B of ours in shards: time and memory as models grow
    python benchmarks/merging/run.py --threads               one, two and four threads, idle and busy

Writes results/*.csv beside this file. Models are made of random numbers in --work (about 2.4 GB; 24 GB with --sizes).
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import click
import yaml

RESULTS = Path(__file__).parent / "results"
REPEATS = 5
SHAPES = {  # of Qwen/Qwen3-*-Base
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
}
CHANGE = 0.05  # ‖Δ‖/‖W‖: slerp proper, the slower branch, is taken
RATIOS = [round(0.1 * i, 1) for i in range(11)]
METHODS = {"slerp": {"t": 0.4}, "linear": {"weight": 0.5}, "ties": {"weight": 1.0, "density": 0.5}}
BUSY = "import torch\nx = torch.ones(1 << 22)\nwhile True: x.mul_(1.0)"
BUILD = """
import json, sys
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
model = Qwen3ForCausalLM(Qwen3Config(**json.loads(sys.argv[3]), tie_word_embeddings=True))
torch.set_default_dtype(torch.float32)
model.save_pretrained(sys.argv[1])
with torch.no_grad():
    for p in model.parameters():
        p.add_(torch.randn(p.shape).mul_(float(sys.argv[4]) * max(p.float().std().item(), 1e-3)).to(p.dtype))
model.save_pretrained(sys.argv[2])
"""
COMPARE = """
import json, sys
import torch
from safetensors import safe_open
method, files = sys.argv[3], [safe_open(f"{d}/model.safetensors", framework="pt") for d in (*sys.argv[1:3], *sys.argv[4:])]
PART = 1 << 24

def shares(base, tuned):
    if method == "linear":
        return 0.5, 0.5
    bb, ba, aa = (sum((p.double() @ q.double()).item() for p, q in zip(x.split(PART), y.split(PART)))
                  for x, y in ((base, base), (base, tuned), (tuned, tuned)))
    cosine = torch.tensor(ba / (bb * aa) ** 0.5, dtype=torch.float64)
    if cosine.abs() > 0.9995:
        return 0.6, 0.4
    angle = torch.acos(cosine)
    return (torch.sin(0.6 * angle) / torch.sin(angle)).item(), (torch.sin(0.4 * angle) / torch.sin(angle)).item()

total = differing = 0
worst, squares = [0.0, 0.0], [0.0, 0.0]
for name in files[0].keys():
    b, a, x, y = (f.get_tensor(name).flatten() for f in files)
    total += b.numel()
    differing += int((x != y).sum())
    if method == "ties":
        continue
    first, second = shares(b, a)
    for part in range(0, b.numel(), PART):
        p, q, *outs = (t[part : part + PART].double() for t in (b, a, x, y))
        exact = first * p + second * q
        top = torch.stack([p.abs(), q.abs(), exact.abs()]).amax(0).clamp(min=2.0**-126)
        step = torch.exp2(torch.floor(torch.log2(top))) * 2.0**-7
        for i, out in enumerate(outs):
            error = (out - exact).abs() / step
            worst[i] = max(worst[i], error.max().item())
            squares[i] += error.square().sum().item()
if method == "ties":
    print(json.dumps([total, differing, "", "", "", ""]))
else:
    print(json.dumps([total, differing, *(f"{w:.4f}" for w in worst), *(f"{(s / total) ** 0.5:.6f}" for s in squares)]))
"""
LOAD = """
import sys
import torch
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
"""
THREADS = """
import shutil, sys, time
from pathlib import Path
from frbio_lite.merging import Parameters, Profile, blocks, by_method, merge_models, open_inputs
base, tuned, out, threads = *map(Path, sys.argv[1:4]), int(sys.argv[4])
blocks.cores = lambda: threads
merger = by_method(open_inputs(base, [tuned]), "slerp", Parameters(), Profile())
began = time.monotonic()
merge_models(merger, out, ratio=0.4)
print(time.monotonic() - began)
shutil.rmtree(out)
"""
ABLATE = """
import sys
from pathlib import Path
import torch
from frbio_lite.ablation.live import Live
from frbio_lite.merging import Parameters, Profile, Rounding, by_method, open_inputs
base, tuned, ratios = Path(sys.argv[1]), Path(sys.argv[2]), [float(r) for r in sys.argv[3].split(",")]
live = Live(base, [tuned], False, torch.bfloat16, torch.device("cpu"))
merger = by_method(open_inputs(base, [tuned]), "slerp", Parameters(), Profile())
for ratio in ratios:
    live.merged(merger, ratio, Rounding(), f"slerp {ratio:g}")
"""


def write(name: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / name).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)
    click.echo(f"{name} written")


def timed(*arguments: str | Path) -> tuple[float, float]:
    """(seconds, peak resident GB) of one command as a whole process."""
    before = time.monotonic()
    child = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    told = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise click.ClickException(f"{' '.join(map(str, arguments))} failed:\n{told.decode()[-2000:]}")
    return time.monotonic() - before, usage.ru_maxrss * 1024 / 1e9


def build(place: Path, shape: str) -> tuple[Path, Path]:
    """A base and an adapted model of random weights, bfloat16; kept when they are there.

    Made by another process: the peak memory of a child counts what its parent held when it was started.
    """
    base, tuned = place / f"{shape}-base", place / f"{shape}-tuned"
    if not (tuned / "config.json").is_file():
        settings = {**SHAPES[shape], "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
        subprocess.run([sys.executable, "-c", BUILD, base, tuned, json.dumps(settings), str(CHANGE)], check=True)
    return base, tuned


def configuration(base: Path, tuned: Path, method: str) -> str:
    """The same merge in mergekit's words; ours reads this very file."""
    adapted: dict[str, object] = {"model": str(tuned)}
    found: dict[str, object] = {"merge_method": method, "models": [{"model": str(base)}, adapted], "dtype": "bfloat16"}
    if method == "linear":
        found["models"] = [
            {"model": str(base), "parameters": {"weight": 0.5}},
            {**adapted, "parameters": METHODS[method]},
        ]
    elif method == "slerp":
        found |= {"base_model": str(base), "parameters": METHODS[method]}
    else:
        found |= {"base_model": str(base), "models": [{**adapted, "parameters": METHODS[method]}]}
    return yaml.safe_dump(found)


def ours(config: Path, out: Path) -> tuple[float, float]:
    return timed(sys.executable, "-m", "frbio_lite.cli", "merge", "--config", config, "--out", out)


def theirs(config: Path, out: Path) -> tuple[float, float]:
    return timed(shutil.which("mergekit-yaml") or "mergekit-yaml", config, out, "--quiet")


def against_mergekit(base: Path, tuned: Path, places: dict[str, Path]) -> None:
    """seconds.csv: interleaved runs of both, by method and place (on disk slerp alone); agreement.csv: their outputs compared."""
    rows: list[list[object]] = []
    agreement: list[list[object]] = []
    for name, place in places.items():
        for method in METHODS if name == "RAM disk" else ("slerp",):
            config = place / f"{method}.yaml"
            config.write_text(configuration(base, tuned, method), encoding="utf-8")
            outs = {"frbio": place / "out-frbio", "mergekit": place / "out-mergekit"}
            for repeat in range(REPEATS):
                for tool, run in (("frbio", ours), ("mergekit", theirs)):
                    shutil.rmtree(outs[tool], ignore_errors=True)
                    seconds, peak = run(config, outs[tool])
                    rows.append([method, name, tool, repeat, f"{seconds:.2f}", f"{peak:.3f}"])
                    click.echo(f"{method} {name} {tool}: {seconds:.2f} s, {peak:.2f} GB")
            if name == "RAM disk":
                agreement.append([method, *compare(base, tuned, method, outs["frbio"], outs["mergekit"])])
            for out in outs.values():
                shutil.rmtree(out)
    write("seconds.csv", ["method", "output", "tool", "run", "seconds", "peak_resident_gb"], rows)
    head = ["method", "weights", "differing", "frbio_max_error_steps", "mergekit_max_error_steps"]
    write("agreement.csv", [*head, "frbio_rms_error_steps", "mergekit_rms_error_steps"], agreement)
    medians(rows)


def medians(rows: list[list[object]]) -> None:
    """ratios.csv: medians, and how many times as long and as much memory mergekit takes."""
    table = []
    for method, name in dict.fromkeys((r[0], r[1]) for r in rows):
        found = {
            tool: [statistics.median(float(str(r[i])) for r in rows if r[:3] == [method, name, tool]) for i in (4, 5)]
            for tool in ("frbio", "mergekit")
        }
        (s, m), (s2, m2) = found["frbio"], found["mergekit"]
        table.append([method, name, f"{s:.2f}", f"{s2:.2f}", f"{s2 / s:.1f}", f"{m:.3f}", f"{m2:.3f}", f"{m2 / m:.1f}"])
    head = ["method", "output", "frbio_seconds", "mergekit_seconds", "times_faster"]
    write("ratios.csv", [*head, "frbio_gb", "mergekit_gb", "times_less_memory"], table)


def compare(base: Path, tuned: Path, method: str, mine: Path, other: Path) -> list[object]:
    """Weights, differing ones, and errors of both against fp64 in steps of bfloat16 at the largest operand.

    Against fp64 for slerp and linear; TIES keeps, among equal differences at its threshold, other ones than mergekit
    does, so no single reference exists for it. In another process: this one must stay small (see `build`).
    """
    told = subprocess.run(
        [sys.executable, "-c", COMPARE, base, tuned, method, mine, other], capture_output=True, text=True, check=True
    )
    return json.loads(told.stdout)


def ablation(base: Path, tuned: Path, place: Path) -> None:
    """ablation.csv: eleven slerp ratios put into one live model, against eleven merges by mergekit and their loads."""
    rows: list[list[object]] = []
    for repeat in range(REPEATS):
        seconds, peak = timed(sys.executable, "-c", ABLATE, base, tuned, ",".join(map(str, RATIOS)))
        rows.append(["frbio in place", "whole process", len(RATIOS), repeat, f"{seconds:.2f}", f"{peak:.3f}"])
        click.echo(f"11 ratios in place: {seconds:.2f} s, {peak:.2f} GB")
    out, config, total = place / "out-ratio", place / "ratio.yaml", 0.0
    for ratio in RATIOS:
        text = yaml.safe_load(configuration(base, tuned, "slerp"))
        config.write_text(yaml.safe_dump({**text, "parameters": {"t": ratio}}), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        total += theirs(config, out)[0] + timed(sys.executable, "-c", LOAD, out)[0]
        click.echo(f"mergekit and loads up to ratio {ratio}: {total:.1f} s")
    shutil.rmtree(out)
    rows.append(["mergekit: merge, then load", "sum of all", len(RATIOS), 0, f"{total:.2f}", ""])
    write("ablation.csv", ["what", "span", "ratios", "run", "seconds", "peak_resident_gb"], rows)


def sizes(work: Path) -> None:
    """sizes.csv: ours as the model grows, slerp, in shards of 2 GB, on disk."""
    rows = []
    for shape in SHAPES:
        base, tuned = build(work, shape)
        out = work / "out-size"
        for repeat in range(1 if shape == "4B" else 3):
            command = ["merge", "--base", base, "--model", tuned, "--ratio", "0.4", "--shard-size", "2GB", "--out", out]
            seconds, peak = timed(sys.executable, "-m", "frbio_lite.cli", *command)
            shards = sorted(out.glob("*.safetensors"))
            written = sum(p.stat().st_size for p in shards) / 1e9
            rows.append([shape, f"{written:.2f}", len(shards), repeat, f"{seconds:.2f}", f"{peak:.3f}"])
            click.echo(f"{shape}: {seconds:.2f} s, {peak:.2f} GB resident, {len(shards)} shards")
            shutil.rmtree(out)
        if shape != "0.6B":
            shutil.rmtree(base)
            shutil.rmtree(tuned)
    write("sizes.csv", ["model", "written_gb", "shards", "run", "seconds", "peak_resident_gb"], rows)


@contextmanager
def busy(processes: int) -> Iterable[None]:
    children = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in children:
            child.kill()


def threads(base: Path, tuned: Path, place: Path) -> None:
    """threads.csv: seconds of one slerp merge, without the start of Python, by threads, on an idle and a busy machine."""
    rows = []
    for load in (0, 2):
        with busy(load):
            for repeat in range(REPEATS):
                for count in (1, 2, 4):
                    told = subprocess.run(
                        [sys.executable, "-c", THREADS, base, tuned, place / "out-threads", str(count)],
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    rows.append([count, load, repeat, f"{float(told.stdout):.2f}"])
                    click.echo(f"{count} threads, {load} busy neighbours: {rows[-1][-1]} s")
    write("threads.csv", ["threads", "busy_processes", "run", "seconds"], rows)


def machine() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    widest = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "")
    rows = [["processor", f"{name} {widest}".strip()], ["cores", os.cpu_count()], ["python", platform.python_version()]]
    rows += [[package, version(package)] for package in ("numpy", "torch", "transformers", "mergekit", "safetensors")]
    write("machine.csv", ["what", "value"], rows)


@click.command(help=__doc__.partition("\n")[0] if __doc__ else None)
@click.option(
    "--work", type=click.Path(path_type=Path), default=Path("merging-work"), show_default=True, help="On disk."
)
@click.option("--ram", type=click.Path(path_type=Path), default=Path("/dev/shm/merging-work"), show_default=True)
@click.option("--sizes", "with_sizes", is_flag=True, help="Also 1.7B and 4B.")
@click.option("--threads", "with_threads", is_flag=True, help="Only the comparison of threads.")
def main(work: Path, ram: Path, with_sizes: bool, with_threads: bool) -> None:
    for place in (work, ram):
        place.mkdir(parents=True, exist_ok=True)
    machine()
    base, tuned = build(ram, "0.6B")
    try:
        if with_threads:
            threads(base, tuned, ram)
            return
        against_mergekit(base, tuned, {"RAM disk": ram, "disk": work})
        ablation(base, tuned, ram)
        if with_sizes:
            sizes(work)
    finally:
        shutil.rmtree(ram)


if __name__ == "__main__":
    main()
