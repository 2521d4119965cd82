"""Compile Mode B's kernels for sm_90 and print {variant: figures}; see `test_tokens_compiled`.

python -m tests.kernels.tokens_aot
"""

import json

from posttrain_kernels import tiled, tokens_triton
from tests.kernels.aot import Compiled, compile_sm90

TABLES = ("peak_ptr", "total_ptr", "target_ptr", "mean_ptr")


def slice_gradient(low: str, tilt: bool, softcap: bool) -> Compiled:
    pointers = ("own_ptr", "peak_ptr", "log_total_ptr", "level_ptr", "tilt_ptr", "target_ptr")
    arguments = dict.fromkeys(pointers, "*fp32") | {
        "own_ptr": "*i64", "z_ptr": "*fp32", "g_ptr": f"*{low}", "z_stride": "i32",
        "g_stride": "i32", "reach": "i32", "inner": "fp32", "outer": "fp32", "TILT": tilt,
        "SOFTCAP": softcap, "BLOCK": tokens_triton.BLOCK, "INTERPRET": False,
    }  # fmt: skip
    aligned = (*pointers, "z_ptr", "g_ptr", "z_stride", "g_stride", "reach")
    return compile_sm90(tokens_triton.slice_gradient, arguments, tokens_triton.WARPS, 3, aligned)


def statistics(low: str, tma: bool, softcap: bool) -> Compiled:
    t = tiled
    columns, stages = t.shape(tma, softcap)
    heights = {"x": t.ROWS, "w": columns}
    matrices = {
        name: f"tensordesc<{low}[{height},{t.DEPTH}]>" if tma else f"*{low}"
        for name, height in heights.items()
    }
    whole = dict.fromkeys(("x_stride", "w_stride", "R", "V", "H", "tiles"), "i32")
    arguments = dict.fromkeys(TABLES, "*fp32") | whole | matrices | {
        "label_ptr": "*i64", "inner": "fp32", "outer": "fp32", "TMA": tma, "SOFTCAP": softcap,
        "ROWS": t.ROWS, "COLUMNS": columns, "DEPTH": t.DEPTH, "INTERPRET": False,
    }  # fmt: skip
    aligned = ["label_ptr", *TABLES]
    if tma:  # else a width that TMA cannot take, which is not a multiple of 16 either
        aligned += ["x_stride", "w_stride", "H"]
    return compile_sm90(t.tiled_statistics, arguments, t.WARPS, stages, aligned)


VARIANTS = {
    "gradient bf16": lambda: slice_gradient("bf16", False, False),
    "gradient bf16 entropy softcap": lambda: slice_gradient("bf16", True, True),
    "gradient fp16 entropy": lambda: slice_gradient("fp16", True, False),
    "gradient fp32 entropy": lambda: slice_gradient("fp32", True, False),
    "tiled bf16": lambda: statistics("bf16", True, False),
    "tiled bf16 softcap": lambda: statistics("bf16", True, True),
    "tiled fp16 pointers": lambda: statistics("fp16", False, False),
}

if __name__ == "__main__":
    print(json.dumps({name: variant()._asdict() for name, variant in VARIANTS.items()}))
