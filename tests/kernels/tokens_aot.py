"""Compile Mode B's kernels for sm_90 and print {variant: figures} read from the machine code.

    python -m tests.kernels.tokens_aot

A process without TRITON_INTERPRET, where `triton.jit` makes kernels and not emulations; see
`test_tokens_compiled`. Left out: running them, and Mode A's (`aot`).
"""

import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from posttrain_kernels import tiled, tokens_triton

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
REGISTER_COUNT = b"\x04\x2f\x08\x00"  # EIATTR_REGCOUNT of .nv.info: symbol, then registers


class Compiled(NamedTuple):
    registers: int  # a thread
    spills: int  # LDL and STL: loads and stores of registers that did not fit
    tensor_core: int  # HGMMA
    bulk_loads: int  # UTMALDG: TMA
    wide_loads: int  # LDG of 16 bytes
    loads: int  # all LDG
    barriers: int
    shared: int  # bytes a program
    wide_products: int  # multiplications of 64-bit integers in the IR, as row offsets need


def compile_sm90(kernel, arguments: dict, warps: int, stages: int = 3, aligned=()) -> Compiled:
    """`arguments`: a type ("*fp32", "i32", "tensordesc<bf16[128, 64]>") or a constexpr's value.
    `aligned`: arguments that are multiples of 16, as the launcher would find out."""
    names = kernel.arg_names
    types = {n: arguments[n] if isinstance(arguments[n], str) else "constexpr" for n in names}
    constants = {(names.index(n),): v for n, v in arguments.items() if not isinstance(v, str)}
    divisible = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    made = triton.compile(
        ASTSource(kernel, types, constants, divisible),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    cubin = made.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [DISASSEMBLER, "-c", file.name]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def count(instruction: str) -> int:
        return len(re.findall(rf"\b{instruction}\b", sass))

    where = cubin.index(REGISTER_COUNT) + len(REGISTER_COUNT)
    return Compiled(
        struct.unpack_from("<II", cubin, where)[1],
        count("LDL") + count("STL"),
        count("HGMMA"),
        count("UTMALDG"),
        len(re.findall(r"\bLDG\.E[\w.]*\.128\b", sass)),
        count("LDG"),
        count("BAR"),
        made.metadata.shared,
        len(re.findall(r"arith\.muli [^:]*: (?:tensor<[^>]*)?i64", made.asm["ttir"])),
    )


TABLES = ("peak_ptr", "total_ptr", "target_ptr", "mean_ptr")


def slice_gradient(low: str, tilt: bool, softcap: bool) -> Compiled:
    pointers = ("own_ptr", "peak_ptr", "log_total_ptr", "level_ptr", "tilt_ptr", "target_ptr")
    arguments = dict.fromkeys(pointers, "*fp32") | {
        "own_ptr": "*i64",
        "z_ptr": "*fp32",
        "g_ptr": f"*{low}",
        "z_stride": "i32",
        "g_stride": "i32",
        "reach": "i32",
        "inner": "fp32",
        "outer": "fp32",
        "TILT": tilt,
        "SOFTCAP": softcap,
        "BLOCK": tokens_triton.BLOCK,
        "INTERPRET": False,
    }
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
    arguments = (
        dict.fromkeys(TABLES, "*fp32")
        | whole
        | matrices
        | {
            "label_ptr": "*i64",
            "inner": "fp32",
            "outer": "fp32",
            "TMA": tma,
            "SOFTCAP": softcap,
            "ROWS": t.ROWS,
            "COLUMNS": columns,
            "DEPTH": t.DEPTH,
            "INTERPRET": False,
        }
    )
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
