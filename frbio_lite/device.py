"""What this machine can do, and the reason when it cannot: device, dtype, libraries, disk, network."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import socket
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch

from frbio_lite.errors import RequestError

BF16_CAPABILITY = (8, 0)  # Ampere; before it bf16 is emulated and slow
# Our fused kernels: from Turing (T4) in fp32 and fp16, from BF16_CAPABILITY in bf16. Matrix products stay with cuBLAS.
KERNEL_CAPABILITY = (7, 5)
KERNEL_FAMILIES = ("Qwen3", "Llama", "Mistral", "Gemma 3", "SmolLM3")  # whose modules `kernels.swap` knows
LIBRARIES = ("bitsandbytes", "peft", "transformers", "datasets")

Precision = Literal["auto", "bf16", "fp16", "fp32"]
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The arithmetic dtype of training and evaluation: bf16 from compute capability 8.0, fp16 before it, fp32 on a CPU.

    Raises RequestError for a dtype that the device computes wrongly or not at all.
    """
    if device.type == "cpu":
        if precision == "fp16":
            raise RequestError("train.precision: fp16 needs a GPU (no loss scaling on a CPU): use auto or fp32")
        return DTYPES["fp32" if precision == "auto" else precision]
    bf16 = torch.cuda.get_device_capability(device) >= BF16_CAPABILITY
    if precision == "bf16" and not bf16:
        raise RequestError(f"train.precision: {torch.cuda.get_device_name(device)} has no bf16: use auto or fp16")
    return DTYPES[("bf16" if bf16 else "fp16") if precision == "auto" else precision]


def why_no_kernels(device: torch.device, dtype: torch.dtype) -> str | None:
    """The device table of our fused kernels: why none is right for arithmetic in `dtype` on `device`; None where they are."""
    if device.type != "cuda":
        return "kernels are for CUDA devices; a CPU computes in plain torch"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    capability = torch.cuda.get_device_capability(device)
    least = BF16_CAPABILITY if dtype == torch.bfloat16 else KERNEL_CAPABILITY
    if dtype not in DTYPES.values() or capability < least:
        have, need = (".".join(map(str, version)) for version in (capability, least))
        return f"no kernels in {str(dtype).removeprefix('torch.')} on compute capability {have} (from {need})"
    return None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process held on the GPU, or its largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Check:
    """One line of `frbio doctor`: what was looked at, whether it can be used, and the figure or the reason."""

    name: str
    ok: bool
    detail: str


def examine(directory: Path) -> list[Check]:
    """Look at all that a run may need; `directory` is where its output would go."""
    return [
        _python(),
        _gpu(),
        _dtype(),
        _kernels(),
        *map(_library, ("triton", *LIBRARIES)),
        _unsloth(),
        _memory(),
        _disk(directory),
        _hub(),
    ]


def as_dict(checks: list[Check]) -> dict[str, Any]:
    return {c.name: {k: v for k, v in asdict(c).items() if k != "name"} for c in checks}


def verdict(checks: list[Check]) -> str:
    """What the checks come to, and what to do next."""
    usable = {c.name for c in checks if c.ok}
    if missing := [name for name in LIBRARIES if name not in usable]:
        return f"Not everything works here: pip install {' '.join(missing)}"
    if "gpu" not in usable:
        return "Small models train here, on the CPU; the other recipes are meant for a GPU."
    return "Models train here, on the GPU: `frbio plan RECIPE` says whether a recipe fits."


def _python() -> Check:
    threads = torch.get_num_threads()
    return Check(
        "python",
        True,
        f"{platform.python_version()}, torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''}",
    )


def _gpu() -> Check:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"this torch ({torch.__version__}) is a CPU build" if not built else "the driver shows no CUDA device"
        return Check("gpu", False, f"none: {why}; everything runs on the CPU")
    properties = torch.cuda.get_device_properties(0)
    return Check(
        "gpu",
        True,
        f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB, "
        f"compute capability {properties.major}.{properties.minor}",
    )


def _dtype() -> Check:
    device = pick_device()
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    why = {"cpu": "a CPU computes in fp32", "cuda": "from the compute capability"}[device.type]
    return Check("precision", True, f"{dtype}: {why}" + ("; loss scaling on" if dtype == "float16" else ""))


def _kernels() -> Check:
    device = pick_device()
    dtype = pick_dtype("auto", device)
    why = why_no_kernels(device, dtype)
    families = ", ".join(KERNEL_FAMILIES)
    used = f"in {str(dtype).removeprefix('torch.')} for {families}; other models train in plain torch"
    return Check("kernels", why is None, why or used)


def _library(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, f"not installed: pip install {name}")


def _unsloth() -> Check:
    if importlib.util.find_spec("unsloth") is None:
        return Check("unsloth", False, "not installed; not needed, the native backend does the work")
    return Check(
        "unsloth",
        torch.cuda.is_available(),
        version("unsloth") + ("" if torch.cuda.is_available() else ": needs a GPU"),
    )


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Check("memory", True, f"{total / 2**30:.1f} GiB of RAM, {os.cpu_count()} CPU cores")


def _disk(directory: Path) -> Check:
    existing = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    existing, free = existing.absolute(), shutil.disk_usage(existing).free
    return Check(
        "disk", free > 5e9, f"{free / 1e9:.0f} GB free at {existing}" + ("" if free > 5e9 else ": a run may need more")
    )


def _hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        return Check(
            "hub", False, "HF_HUB_OFFLINE is set: models and datasets come from the local cache or a directory"
        )
    from huggingface_hub import constants  # reads HF_ENDPOINT

    address = urlsplit(constants.ENDPOINT)
    host = str(address.hostname)
    try:
        with socket.create_connection((host, address.port or (80 if address.scheme == "http" else 443)), timeout=3.0):
            return Check("hub", True, f"{host} answers")
    except OSError as error:
        return Check(
            "hub",
            False,
            f"{host} is not reachable ({error.strerror or error}): pass local directories; "
            "`frbio run demo` needs no network",
        )
