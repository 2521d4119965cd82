"""The rewards of an RLVR recipe are checked before anything is loaded: names, options, columns, answers."""

from __future__ import annotations

import json

import pytest

from posttrain.base.process import why_on_cpu
from posttrain.recipe import load, recipe_hash
from tests.commands.prepared import PROMPTS
from tests.tiny import tiny_model

SETTINGS = """\
train: {learning_rate: 0.5, max_steps: 2, global_batch_size: 16}
rollout: {max_new_tokens: 64}
"""
ROW = {"prompt": "1 + 1?", "answer": "2"}


@pytest.fixture
def rlvr(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.yaml"
    path.write_text(PROMPTS.format(stage="rlvr", out=tmp_path, rows="rows.jsonl") + SETTINGS)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return path


def test_a_recipe_with_rewards_passes_check(rlvr, call):
    answer = call("check", rlvr, "--json")
    assert answer.code == 0, answer
    assert json.loads(answer.out)["recipe"]["rewards"][0]["name"] == "math"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rewards.0.name=maht"], ["rewards[0]: unknown reward 'maht' (did you mean 'math'?)"]),
        (
            ["rewards.0.options.mood=x"],
            ["rewards[0]: reward 'math': unknown option 'mood' (did you mean 'mode'?)"],
        ),
        (["rewards.0.options.mode=gsm"], ["mode = 'gsm' (did you mean 'gsm8k'?)"]),
        (["rewards.0.wight=2"], ["rewards[0].wight", "did you mean 'weight'"]),
        (["rewards.0.weight=.nan"], ["rewards[0].weight"]),
        (["rewards=[]"], ["rewards is empty; add at least one reward"]),
        (["success={reward: maths}"], ["success.reward = 'maths' is not a verifier", "did you mean 'math'"]),
        (["success={reward: math, at_least: 2}"], ["success.at_least = 2.0 must be between 0 and 1"]),
        (["rewards=[{name: code}]"], ["rows.jsonl:1: reward 'code' needs column 'tests' or 'stdin_tests'"]),
        (["data.sources.0.columns.answer=gold"], ["data.sources[0]", "needs column 'answer'"]),
        (["rewards=[{name: posttrain.types:Nothing}]"], ["posttrain.types has no 'Nothing'"]),
    ],
)
def test_wrong_rewards(rlvr, call, overrides, words):
    call("check", rlvr, *overrides).refuses(*words)


@pytest.mark.parametrize("answer", [None, "", " "])
def test_a_first_row_that_is_dropped_does_not_decide(rlvr, call, tmp_path, answer):
    rows = "".join(json.dumps(ROW | {"answer": each}) + "\n" for each in (answer, ROW["answer"]))
    (tmp_path / "rows.jsonl").write_text(rows)
    assert call("check", rlvr).code == 0


def test_a_gold_answer_that_cannot_be_judged_names_its_row(rlvr, call, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"answer": ""}) + "\n")
    call("check", rlvr).refuses("rows.jsonl:1: reward 'math'")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["rollout.num_generations=6"],
            ["rollout.num_generations = 6 does not divide the batch", "global_batch_size = 16"],
        ),
        (
            ["rollout={num_generations: 6, steps_per_generation: 2}"],
            ["num_generations = 6 does not divide", "= 2"],
        ),
        (["rollout.num_generations=1"], ["rollout.num_generations"]),
        (
            ["rollout.truncated_reward=-1"],
            ["truncated_reward is used only with rollout.truncated = penalise, not train"],
        ),
        (
            ["rollout={truncated: mask, truncated_reward: -1}"],
            ["used only with rollout.truncated = penalise, not mask"],
        ),
        (["rollout.truncated=penalize"], ["rollout.truncated", "did you mean 'penalise'"]),
        (["rollout.temperature=0"], ["rollout.temperature"]),
        (["rollout.top_p=1.5"], ["rollout.top_p = 1.5 must be in (0, 1]"]),
        (["rollout.max_failed=2"], ["rollout.max_failed"]),
        (["rollout.refill=-1"], ["rollout.refill"]),
        (["rollout.steps_per_generation=0"], ["rollout.steps_per_generation"]),
        (["data.overlong=truncate"], ["data.overlong = truncate would cut off the prompt"]),
        (
            ["rollout.max_new_tokens=400"],
            ["data.max_length = 128 and rollout.max_new_tokens = 400", "512 positions"],
        ),
        (["policy={advantage: pass_at_k, k: 17}"], ["policy.k = 17 is above rollout.num_generations = 16"]),
        (["policy={advantage: pkpo, k: 0}"], ["policy.k"]),
        (
            ["policy={advantage: confidence, k: 33}"],
            ["policy.k = 33 (N of confidence) is above 2 x rollout.num_generations"],
        ),
        (
            ["policy={advantage: maxrl, k: 2}"],
            ["policy.k is used only with policy.advantage = pkpo", "not maxrl"],
        ),
        (["policy={loss: cispo, epsilon: 0.1}"], ["policy.epsilon cannot be used with policy.loss = cispo"]),
        (
            ["guard.on_spike=stop"],
            ["guard.on_spike = stop cannot be used in an rlvr stage, whose loss varies around 0"],
        ),
        (["policy.reference=other"], ["policy.reference is used only with policy.beta above 0"]),
        (["policy={beta: 0.1, reference: runs/none}"], ["policy.reference: runs/none: no such run or path"]),
        (["policy.beta=-1"], ["policy.beta"]),
        (["policy.lose=grpo"], ["policy.lose", "did you mean 'loss'"]),
        *(
            ([f"{key}=1"], [f"command line: {key}: loops over tools and turns are not supported: sampling"])
            for key in ("rollout.tools", "rollout.environment", "rollout.max_turns", "tools", "environment")
        ),
        (["evaluate.tasks=[{name: gsm8k, tools: []}]"], ["loops over tools and turns are not supported"]),
        (["train.extra={max_tool_calling_iterations: 2}"], ["sampling stops at the first call"]),
        (["train.extra={chat_template_kwargs: {}}"], ["use data.template_options instead"]),
        (
            ["train.extra={beta: 0.1}"],
            ["train.extra.beta is not allowed: use policy.beta instead"],
        ),
        (["train.extra={use_adaptive_entropy: true}"], ["its state would be lost when a run resumes"]),
        (
            ["train.extra={num_generations: 8}"],
            ["train.extra.num_generations is not allowed: use rollout.num_generations instead"],
        ),
        (
            ["evaluate.heldout={share: 0.1, every_steps: 1}"],
            [
                "evaluate.heldout measures a loss on rows, which an rlvr stage does not have; "
                "use evaluate.tasks"
            ],
        ),
        (
            ["data.sources.0.columns.prompt=promt"],
            ["rows.jsonl:1", "no column 'promt' (columns.prompt) (did you mean 'prompt'?)"],
        ),
    ],
)
def test_settings_that_exclude_each_other_are_refused(rlvr, call, overrides, words):
    call("check", rlvr, *overrides).refuses(*words)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["rollouts: 1 prompt x 16 completions every step"]),
        (
            [
                "rollout={num_generations: 8, steps_per_generation: 2, max_new_tokens: 64}",
                "policy.num_iterations=2",
                "checkpoints.save_steps=5",
                "train.max_steps=9",
            ],
            [
                "rollouts: 4 prompts x 8 completions every 4 steps",
                "checkpoints: every 8 steps, not 5",
                "steps: 12",
            ],
        ),
    ],
)
def test_check_says_what_a_batch_of_rollouts_is(rlvr, call, overrides, words):
    answer = call("check", rlvr, *overrides)
    assert answer.code == 0, answer
    for word in words:
        assert word in answer.out


def test_a_row_that_names_a_verifier_the_recipe_lacks(rlvr, call, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | {"kind": ["maths"]}) + "\n")
    call("check", rlvr, "data.sources.0.columns.rewards=kind").refuses(
        "rows.jsonl:1", "names 'maths', which is not a verifier of this recipe (did you mean 'math'?)"
    )


@pytest.mark.parametrize(
    ("row", "override", "said"),
    [
        (
            {"question": "1 + 1?", "ground_truth": "2"},
            "answer: ground_truth",
            "needs column 'answer'; the row has ground_truth, question. "
            "Set columns: {answer: ground_truth} on the source",
        ),
        (
            {"prompt": "1 + 1?", "q": 2},
            "answer: q",
            "needs column 'answer'; the row has prompt, q. Set columns: {answer: q} on the source",
        ),
        (
            {"prompt": "1 + 1?", "source": "s", "reward_model": {"style": "rule", "ground_truth": "2"}},
            None,
            "needs column 'answer'; the row has prompt, reward_model, source. Rewards read columns only: "
            "write 'ground_truth' of 'reward_model' as a column 'answer'",
        ),
    ],
)
def test_where_the_answer_stands_under_another_name(rlvr, call, tmp_path, row, override, said):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    call("check", rlvr).refuses(f"rows.jsonl:1: reward 'math' {said}")
    if override:
        assert call("check", rlvr, f"data.sources.0.columns={{{override}}}").code == 0
    else:
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"answer": "2"}) + "\n")
        assert call("check", rlvr).code == 0


def test_a_missing_list_says_what_is_in_it(rlvr, call):
    rlvr.write_text(rlvr.read_text().replace("rewards:", "reward:"))
    call("check", rlvr).refuses("rewards is missing; it takes a list of sections with the keys name, ")


LONG = {"prompt": "x" * 200, "answer": "2"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            [],
            [
                "1 of 4 rows (25.0%) is dropped",
                "more than data.max_drop_share",
                "rows.jsonl:3: overlong",
                "raise data.max_length (now 128)",
            ],
        ),
        (["data.overlong=error"], ["rows.jsonl:3: the prompt has", "more than data.max_length = 128"]),
    ],
)
def test_a_prompt_that_is_too_long(rlvr, call, tmp_path, overrides, words):
    """Named before a model is made: nothing of a run is left behind."""
    lines = [ROW, ROW, LONG, ROW]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    call("rlvr", rlvr, *overrides).refuses(*words)
    assert not (tmp_path / "case").exists()


def test_a_reference_with_another_tokenizer(rlvr, call, tmp_path):
    other = tiny_model(tmp_path / "other")
    file = other / "tokenizer.json"
    vocabulary = json.loads(file.read_text())
    added = {a["content"]: a["id"] for a in vocabulary["added_tokens"]}
    kept = {k: v for k, v in vocabulary["model"]["vocab"].items() if k not in added}
    (a, x), (b, y) = list(kept.items())[70:72]
    vocabulary["model"]["vocab"] |= {a: y, b: x}
    file.write_text(json.dumps(vocabulary))
    call("rlvr", rlvr, f"policy={{beta: 0.1, reference: {other}}}").refuses(
        f"policy.reference = '{other}' has another tokenizer", "is token"
    )
    assert not (tmp_path / "case").exists()


# ---- vLLM needs a GPU --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["vllm_server", "vllm_colocate"])
@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides all GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides all GPUs"),
        ({"CUDA_VISIBLE_DEVICES": "0", "ACCELERATE_USE_CPU": "true"}, "accelerate is told to use the CPU"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_vllm_with_a_policy_on_a_cpu(rlvr, call, tmp_path, monkeypatch, backend, environment, why):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    model = f"model={{init: {tiny_model(tmp_path / 'model')}, from_config: null, tokenizer: null}}"
    asked = ("check", rlvr, model, f"rollout.backend={backend}")
    if why is None:
        assert call(*asked).code == 0
    else:
        call(*asked).refuses(f"rollout.backend = {backend} needs a GPU for the policy ({why})", "login node")


@pytest.mark.skipif(why_on_cpu() is None, reason="there is a GPU")
def test_vllm_on_a_machine_without_a_gpu(rlvr, call, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    call("check", rlvr, "rollout.backend=vllm_server").refuses("(this machine has no GPU)")


@pytest.mark.parametrize("value", ["0", "-0.1", ".inf"])
def test_the_bound_on_the_samplers_difference(rlvr, call, value):
    call("check", rlvr, f"rollout.vllm.max_logp_diff={value}").refuses("max_logp_diff", "above 0")


def test_a_run_goes_on_with_another_bound_and_another_address(rlvr):
    vllm = "rollout.vllm={max_logp_diff: %s, server_base_url: '%s', server_timeout: %s}"
    same = [[], [vllm % ("null", "http://gpu7:8000", 9)], ["rollout.vllm.max_logp_diff=0.3"]]
    assert len({recipe_hash(load(rlvr, overrides)) for overrides in same}) == 1
    assert recipe_hash(load(rlvr, ["rollout.vllm.correction=none"])) != recipe_hash(load(rlvr))
