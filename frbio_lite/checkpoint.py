"""Training checkpoints: all that a run needs to go on as if it had never stopped, in safetensors and JSON, whole or absent."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from frbio_lite.artifacts import write_json

STATE = "state.json"
NAME = re.compile(r"step-(\d{8})")


def save(
    directory: Path,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    keep: int,
) -> None:
    """Write `directory/step-NNNNNNNN` with trainable weights, optimizer, loss scale and random state; keep the newest `keep`."""
    final = directory / f"step-{step:08d}"
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {n: _detached(p) for n, p in model.named_parameters() if p.requires_grad}, partial / "weights.safetensors"
    )
    state = optimizer.state_dict()
    tensors, plain = _split(state["state"])
    save_file(tensors, partial / "optimizer.safetensors")
    save_file(_random_state(), partial / "random.safetensors")
    groups = [{k: v for k, v in g.items() if not isinstance(v, Tensor)} for g in state["param_groups"]]
    write_json(
        partial / STATE, {"step": step, "optimizer": plain, "param_groups": groups, "scaler": scaler.state_dict()}
    )
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in _whole(directory)[:-keep]:
        shutil.rmtree(old)


def latest(directory: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = _whole(directory)
    return found[-1] if found else None


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done when the checkpoint was written."""
    match = NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not a checkpoint directory")
    return int(match.group(1))


def restore(
    checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Put a checkpoint's weights, optimizer, loss scale and random state back, bit for bit."""
    weights = load_file(checkpoint / "weights.safetensors")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if weights.keys() != parameters.keys():
        raise ValueError(f"{checkpoint} holds other parameters than the model being trained")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    # Copies: what is loaded stays mapped to the file, and a mounted folder (NFS, Drive) does not remove what is in use.
    moments = {n: tensor.clone() for n, tensor in load_file(checkpoint / "optimizer.safetensors").items()}
    optimizer.load_state_dict({"state": _join(moments, state["optimizer"]), "param_groups": state["param_groups"]})
    if state["scaler"]:
        scaler.load_state_dict(state["scaler"])
    random = load_file(checkpoint / "random.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def _whole(directory: Path) -> list[Path]:
    """Checkpoints that can be read to the end, oldest first."""
    found = sorted(p for p in directory.glob("step-*") if NAME.fullmatch(p.name))
    return [p for p in found if _readable(p)]


def _readable(checkpoint: Path) -> bool:
    from safetensors import safe_open

    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        for name in ("weights", "optimizer", "random"):
            with safe_open(checkpoint / f"{name}.safetensors", framework="pt"):  # checks header against file size
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return True


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _split(state: dict[int, dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state by parameter, nested or not, as tensors and plain values named `index/key` or `index/key/key`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}

    def walk(prefix: str, values: dict[Any, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                walk(f"{name}/", value)
            elif isinstance(value, Tensor):
                tensors[name] = _detached(value)
            else:
                plain[name] = value

    walk("", state)
    return tensors, plain


def _join(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**plain, **tensors}.items():
        index, *path, key = name.split("/")
        place = state.setdefault(int(index), {})
        for part in path:
            place = place.setdefault(part, {})
        place[key] = value
    return state
