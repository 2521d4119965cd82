"""Compile the kernels for an H100 or H200 (sm_90) without one, and read what the assembler made.

    python -m tests.kernels.aot [--all]      JSON lines: kernel, variant, registers, spills, loads
    python -m tests.kernels.aot --refused    the compiler's error for a member of the family without a branch

A process of its own, because Triton decides at import whether kernels are compiled or interpreted.
Signatures and alignments are those of a real launch: pointers and row strides are multiples of 16,
labels are not. Left out: running anything; `tiled` and Mode B's kernels (`test_tokens*`).
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

from posttrain_kernels import rows_triton, segments_triton
from posttrain_kernels.family import MEMBERS

TOOLS = Path(nvidia.__file__).parent / "bin"
WIDE = "*fp32 *fp32 *fp32 *i8"  # log p, log Z, entropy, correct
ROW_LOSS = f"*fp32 i32 D i32 *i64 {WIDE} i32 i32 fp32 fp32"
ROW_PARTIAL = "*fp32 i32 *i64 *fp32 *fp32 *fp32 *fp32 i32 i32 fp32 fp32"
ROW_DELTA = "*fp32 i32 D i32 *i64 *fp32 *fp32 i32 fp32 fp32"
CLOSE = "*i64 *fp32 i32 i32 *fp64 *i64 *fp32 *fp32 *fp32 *N *P *W fp32 fp32 i32 fp32 fp32"
FLAGS = ("N_TABLE", "EXTERNAL", "WEIGHTED", "SURROGATE", "P_GATE", "F_GATE", "PER_LENGTH")
UNALIGNED = {"label_ptr", "ids_ptr", "log_p_ptr", "V"}


def compile_(kernel, types: str, constants: dict, warps: int):
    names = [n for n in kernel.arg_names if n not in constants]
    signature = dict(zip(names, types.split(), strict=True))
    # `log_p_ptr` of the row kernels is a table of its own, of the segment kernel a slice.
    free = UNALIGNED - ({"log_p_ptr"} if kernel is not segments_triton.close_segments else set())
    aligned = {
        (kernel.arg_names.index(n),): [["tt.divisibility", 16]]
        for n, t in signature.items()
        if n not in free and (t.startswith("*") or n.endswith("stride") or n == "W")
    }
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items()},
        attrs=aligned,
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


def measured(compiled) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = (
            subprocess.run(
                [TOOLS / tool, *options, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, options in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", ["-c"]))
        )
    ((registers, stack),) = re.findall(r"REG:(\d+) STACK:(\d+)", usage)
    return {
        "registers": int(registers),
        "stack": int(stack),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "loads": len(re.findall(r"\bLDG\b", sass)),
        "wide loads": len(re.findall(r"\bLDG\.E\S*\.128", sass)),
        "wide stores": len(re.findall(r"\bSTG\.E\S*\.(?:64|128)", sass)),
        "barriers": len(re.findall(r"\bBAR\.SYNC", sass)),
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.M)),
        "shared": compiled.metadata.shared,
    }


def row(kernel, types, config, dtype, softcap):
    constants = {"SOFTCAP": softcap, "BLOCK": config.block, "INTERPRET": False}
    if kernel is rows_triton.row_loss:
        constants["DELTA"] = True
    compiled = compile_(kernel, types.replace("D", f"*{dtype}"), constants, config.warps)
    name = f"tile {config.block}, {config.warps} warps, {dtype}" + ", softcap" * softcap
    return {"variant": name, "tile": config.block, "warps": config.warps, **measured(compiled)}


def segment(member, flags):
    constants = dict.fromkeys(FLAGS, False) | dict.fromkeys(flags, True)
    constants |= {"MEMBER": member, "ROWS": segments_triton.ROWS, "INTERPRET": False}
    types = CLOSE
    for letter, flag in (("N", "N_TABLE"), ("P", "EXTERNAL"), ("W", "WEIGHTED")):
        types = types.replace(f"*{letter}", "*fp32" if flag in flags else "*fp64")
    compiled = compile_(segments_triton.close_segments, types, constants, 4)
    name = member + (", every option" if flags else "")
    return {"variant": name, "warps": 4, **measured(compiled)}


def jobs(everything: bool):
    """(kernel, function, arguments), those of the default dtype and the first tile always."""
    configs, dtypes, caps = rows_triton.CONFIGS, ("bf16", "fp16", "fp32"), (False, True)
    usual = (configs[0], "bf16", False)
    for config, dtype, softcap in itertools.product(configs, dtypes, caps):
        changes = sum(a != b for a, b in zip((config, dtype, softcap), usual, strict=True))
        if everything or changes <= 1:
            yield "row_loss", row, (rows_triton.row_loss, ROW_LOSS, config, dtype, softcap)
            if everything or config == usual[0]:
                yield "row_delta", row, (rows_triton.row_delta, ROW_DELTA, config, dtype, softcap)
            if dtype == "bf16" and (everything or config == usual[0]):
                arguments = (rows_triton.row_partial, ROW_PARTIAL, config, dtype, softcap)
                yield "row_partial", row, arguments
    for member in MEMBERS:
        for flags in ((), FLAGS) if everything else (FLAGS,):
            yield "close_segments", segment, (member, flags)


def refused(member: str) -> str:
    """The error of the compiler for a member without a branch."""
    try:
        segment(member, ())
    except triton.CompilationError as error:
        return "".join(traceback.format_exception(error))
    return ""


def main(everything: bool) -> None:
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "kernels are not compiled under it"
    for kernel, make, arguments in jobs(everything):
        print(json.dumps({"kernel": kernel, **make(*arguments)}), flush=True)
    print(json.dumps({"triton": triton.__version__}))


if __name__ == "__main__":
    if "--refused" in sys.argv:
        print(json.dumps(refused("halved")))
    else:
        main("--all" in sys.argv)
