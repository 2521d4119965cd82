"""The tables of the benchmarks on a terminal.

Left out: numbers that are not in the result file.
"""

from rich.console import Console
from rich.table import Table

console = Console(width=None if Console().is_terminal else 150)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _reasons(missing: dict[str, str]) -> None:
    for name, reason in missing.items():
        console.print(f"  {name}: {reason}", markup=False, highlight=False)


def show_checks(checks: list[dict], settings: dict) -> None:
    limit = settings["tolerance"]
    table = _table(
        f"relative error against fp64, {settings['dtype']}, limit {limit:g}",
        "variant",
        "N",
        "loss",
        "dX",
        "dW",
        "same",
    )
    for row in checks:
        if "errors" in row:
            gaps = [f"{gap:.1e}" for gap in row["errors"].values()]
            table.add_row(row["variant"], f"{row['n']:g}", *gaps, "yes" if row["same"] else "NO")
    console.print(table)
    for row in checks:
        if row.get("same") is False:
            console.print(f"  {row['variant']} computes something else: its time is not comparable")


def show_case(case: dict) -> None:
    ours = next((row for row in case["rows"] if row["kind"] == "ours"), None)  # the fastest of them
    shape = f"T={case['tokens']} H={case['hidden']} V={case['vocab']} {case['dtype']}"
    table = _table(
        f"{shape}, {case['inputs']} inputs, N={case['n']:g}, mean F {case['mean_f']:.2f}",
        "variant",
        "ms",
        "passes",
        "best",
        "first",
        "peak MiB",
        "TFLOP/s",
        "of floor's rate",
        "x floor",
        f"x {ours['variant']}" if ours else "",
    )
    floor = case["floor"]
    table.add_row(
        "three matmuls",
        f"{floor['ms']:.1f}",
        _passes(floor),
        f"{floor['ms_min']:.1f}",
        "",
        "",
        f"{floor['tflops']:.3g}",
        "100 %",
        "1.00",
        "",
        end_section=True,
    )
    for row in case["rows"]:
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        against = f"{row['ms'] / ours['ms']:.2f}" if ours else ""
        table.add_row(
            row["variant"],
            f"{row['ms']:.1f}",
            _passes(row),
            f"{row['ms_min']:.1f}",
            f"{row['first_call_ms']:.0f}",
            peak,
            f"{row['tflops']:.3g}",
            f"{100 * row['of_floor_rate']:.0f} %",
            f"{row['over_floor']:.2f}",
            against,
        )
    console.print(table)
    _reasons(case["missing"])


def _passes(row: dict) -> str:
    return " / ".join(f"{ms:.1f}" for ms in row["ms_passes"])


def show_steps(result: dict) -> None:
    case = result["case"]
    table = _table(
        f"{case['name']}: {case['tokens']} tokens per step, V={case['vocab']}, N={result['settings']['n']:g}",
        "trainer",
        "ms per step",
        "passes",
        "best",
        "tokens/s",
        "peak MiB",
        "of matmul rate",
        "MFU",
        "head ms",
        "head's share",
    )
    for name, row in result["rows"].items():
        table.add_row(
            name,
            f"{row['ms']:.1f}",
            _passes(row),
            f"{row['ms_min']:.1f}",
            f"{row['tokens_per_second']:,.0f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            f"{100 * row['of_matmul_rate']:.0f} %",
            "" if row["mfu"] is None else f"{100 * row['mfu']:.0f} %",
            f"{row['head_ms']:.1f}",
            f"{100 * row['head_share']:.0f} %",
        )
    console.print(table)
    for what, end in (("medians", ""), ("best calls", "_best")):
        predicted = result[f"predicted_gain{end}"]
        told = "nothing (noise)" if predicted is None else f"{predicted:.3f}"
        gain = result[f"measured_gain{end}"]
        console.print(
            f"  gain over TRL by {what}: {gain:.3f}; the heads alone predict {told}", highlight=False
        )
    if result["loss_gap"] is not None:
        console.print(f"  the losses of the first block differ by at most {result['loss_gap']:.1e}")
