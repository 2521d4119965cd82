"""Both benchmark scripts at toy size, as a user starts them, and what is in their result files.

The two run at the same time, each in a child process, once for all tests. What is checked is that they
run, that nothing is dropped silently and that derived numbers follow from the measured ones; no speed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import pytest

NOT_INSTALLED = "not installed: pip install posttrain[bench]"
MODULES = {
    "liger-scaled": "liger_kernel",
    "liger-flce": "liger_kernel",
    "liger-flce-rows": "liger_kernel",
    "cce": "cut_cross_entropy",
    "cce-filter": "cut_cross_entropy",
    "quack-ce": "quack",
    "liger-cute-ce": "liger_kernel",
}


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(root, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("results")
    environment = os.environ | {
        "CI": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": "",
    }
    running = {}
    for name in ("head", "sft_step"):
        script = root / "kernels" / "benchmarks" / f"{name}.py"
        command = [sys.executable, str(script), "--toy", "--json", str(folder / f"{name}.json")]
        running[name] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
    found = {}
    for name, child in running.items():
        printed, _ = child.communicate(timeout=300)
        assert child.returncode == 0, printed[-4000:]
        found[name] = json.loads((folder / f"{name}.json").read_text())
        found[f"{name}_printed"] = printed
    return SimpleNamespace(**found)


def check_stamp(result: dict) -> None:
    assert result["date"].endswith("Z")
    assert result["machine"]["cpu"] and result["machine"]["cores"] >= 1
    assert result["versions"]["torch"] and result["versions"]["python"]
    assert {"liger-kernel", "cut-cross-entropy", "triton"} <= set(result["versions"])
    assert result["settings"]["toy"] is True
    assert "commit" in result


def check_times(row: dict) -> None:
    """Two passes, their median and spread; the median of the calls is between those of the passes."""
    low, high = sorted(row["ms_passes"])
    assert 0 < row["ms_min"] <= row["ms"]
    assert row["ms_min"] <= low
    assert row["spread"] == pytest.approx((high - low) / row["ms"], rel=1e-4, abs=1e-5)


# ---- the head ----


def test_head_names_machine_and_versions(results):
    assert results.head["kind"] == "head"
    check_stamp(results.head)


def test_every_variant_is_measured_or_has_a_reason(results):
    """In the table and in the comparison with fp64."""
    names = set(results.head["variants"])
    assert {"triton", "torch", "mode-b", "plain", "compile", "trl", *MODULES} <= names
    (case,) = results.head["cases"]
    for measured, missing in (
        ({row["variant"] for row in case["rows"]}, set(case["missing"])),
        (
            {row["variant"] for row in results.head["checks"] if "errors" in row},
            {row["variant"] for row in results.head["checks"] if "reason" in row},
        ),
    ):
        assert measured | missing == names
        assert not measured & missing
        assert {"torch", "mode-b", "plain", "trl"} <= measured
    assert all(case["missing"].values())


def test_peers_that_are_not_installed_say_so(results):
    import importlib.util

    (case,) = results.head["cases"]
    for name, module in MODULES.items():
        absent = importlib.util.find_spec(module) is None
        assert (case["missing"].get(name) == NOT_INSTALLED) == absent, name
    assert case["missing"]["triton"] == "needs a GPU"


def test_every_variant_computes_the_same_loss(results):
    for row in results.head["checks"]:
        if "errors" in row:
            assert set(row["errors"]) == {"loss", "d_hidden", "d_weight"}
            assert all(0 <= gap < 3e-5 for gap in row["errors"].values()), row
            assert row["same"] is True


def test_head_ratios_follow_from_the_times(results):
    (case,) = results.head["cases"]
    floor = case["floor"]
    check_times(floor)
    flops = 6 * case["tokens"] * case["hidden"] * case["vocab"]
    by_name = {row["variant"]: row for row in case["rows"]}
    for name, row in by_name.items():
        check_times(row)
        assert row["calls"] == 2 * results.head["settings"]["repeats"]
        assert row["first_call_ms"] > 0
        assert row["tflops"] == pytest.approx(flops / row["ms"] / 1e9, rel=1e-4)
        assert row["over_floor"] == pytest.approx(row["ms"] / floor["ms"], rel=1e-4)
        assert row["of_floor_rate"] == pytest.approx(floor["ms"] / row["ms"], rel=1e-4)
        if row["kind"] == "ours":
            others = {other for other in by_name if other != name}
            assert set(row["faster_than"]) == others
            for other in others:
                assert row["faster_than"][other] == pytest.approx(by_name[other]["ms"] / row["ms"], rel=1e-4)
        else:
            assert "faster_than" not in row


def test_head_inputs_leave_a_weight_to_be_learned(results):
    """Planted targets: F is neither 1 everywhere, as on random inputs, nor gone."""
    (case,) = results.head["cases"]
    assert 0.05 < case["mean_f"] < 0.95


def test_head_peak_memory_is_that_of_a_child(results):
    (case,) = results.head["cases"]
    peaks = {row["variant"]: row["peak_mib"] for row in case["rows"]}
    assert peaks["torch"] > 0 and peaks["plain"] > 0
    # 256 x 1000 fp32 logits alone are 1 MiB, and plain keeps their gradient too
    assert peaks["plain"] > 1.5


def test_the_table_is_printed(results):
    for word in ("three matmuls", "peak MiB", "relative error against fp64", NOT_INSTALLED):
        if word != NOT_INSTALLED or NOT_INSTALLED in results.head["cases"][0]["missing"].values():
            assert word in results.head_printed


# ---- complete steps ----


def test_steps_of_both_trainers(results):
    result = results.sft_step
    assert result["kind"] == "sft-step"
    check_stamp(result)
    settings, case = result["settings"], result["case"]
    assert set(result["rows"]) == {"posttrain", "trl"}
    for name, row in result["rows"].items():
        check_times(row)
        assert row["calls"] == settings["blocks"] * (settings["steps"] - 1)
        assert row["tokens_per_second"] == pytest.approx(1e3 * case["tokens"] / row["ms"], rel=1e-4)
        assert row["head_ms"] == result["heads"][name]["ms"]
        assert row["head_share"] == pytest.approx(row["head_ms"] / row["ms"], rel=1e-4)
        rate = row["tokens_per_second"] * result["flops_per_token"]
        peak = 1e12 * result["heads"]["matmuls"]["tflops"]
        assert row["of_matmul_rate"] == pytest.approx(rate / peak, rel=1e-4)


def test_both_trainers_did_the_same_training(results):
    """Same weights, rows and arguments: the losses of the first steps are the same."""
    assert results.sft_step["loss_gap"] < 1e-5


@pytest.mark.parametrize(("key", "end"), [("ms", ""), ("ms_min", "_best")])
def test_gains_follow_from_the_times(results, key, end):
    result = results.sft_step
    trl, ours = (result["rows"][name][key] for name in ("trl", "posttrain"))
    heads = {name: head[key] for name, head in result["heads"].items()}
    assert result[f"measured_gain{end}"] == pytest.approx(trl / ours, rel=1e-4)
    if heads["trl"] >= trl:  # on a busy machine
        assert result[f"predicted_gain{end}"] is None
    else:
        predicted = trl / (trl - heads["trl"] + heads["posttrain"])
        assert result[f"predicted_gain{end}"] == pytest.approx(predicted, rel=1e-3)
    assert "gain over TRL" in results.sft_step_printed


# ---- the result files of the tree ----


def test_result_files_are_what_the_scripts_write(root):
    """Every number in results/ comes from a run that records where and when it was."""
    files = sorted((root / "kernels" / "benchmarks" / "results").glob("*.json"))
    for path in files:
        result = json.loads(path.read_text())
        assert result["kind"] in ("head", "sft-step") and path.name.startswith(result["kind"])
        assert result["machine"]["cpu"] and result["versions"]["torch"] and result["commit"]
        assert not result["settings"]["toy"]
        rows = [row for case in result.get("cases", ()) for row in case["rows"]]
        rows += result.get("rows", {}).values()
        assert rows
        for row in rows:
            assert row["ms_min"] <= statistics.median(row["ms_passes"])
