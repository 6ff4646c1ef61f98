"""When a model trains with the fused kernels: the device table says that they are right, and a trial shows that they run.

    figures = fuse(model, "auto", dtype, device)      # after the adapters are attached

`train.kernels: off` leaves the library's own code, and so does `auto` where something speaks against the kernels; the figures say
what. A kernel that does not compile or launch on this machine shows in the trial, one forward and backward of sixteen tokens: the
model is put back as it was, with one warning. So it is when one fails later, on a shape that the trial did not have (`give_up`).
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import torch

from frbio_lite.device import why_no_kernels
from frbio_lite.errors import RequestError
from frbio_lite.kernels.launch import allow, interpreted
from frbio_lite.kernels.swap import Swapped, restore, swap_kernels
from frbio_lite.model import Model, hidden_states, summed_loss
from frbio_lite.progress import say

TRIAL_TOKENS = 16


def fuse(model: Model, wanted: Literal["auto", "off"], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Swap the kernels in if they are wanted and right; `dtype`: of training's arithmetic. Returns figures: `swapped`, `plain`.

    Raises RequestError when a kernel's error has ended this process's use of the GPU.
    """
    allow(wanted == "auto")  # also those that no module was swapped for: the loss, NF4, the optimizer
    why = "train.kernels is off" if wanted == "off" else _against(dtype, device)
    if why is not None:
        return asdict(Swapped({}, {"all": why}))
    found = swap_kernels(model, dtype)
    if not found.swapped:
        return asdict(found)
    try:
        _try(model, dtype, device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler, the driver, triton: each has errors of its own
        return asdict(fall_back(model, error, device))
    return asdict(found)


def fall_back(model: Model, error: Exception, device: torch.device) -> Swapped:
    """Put a model whose kernels failed back on the plain path, with a warning.

    Raises RequestError when the error is one after which CUDA does nothing more in this process.
    """
    restore(model)
    allow(False)
    why = _told(error)
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as gone:
            raise RequestError(
                f"a fused kernel failed and took the GPU's context with it ({why}): start again with train.kernels: off"
            ) from gone
    say(f"train: warning: the fused kernels do not run here ({why}); going on in plain torch")
    return Swapped({}, {"all": why})


def give_up(model: Model, error: Exception, device: torch.device, stepped: bool) -> dict[str, Any]:
    """After an error in a training step: `fall_back`, as figures, if a kernel raised it; any other error goes on its way.

    `stepped`: weights have been changed in this step, so that it cannot be repeated: RequestError.
    """
    if failed_kernel(error) is None:
        raise error
    if stepped:
        raise RequestError(
            f"a fused kernel failed after weights of this step had been stepped ({_told(error)}): "
            "start again with train.kernels: off; the run goes on from its newest checkpoint"
        ) from error
    return asdict(fall_back(model, error, device))


def failed_kernel(error: BaseException) -> str | None:
    """The operation whose kernel an error passed on its way up, such as rms_norm; None where it passed none."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(("frbio_lite.kernels.", "frbio_lite.optim.")) and module.endswith(".kernel"):
            return module.split(".")[-2]
    return None


def _told(error: Exception) -> str:
    kernel = failed_kernel(error)
    why = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return why if kernel is None else f"{kernel}: {why}"


def _against(dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type == "cpu" and interpreted() and dtype != torch.bfloat16:  # tests
        return None
    return why_no_kernels(device, dtype)


def _try(model: Model, dtype: torch.dtype, device: torch.device) -> None:
    """Two documents forward and backward, leaving no gradient and the random state as it was (nothing drops out in eval).

    Each gradient is dropped as it comes: all of them at once may be more than training will ever hold.
    """
    training = model.training
    model.eval()
    dropping = [
        parameter.register_post_accumulate_grad_hook(_drop)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    ids = torch.arange(TRIAL_TOKENS, device=device)[None]
    mixed = nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
    try:
        with mixed:
            hidden = hidden_states(model, ids, ids % (TRIAL_TOKENS // 2))
            loss = summed_loss(model, hidden, ids)
        loss.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()  # the memory plan looks at what is free
    finally:
        for hook in dropping:
            hook.remove()
        model.zero_grad(set_to_none=True)
        model.train(training)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None
