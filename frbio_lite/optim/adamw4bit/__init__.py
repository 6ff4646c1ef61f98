"""AdamW with both moments in 4 bits: 1.07 bytes of state per parameter, one fused kernel per parameter.

A block of 128 elements has an fp32 scale per moment; weights are fp32 (updated exactly) or bf16 (rounded stochastically). Random
numbers are a hash of seed, parameter, step and element: the same on every device and after every resume. A NaN or infinity in a
gradient makes its own weight NaN in that step, as in torch's AdamW, and from the next step on the weights of its block.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from frbio_lite.kernels.launch import usable
from frbio_lite.optim.adamw4bit import reference
from frbio_lite.optim.adamw4bit.reference import BLOCK, HALF, Moments, Scalars
from frbio_lite.progress import say

SMALL = 4096  # elements; tensors up to this size keep fp32 states
DTYPES = (torch.float32, torch.bfloat16)


class AdamW4bit(torch.optim.Optimizer):
    """AdamW with decoupled weight decay and bias correction, as torch.optim.AdamW, on 4-bit states.

    Groups may set `state_bits` (4 or 32), `moment_rounding` (`stochastic` or `nearest`) and torch's options.
    Raises ValueError on options out of range and on parameters that are neither fp32 nor bf16, RuntimeError on sparse gradients.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        state_bits: int = 4,
        moment_rounding: str = "stochastic",
        seed: int = 0,
    ) -> None:
        self.seed = seed
        self.plain: str | None = None  # why the kernel was given up, if it was
        self._numbers: dict[Tensor, int] = {}  # by parameter, in order: names its stream of random numbers
        super().__init__(
            parameters,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "state_bits": state_bits,
                "moment_rounding": moment_rounding,
            },
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        _check(group)
        for parameter in group["params"]:
            self._numbers[parameter] = len(self._numbers)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)
        return loss

    def _step_parameter(self, parameter: Tensor, group: dict[str, Any]) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise RuntimeError("AdamW4bit does not take sparse gradients: make the embedding with sparse=False")
        state = self.state[parameter]
        if not state:
            state |= _new_state(parameter, group["state_bits"])
        state["step"] += 1
        weight = parameter.detach().contiguous()  # itself, where it is contiguous
        flat = weight.view(-1), gradient.contiguous().view(-1)
        scalars = _scalars(group, state["step"], self.seed, self._numbers[parameter])
        if "exp_avg_scale" in state:
            moments = Moments(state["exp_avg"], state["exp_avg_scale"], state["exp_avg_sq"], state["exp_avg_sq_scale"])
            self._compute("update", weight, *flat, moments, scalars)
        else:
            moments32 = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
            self._compute("update_unquantised", weight, *flat, *moments32, scalars)
        if weight.data_ptr() != parameter.data_ptr():
            parameter.copy_(weight)

    def _compute(self, update: str, weight: Tensor, *given: Any) -> None:
        """By the kernel, or by the reference: where kernels do not run, and once a launch has failed, which changed nothing."""
        arithmetic = reference if self.plain else _arithmetic(weight)
        try:
            getattr(arithmetic, update)(*given)
        except (ValueError, torch.OutOfMemoryError):  # no fault of the kernel
            raise
        except Exception as error:  # the compiler, the driver, triton: each has errors of its own
            if arithmetic is reference:
                raise
            self.plain = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            say(f"train: warning: the kernel of adamw4bit does not run here ({self.plain}); stepping in plain torch")
            getattr(reference, update)(*given)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their dtypes, which torch would convert to the parameter's."""
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        states = state_dict["state"]
        for number, parameter in zip(saved, parameters, strict=False):  # torch itself refuses other groups
            _check_state(parameter, states.get(number, {}))
        super().load_state_dict(state_dict)
        for number, parameter in zip(saved, self._numbers, strict=True):
            if number in states:
                self.state[parameter] = {
                    key: value.detach().to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                    for key, value in states[number].items()
                }


def state_bytes(elements: int, state_bits: int = 4) -> int:
    """Bytes that the moments of a parameter of so many elements take."""
    if state_bits == 32 or elements <= SMALL:
        return 8 * elements
    return 2 * math.ceil(elements / BLOCK) * (HALF + 4)


def _new_state(parameter: Tensor, bits: int) -> dict[str, Any]:
    if bits == 32 or parameter.numel() <= SMALL:
        moments = (torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device) for _ in range(2))
        return {"step": 0, **dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))}
    blocks = math.ceil(parameter.numel() / BLOCK)
    state: dict[str, Any] = {"step": 0}
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = torch.zeros(blocks * HALF, dtype=torch.uint8, device=parameter.device)
        state[f"{name}_scale"] = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
    return state


def _check_state(parameter: Tensor, state: dict[str, Any]) -> None:
    expected = _new_state(parameter, 4 if "exp_avg_scale" in state else 32)
    for name, value in state.items():
        if isinstance(value, Tensor) and (name not in expected or value.shape != expected[name].shape):
            raise ValueError(f"{name} {list(value.shape)} is no state of a parameter {list(parameter.shape)}")


def _scalars(group: dict[str, Any], step: int, seed: int, number: int) -> Scalars:
    beta1, beta2 = group["betas"]
    digest = hashlib.blake2b(struct.pack("<qqq", seed, number, step), digest_size=8).digest()
    return Scalars(
        decay=1.0 - group["lr"] * group["weight_decay"],
        beta1=beta1,
        beta2=beta2,
        rate=group["lr"] / (1.0 - beta1**step),
        root=1.0 / math.sqrt(1.0 - beta2**step),
        eps=group["eps"],
        keys=struct.unpack("<II", digest),
        stochastic=group["moment_rounding"] == "stochastic",
    )


def _arithmetic(weight: Tensor) -> Any:
    """The module that computes a step where this weight is: `kernel` or `reference`. The kernel takes bf16 as integers."""
    if usable(weight if weight.dtype == torch.float32 else weight.view(torch.int16)):
        from frbio_lite.optim.adamw4bit import kernel

        return kernel
    return reference


def _check(group: dict[str, Any]) -> None:
    lr, eps, decay, betas = group["lr"], group["eps"], group["weight_decay"], group["betas"]
    if not (lr >= 0.0 and eps >= 0.0 and decay >= 0.0):
        raise ValueError(f"lr is {lr}, eps {eps}, weight_decay {decay}: zero or more is needed")
    if not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas are {tuple(betas)}: at least 0 and below 1 is needed")
    if group["state_bits"] not in (4, 32):
        raise ValueError(f"state_bits is {group['state_bits']}: 4 or 32 is needed")
    if group["moment_rounding"] not in ("stochastic", "nearest"):
        raise ValueError(f"moment_rounding is {group['moment_rounding']}: stochastic or nearest is needed")
    for parameter in group["params"]:
        if parameter.dtype not in DTYPES:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ValueError(f"a parameter {list(parameter.shape)} is {dtype}: float32 or bfloat16 is needed")
