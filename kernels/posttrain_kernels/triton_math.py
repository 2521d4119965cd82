"""Elementary functions for Triton kernels, exact to a few units in the last place of fp32.

On a GPU they are those of libdevice: the fast logarithm of the hardware loses the last digits near 1, where
the probabilities of a confident model are. Triton's interpreter can neither call libdevice nor round to bf16
(it truncates), so under INTERPRET the same functions are built from exp and log.

Left out: fp64.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def log(x, INTERPRET: tl.constexpr):
    if INTERPRET:
        return tl.log(x)
    else:
        return libdevice.log(x)


@triton.jit
def log1p(x, INTERPRET: tl.constexpr):
    """log(1 + x). Kahan's form: the rounding error of 1 + x cancels against itself."""
    if INTERPRET:
        u = 1.0 + x
        rest = tl.where(u == 1.0, 1.0, u - 1.0)
        return tl.where(u == 1.0, x, tl.log(u) * (x / rest))
    else:
        return libdevice.log1p(x)


@triton.jit
def expm1(x, INTERPRET: tl.constexpr):
    """exp(x) - 1, in the same way."""
    if INTERPRET:
        u = tl.exp(x)
        plain = (u == 1.0) | (u - 1.0 == -1.0) | (u == float("inf"))
        slope = tl.where(plain, 1.0, x / tl.log(tl.where(plain, 2.0, u)))
        return tl.where(u == 1.0, x, tl.where(plain, u - 1.0, (u - 1.0) * slope))
    else:
        return libdevice.expm1(x)


@triton.jit
def tanh(x, INTERPRET: tl.constexpr):
    if INTERPRET:
        e = tl.exp(-2.0 * tl.abs(x))
        t = -expm1(-2.0 * tl.abs(x), INTERPRET) / (1.0 + e)
        return tl.where(x < 0, -t, t)
    else:
        return libdevice.tanh(x)


@triton.jit
def narrow(x, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """fp32 -> DTYPE, to nearest even."""
    if INTERPRET and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = bits + (0x7FFF + ((bits >> 16) & 1)).to(tl.uint32)
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)
