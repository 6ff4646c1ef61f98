"""RMSNorm in Triton: one program takes a tile of whole rows, [ROWS, BLOCK]; arithmetic in fp32.

Backward, with r = 1/sqrt(mean(h²) + eps), g = dy · w and H columns: dh = r · g - h · r³ · sum(g · h) / H + (gradient of h),
dw = sum over rows of dy · h · r. Each program sums dw over its rows in registers; the programs' sums are then added in order.
Rows wider than LARGEST do not fit into the registers: a program reads one twice, block by block, and dw has a kernel of its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from frbio_lite.kernels.launch import Compilation, block_size, programs, warps
from frbio_lite.kernels.rms_norm import LARGEST

TILE = 4096  # elements a program holds where rows are short, and the block in which wide ones are read
STRIPE = 512  # columns of a wide row over which a program sums dw


@triton.jit
def rms_norm_forward(
    X, RESIDUAL, WEIGHT, Y, HIDDEN, rows, columns, x_stride, residual_stride, eps,
    GEMMA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    column = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    inside = (row < rows) & (column < columns)
    weight = tl.load(WEIGHT + column, mask=column < columns, other=0.0).to(tl.float32)
    h = tl.load(X + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL is not None:
        h += tl.load(RESIDUAL + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = h.to(HIDDEN.dtype.element_ty)
        tl.store(HIDDEN + row * columns + column, rounded, mask=inside)
        h = rounded.to(tl.float32)
    normed = h * tl.rsqrt(tl.sum(h * h, axis=1) / columns + eps)[:, None]
    if GEMMA:
        y = normed * (1.0 + weight)
    elif RESIDUAL is not None:
        y = normed.to(HIDDEN.dtype.element_ty).to(tl.float32) * weight
    else:
        y = normed.to(X.dtype.element_ty).to(tl.float32) * weight
    tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(
    DY, DHIDDEN, HIDDEN, WEIGHT, DX, DRESIDUAL, PARTIAL, rows, columns, dy_stride, dhidden_stride, hidden_stride, eps,
    GEMMA: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    exists = column < columns
    weight = tl.load(WEIGHT + column, mask=exists, other=0.0).to(tl.float32)
    if GEMMA:
        weight += 1.0
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(program * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
        inside = (row < rows) & exists
        h = tl.load(HIDDEN + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        r = tl.rsqrt(tl.sum(h * h, axis=1) / columns + eps)[:, None]
        g = dy * weight
        dh = r * (g - h * (r * r * (tl.sum(g * h, axis=1)[:, None] / columns)))
        if DHIDDEN is not None:
            dh += tl.load(DHIDDEN + row * dhidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + row * columns + column, dh.to(DX.dtype.element_ty), mask=inside)
        if DRESIDUAL is not None:
            tl.store(DRESIDUAL + row * columns + column, dh.to(DRESIDUAL.dtype.element_ty), mask=inside)
        if PARTIAL is not None:
            total += dy * (h * r)
    if PARTIAL is not None:
        tl.store(PARTIAL + program.to(tl.int64) * columns + column, tl.sum(total, axis=0)[None, :], mask=exists)


@triton.jit
def _summed(X, RESIDUAL, HIDDEN, x_row, residual_row, column, inside):
    """A block of h in fp32, rounded as it is stored: x, or x + residual."""
    h = tl.load(X + x_row + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL is not None:
        h += tl.load(RESIDUAL + residual_row + column, mask=inside, other=0.0).to(tl.float32)
        h = h.to(HIDDEN.dtype.element_ty).to(tl.float32)
    return h


@triton.jit
def rms_norm_forward_wide(
    X, RESIDUAL, WEIGHT, Y, HIDDEN, columns, x_stride, residual_stride, eps, GEMMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        h = _summed(X, RESIDUAL, HIDDEN, row * x_stride, row * residual_stride, column, inside)
        squares += h * h
        if RESIDUAL is not None:
            tl.store(HIDDEN + row * columns + column, h.to(HIDDEN.dtype.element_ty), mask=inside)
    r = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        h = _summed(X, RESIDUAL, HIDDEN, row * x_stride, row * residual_stride, column, inside)
        weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            y = h * r * (1.0 + weight)
        elif RESIDUAL is not None:
            y = (h * r).to(HIDDEN.dtype.element_ty).to(tl.float32) * weight
        else:
            y = (h * r).to(X.dtype.element_ty).to(tl.float32) * weight
        tl.store(Y + row * columns + column, y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward_wide(
    DY, DHIDDEN, HIDDEN, WEIGHT, DX, DRESIDUAL, R, columns, dy_stride, dhidden_stride, hidden_stride, eps,
    GEMMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    products = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        h = tl.load(HIDDEN + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            weight += 1.0
        squares += h * h
        products += dy * weight * h
    r = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    inward = r * r * (tl.sum(products, axis=0) / columns)
    if R is not None:
        tl.store(R + row, r)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < columns
        h = tl.load(HIDDEN + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(WEIGHT + column, mask=inside, other=0.0).to(tl.float32)
        if GEMMA:
            weight += 1.0
        dh = r * (dy * weight - h * inward)
        if DHIDDEN is not None:
            dh += tl.load(DHIDDEN + row * dhidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(DX + row * columns + column, dh.to(DX.dtype.element_ty), mask=inside)
        if DRESIDUAL is not None:
            tl.store(DRESIDUAL + row * columns + column, dh.to(DRESIDUAL.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_weight_wide(
    DY, HIDDEN, R, PARTIAL, rows, columns, dy_stride, hidden_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]  # [1, BLOCK]
    part = tl.program_id(1)
    exists = column < columns
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(part * ROWS, rows, tl.num_programs(1) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]  # [ROWS, 1]
        inside = (row < rows) & exists
        h = tl.load(HIDDEN + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
        total += dy * (h * tl.load(R + row, mask=row < rows, other=0.0))
    tl.store(PARTIAL + part.to(tl.int64) * columns + column, tl.sum(total, axis=0)[None, :], mask=exists)


def forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, gemma: bool) -> tuple[Tensor, Tensor]:
    """(y, h) of x [..., H] and residual [..., H]; without a residual h is x itself."""
    columns = x.shape[-1]
    values, added = _rows(x), None if residual is None else _rows(residual)
    rows = values.shape[0]
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    hidden = x if residual is None else torch.empty(x.shape, dtype=dtype, device=x.device)
    y = torch.empty(x.shape, dtype=dtype if gemma else torch.promote_types(dtype, weight.dtype), device=x.device)
    tensors = values, added, weight.contiguous(), y, None if residual is None else hidden
    strides = values.stride(0), 0 if added is None else added.stride(0)
    if columns > LARGEST:
        rms_norm_forward_wide[(rows,)](*tensors, columns, *strides, eps, GEMMA=gemma, BLOCK=TILE, num_warps=warps(TILE))
        return y, hidden
    height, block, num_warps = tile(columns)
    rms_norm_forward[(triton.cdiv(rows, height),)](
        *tensors, rows, columns, *strides, eps, GEMMA=gemma, ROWS=height, BLOCK=block, num_warps=num_warps
    )
    return y, hidden


def backward(
    dy: Tensor, dhidden: Tensor | None, hidden: Tensor, weight: Tensor, eps: float, gemma: bool,
    dtypes: tuple[torch.dtype, ...], train_weight: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(dx, dresidual, dweight) from the gradients of y and of h (None: no further use); `dtypes`: of x and of the residual."""
    columns = hidden.shape[-1]
    values, dy_rows = _rows(hidden), _rows(dy)
    dhidden_rows = None if dhidden is None else _rows(dhidden)
    rows = values.shape[0]
    dx = torch.empty(hidden.shape, dtype=dtypes[0], device=hidden.device)
    dresidual = dx if dtypes[-1] == dtypes[0] else torch.empty_like(dx, dtype=dtypes[-1])
    tensors = dy_rows, dhidden_rows, values, weight.contiguous(), dx, None if dresidual is dx else dresidual
    strides = dy_rows.stride(0), 0 if dhidden_rows is None else dhidden_rows.stride(0), values.stride(0)
    height, block, num_warps = tile(columns)
    stripes = triton.cdiv(columns, block)  # 1 where a program holds whole rows
    count = max(1, programs(hidden, stripes * triton.cdiv(rows, height)) // stripes)
    partial = torch.empty(count, columns, dtype=torch.float32, device=hidden.device) if train_weight else None
    if columns > LARGEST:
        r = torch.empty(rows, dtype=torch.float32, device=hidden.device) if train_weight else None
        rms_norm_backward_wide[(rows,)](
            *tensors, r, columns, *strides, eps, GEMMA=gemma, BLOCK=TILE, num_warps=warps(TILE)
        )
        if train_weight:
            rms_norm_weight_wide[(stripes, count)](
                dy_rows, values, r, partial, rows, columns, strides[0], strides[2],
                ROWS=height, BLOCK=block, num_warps=num_warps,
            )  # fmt: skip
    else:
        rms_norm_backward[(count,)](
            *tensors, partial, rows, columns, *strides, eps, GEMMA=gemma, ROWS=height, BLOCK=block, num_warps=num_warps
        )
    return dx, dresidual, None if partial is None else partial.sum(0).to(weight.dtype)


def tile(columns: int) -> tuple[int, int, int]:
    """(ROWS, BLOCK, warps) for rows of `columns` elements; for wide ones, of the stripes over which dw is summed."""
    block = block_size(columns) if columns <= LARGEST else STRIPE
    height = max(1, TILE // block)
    return height, block, warps(height * block)


def _rows(x: Tensor) -> Tensor:
    """x as [N, H], a view where its rows are evenly spaced."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _compilations() -> list[Compilation]:
    """Heads (128 columns), hidden states, the widest rows that a program holds, and wider ones, which compile alike."""
    sizes = {"rows": "i32", "columns": "i32:16"}
    forward_types = {"X": "*T", "RESIDUAL": "*T", "WEIGHT": "*T", "Y": "*T", "HIDDEN": "*T", **sizes}
    forward_types |= {"x_stride": "i32:16", "residual_stride": "i32:16", "eps": "fp32"}
    strides = dict.fromkeys(("dy_stride", "dhidden_stride", "hidden_stride"), "i32:16")
    tensors = dict.fromkeys(("DY", "DHIDDEN", "HIDDEN", "WEIGHT", "DX", "DRESIDUAL"), "*T")
    backward_types = {**tensors, "PARTIAL": "*fp32", "R": "*fp32", **sizes, **strides, "eps": "fp32"}
    alone, same, wider = ("RESIDUAL", "HIDDEN"), ("DRESIDUAL",), 4 * LARGEST
    forms = [
        ("forward", rms_norm_forward, forward_types, 128, alone),
        ("add_forward", rms_norm_forward, forward_types, LARGEST, ()),
        ("backward", rms_norm_backward, backward_types, 128, ("DHIDDEN", "DRESIDUAL")),
        ("add_backward", rms_norm_backward, backward_types, 2048, same),
        ("add_backward", rms_norm_backward, backward_types, LARGEST, same),
        ("add_backward_frozen", rms_norm_backward, backward_types, LARGEST, (*same, "PARTIAL")),
        ("forward", rms_norm_forward_wide, forward_types, wider, alone),
        ("add_forward", rms_norm_forward_wide, forward_types, wider, ()),
        ("add_backward", rms_norm_backward_wide, backward_types, wider, same),
        ("weight", rms_norm_weight_wide, backward_types, wider, ()),
    ]
    found = []
    for form, kernel, types, columns, absent in forms:
        height, block, num_warps = tile(columns)
        if kernel in (rms_norm_forward_wide, rms_norm_backward_wide):
            block, num_warps = TILE, warps(TILE)
        taken = set(kernel.arg_names)
        signature = {name: kind for name, kind in types.items() if name in taken - set(absent)}
        values = {**dict.fromkeys(absent), "GEMMA": False, "ROWS": height, "BLOCK": block}
        constexprs = {name: value for name, value in values.items() if name in taken}
        found.append(Compilation(kernel, f"{form}_{columns}", signature, constexprs, num_warps))
    return found


COMPILATIONS = _compilations()
