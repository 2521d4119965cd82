"""Commands on a run that is there: whole, in progress, or damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from posttrain.rundir.reading import RunData

ADDITION = (
    "evaluate.tasks=[{name: arithmetic, options: "
    "{generator: addition, digits: 1, train_size: 10, test_size: 20}}]"
)
TASK = ("--task", "arithmetic", "options.digits=1", "options.train_size=10", "options.test_size=20")
STEPS = (
    "train.max_steps=4",
    "checkpoints.save_steps=2",
    "train.optim=adamw_torch",
    "train.learning_rate=1e-3",
    ADDITION,
)


def weights(run: Path, step: int = 4) -> Path:
    return run / "checkpoints" / f"step-{step:06d}" / "model.safetensors"


# ---- show, report ------------------------------------------------------------------------------------------


def test_show(call, run_copy):
    answer = call("show", run_copy)
    assert answer.code == 0
    for text in ("finished", "step 4 of 4", "step-000000, step-000002, step-000004", "pass@256"):
        assert text in answer.out
    facts = json.loads(call("show", run_copy, "--json").out)
    assert (facts["status"], facts["step"], facts["steps"]) == ("finished", 4, 4)
    assert {s["checkpoint"] for s in facts["scores"]} == {"step-000000", "step-000002", "step-000004"}


@pytest.mark.slow
def test_report(call, run_copy, tmp_path):
    answer = call("report", run_copy)
    assert answer.code == 0 and answer.out == f"report: {run_copy}/report.html\n"
    page = tmp_path / "ein bericht ü.html"
    assert call("report", run_copy, run_copy, "--out", page).code == 0
    assert "</html>" in page.read_text()
    call("report", run_copy, "--out", "/dev/null/x.html").refuses("cannot write", code=1)


@pytest.mark.parametrize("command", ["show", "report"])
def test_no_such_run(call, run_copy, command):
    call(command, "csae").refuses("csae: no such run (did you mean 'case'?)")
    call(command, run_copy.parent).refuses("contains runs but is not a run itself", "case")
    call(command, run_copy / "samples").refuses("not a run directory")


@pytest.mark.slow
def test_a_run_in_progress(call, run_copy):
    info = json.loads((run_copy / "run.json").read_text())
    (run_copy / "run.json").write_text(json.dumps(info | {"status": "running", "steps": 400}))
    with (run_copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "split": "tra')
    answer = call("show", run_copy)
    assert "running" in answer.out and "step 4 of 400" in answer.out
    assert call("report", run_copy).code == 0
    assert "400" in (run_copy / "report.html").read_text()


DAMAGE = {
    "scores.jsonl": (None, "scores.jsonl:3"),
    "run.json": ("{oops", "run.json"),
    "mixture.json": ("{oops", "mixture.json"),
    "recipe.yaml": ("a: [", "recipe.yaml"),
    "metrics.jsonl": ("x\n{}\n", "metrics.jsonl:1"),
}


def damage(run: Path, name: str) -> str:
    text, said = DAMAGE[name]
    if text is None:
        lines = (run / name).read_text().splitlines()
        text = "\n".join([*lines[:2], "{broken", *lines[3:]]) + "\n"
    (run / name).write_text(text)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_what_cannot_be_read_is_named_and_the_rest_is_shown(call, run_copy, name):
    said = damage(run_copy, name)
    answer = call("show", run_copy)
    assert answer.code == 0 and said in answer.out
    assert "step-000004" in answer.out
    assert call("report", run_copy).code == 0


@pytest.mark.parametrize("name", ["scores.jsonl", "run.json", "recipe.yaml"])
def test_a_damaged_run_is_not_written_to(call, recipe, run_copy, name):
    said = damage(run_copy, name)
    before = (run_copy / name).read_bytes()
    answer = call("run", recipe, *STEPS, "train.learning_rate=2e-3")
    answer.refuses(
        said.partition(":")[0] if name != "scores.jsonl" else "another recipe",
        code=1 if name == "run.json" else 2,
    )
    assert (run_copy / name).read_bytes() == before
    if name == "scores.jsonl":
        call("eval", run_copy, *TASK, "limit=3").refuses(said, code=1)


# ---- run again ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_recipe_again_does_nothing(call, recipe, run_copy):
    before = weights(run_copy).stat().st_mtime_ns, (run_copy / "scores.jsonl").read_text()
    # the copy was made elsewhere: its recipe names another output_dir, which is no part of what is learned
    answer = call("run", recipe, *STEPS)
    assert answer.code == 0, answer
    assert before == (weights(run_copy).stat().st_mtime_ns, (run_copy / "scores.jsonl").read_text())


def test_another_recipe_is_refused(call, recipe, run_copy):
    call("run", recipe, *STEPS, "train.learning_rate=2e-3").refuses(
        "contains a run of another recipe", "train.learning_rate: 0.001 -> 0.002"
    )


@pytest.mark.slow
def test_a_recipe_that_failed_before_its_first_step_may_be_corrected(call, recipe, run_copy):
    """A folder whose run has neither a line of metrics nor a checkpoint holds nothing to protect."""
    (run_copy / "metrics.jsonl").unlink()
    shutil.rmtree(run_copy / "checkpoints")
    shutil.rmtree(run_copy / "samples")
    (run_copy / "scores.jsonl").unlink()
    assert call("run", recipe, "train.max_steps=1").code == 0
    info = json.loads((run_copy / "run.json").read_text())
    assert (info["status"], info["steps"]) == ("finished", 1)
    assert "max_steps: 1\n" in (run_copy / "recipe.yaml").read_text()


def test_two_processes_on_one_run(call, recipe, run_copy):
    from posttrain.rundir.directory import RunDir

    other = RunDir(run_copy)
    other.lock()
    try:
        call("run", recipe, *STEPS).refuses(
            f"is being written by process {os.getpid()} of ", "on host", "since"
        )
        assert call("show", run_copy).code == 0
    finally:
        other.unlock()


@pytest.mark.slow
def test_a_run_through_a_link(call, recipe, run_copy):
    """Resumed, shown and reported like the directory that it stands for."""
    shutil.rmtree(weights(run_copy, 4).parent)
    link = run_copy.with_name("link")
    link.symlink_to(run_copy, target_is_directory=True)
    answer = call("run", recipe, *STEPS, "name=link")
    assert answer.code == 0 and weights(run_copy, 4).is_file() and link.is_symlink()
    steps = [json.loads(line)["step"] for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4], "from the checkpoint of step 2, whose metrics go on"
    for path in (link, run_copy):
        shown = call("show", path)
        assert shown.code == 0 and "step 4 of 4" in shown.out
        assert call("report", path, "--out", f"{path.name}.html").code == 0
    parts = [Path(f"{name}.html").read_text() for name in ("link", "case")]
    assert "step 4" in parts[0].lower() and len(parts[0]) == pytest.approx(len(parts[1]), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth"])
def test_a_damaged_newest_checkpoint(call, recipe, run_copy, name):
    """Nothing is skipped in silence: the folder is named, and removing it is what helps."""
    shutil.rmtree(weights(run_copy, 4).parent)
    file = weights(run_copy, 2).with_name(name)
    file.write_bytes(file.read_bytes()[:500])
    call("run", recipe, *STEPS).refuses(
        f"can be resumed: step-000002: {name} has 500 bytes", "remove the folder"
    )
    info = json.loads((run_copy / "run.json").read_text())
    assert info["status"] == "failed" and "has 500 bytes" in info["error"]
    shutil.rmtree(file.parent)
    assert call("run", recipe, *STEPS).code == 0
    assert weights(run_copy, 4).is_file()


# ---- eval --------------------------------------------------------------------------------------------------


def test_eval_of_a_run_and_again(call, run_copy, data_dir):
    asked = (
        "--task",
        "gsm8k",
        "limit=8",
        "samples=2",
        "k=[1,2]",
        "max_new_tokens=8",
        f"path={data_dir}/gsm8k/test.jsonl",
    )
    answer = call("eval", run_copy, *asked)
    assert answer.code == 0, answer
    assert "gsm8k of step-000004, 8 problems" in answer.out
    assert "pass@2" in answer.out and "…" not in answer.out
    before = (run_copy / "scores.jsonl").read_text()
    again = call("eval", run_copy, *asked, "--json")
    assert (run_copy / "scores.jsonl").read_text() == before
    rows = json.loads(again.out)
    assert {"pass@1", "pass@2", "truncated"} <= {r["metric"] for r in rows}
    assert {r["n"] for r in rows} == {8}
    fewer = json.loads(call("eval", run_copy, *asked, "limit=7", "--json").out)
    assert {r["n"] for r in fewer} == {7}  # other settings are other scores
    assert json.loads(call("eval", run_copy, *asked, "--json").out) == rows


def test_eval_with_other_settings_stands_beside_the_runs_own(call, run_copy):
    """Its rows say what differs, its samples have a file of their own, and the run keeps its face."""
    own = RunData.load(run_copy).rows("arithmetic")
    samples = (run_copy / "samples" / "step-000004" / "arithmetic.jsonl").read_text()
    for asked, differs in (("temperature=1.5", {"temperature": 1.5}), ("limit=3", {"limit": 3})):
        rows = json.loads(call("eval", run_copy, asked, "--json").out)
        assert {str(row["differs"]) for row in rows} == {str(differs)}
        beside = run_copy / "samples" / "step-000004" / f"arithmetic.{rows[0]['settings']}.jsonl"
        assert len(beside.read_text().splitlines()) == rows[0]["n"]
    assert call("eval", run_copy, "temperature=0").code == 2
    run = RunData.load(run_copy)
    assert run.rows("arithmetic") == own and len(run.settings("arithmetic")) == 3
    assert (run_copy / "samples" / "step-000004" / "arithmetic.jsonl").read_text() == samples
    shown = call("show", run_copy).out
    assert "arithmetic was also scored with limit 3 (step 4), which is not compared with the rest." in shown


def test_eval_renders_prompts_as_the_run_does(call, run_copy, monkeypatch):
    """Options of the template are written into the one that the checkpoints save."""
    from posttrain.evaluate import checkpoint

    used, file = [], run_copy / "recipe.yaml"
    monkeypatch.setattr(checkpoint, "score_checkpoint", lambda *given, **_: used.append(given[4]))
    text = file.read_text()
    assert "template_options: {}" in text
    for options in ("{}", "{mode: short}"):
        file.write_text(text.replace("template_options: {}", f"template_options: {options}"))
        call("eval", run_copy, *TASK)
    assert used == ["chatml", "tokenizer"]


def test_eval_of_a_model_that_is_no_run(call, run_copy, tiny, tmp_path):
    answer = call("eval", tiny, *TASK, "--out", tmp_path / "some where")
    assert answer.code == 0 and "arithmetic of model, 20 problems" in answer.out
    assert (tmp_path / "some where" / "scores.jsonl").is_file()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tiny"], ["belongs to no run with tasks; name one with --task"]),
        (["tiny", "--task", "gsm8q"], ["did you mean 'gsm8k'"]),
        (["tiny", *TASK, "limt=3"], ["unknown key 'limt' (did you mean 'limit'?)"]),
        (["tiny", *TASK, "limit=x"], ["limit must be a whole number, not 'x'"]),
        (["tiny", *TASK, "limit=["], ["limit must be a whole number"]),
        (["tiny", *TASK, "limit=0"], ["limit = 0 must be at least 1"]),
        (["tiny", *TASK, "k.7=2"], ["'k.7=2'", "k has 1 item, numbered from 0"]),
        (["tiny", *TASK, "limit"], ["written key=value"]),
        (["tiny", "--task", "gsm8k", "path=rows.jsonl", "k=[1,2]"], ["needs at least 2 samples"]),
        (["tiny", "--task", "gsm8k", "path=/nope.jsonl"], ["/nope.jsonl"]),
        (["tiny", *TASK, "--out", "case.yaml/x"], ["case.yaml is a file"]),
        (["./nope", *TASK], ["./nope: no such run or path"]),
        (["nope", *TASK], ["nope", "no such folder here"]),
        (["case@best:gsm8k/pass@1", *TASK], ["has no score gsm8k/pass@1"]),
        (["case@step-000003", *TASK], ["step-000000, step-000002, step-000004"]),
    ],
)
def test_wrong_eval(call, recipe, run_copy, tiny, argv, words):
    argv = [tiny if word == "tiny" else word for word in argv]
    call("eval", *argv).refuses(*words)


# ---- export, chat ------------------------------------------------------------------------------------------


def test_export(call, run_copy, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "new folder" / "modell ü"
    answer = call("export", f"{run_copy}@best:arithmetic/nll", out, "--dtype", "bfloat16")
    assert answer.code == 0 and f"exported: {out} (largest difference of a logit " in answer.out
    assert str(AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype) == "torch.bfloat16"
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert "arithmetic" in (out / "README.md").read_text()
    call("export", run_copy, out).refuses("exists already")
    call("export", run_copy, "/dev/null/x").refuses("cannot be written", code=1)


def test_chat_reads_what_is_piped(call, run_copy):
    stdin = "Hello ü \udcff\n/new\nAgain\n\nnot read\n"
    answer = call("chat", run_copy, "--max-new-tokens", "3", "--temperature", "0", stdin=stdin)
    assert answer.code == 0
    assert answer.out.count("\n") == 2  # two replies of at most three bytes
    assert "empty line or Ctrl-D" in answer.err
    long = call("chat", run_copy, "--max-new-tokens", "3", stdin="x" * 600 + "\n")
    assert long.code == 0 and "fills the model's 512 positions" in long.err


HALF = {
    "COMPLETE": ["half-written checkpoint (no COMPLETE marker)"],
    "config.json": ["is damaged: config.json is missing"],
    "tokenizer.json": ["is damaged: tokenizer.json is missing"],
    "model.safetensors": ["is damaged: model.safetensors has 5000 bytes"],
}


@pytest.mark.parametrize("name", HALF)
def test_half_a_checkpoint(call, run_copy, recipe, name):
    file = weights(run_copy).with_name(name)
    if name == "model.safetensors":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        file.unlink()
    place = file.parent
    call("export", place, "out").refuses(*HALF[name])
    assert not Path("out").exists() and not Path(".tmp-out").exists()
    call("chat", place, stdin="x\n").refuses(*HALF[name])
    call("eval", place, *TASK, "limit=7").refuses(*HALF[name])
    words = HALF[name] if name != "config.json" else ["contains no model (no config.json)"]
    call("run", recipe, "name=next", f"model.init={place}").refuses(*words)


def test_a_half_written_newest_checkpoint_is_passed_over(call, run_copy, caplog):
    weights(run_copy).with_name("COMPLETE").unlink()
    assert call("export", run_copy, "out").code == 0
    assert "step-000004 is half-written" in caplog.text
    assert Path("out/model.safetensors").read_bytes() == weights(run_copy, 2).read_bytes()


def test_a_run_without_a_checkpoint(call, run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    for argv in (["export", run_copy, "out"], ["chat", run_copy], ["eval", run_copy]):
        call(*argv).refuses("has no complete checkpoint yet")


# ---- a full disk -------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path):
    """A file system of 100 KiB: the tiny model does not fit."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(call, recipe, run_copy, full, tiny):
    call("export", run_copy, full / "out").refuses("cannot be written", "the disk is full", code=1)
    assert not list(full.iterdir())
    call("run", recipe, f"output_dir={full}", "train.max_steps=1").refuses(
        "step-000001 could not be written: the disk is full; run the same command to start over", code=1
    )
    assert not list((full / "case" / "checkpoints").iterdir())
    with pytest.raises(OSError), open(full / "fill", "ab", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)
    call("report", run_copy, "--out", full / "r.html").refuses("the disk is full", code=1)
    call("eval", tiny, *TASK, "--out", full / "e").refuses("the disk is full", code=1)
    call("run", recipe, f"output_dir={full}/x").refuses("the disk is full", code=1)


def test_out_in_the_home_folder(call, run_copy, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("report", run_copy, "--out", "~/page.html").code == 0
    assert call("eval", tiny, *TASK, "--out", "~/scored").code == 0
    assert (tmp_path / "page.html").is_file() and (tmp_path / "scored").is_dir()
