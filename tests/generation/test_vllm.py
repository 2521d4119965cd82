"""vLLM as a `Generator`: its settings, TRL's own code around an engine that is a fake, vLLM's classes."""

from __future__ import annotations

import copy
import inspect
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from trl.generation import vllm_generation
from trl.generation.vllm_generation import VLLMGeneration

from posttrain.data.template import Template
from posttrain.errors import RequestError, WorkError
from posttrain.generation import vllm_settings as settings
from posttrain.generation.base import Sampling
from posttrain.generation.vllm import VllmGenerator, vllm_generator
from posttrain.generation.vllm_server import compute_dtype, refuse_server
from posttrain.generation.vllm_settings import refuse_cpu, refuse_without_vllm, vllm_settings
from posttrain.recipe import RlvrRecipe
from posttrain.recipe.schema import Data, FromConfig, Lora, Model, Quantization, Source, Train
from posttrain.recipe.sections import Reward, TrainRollout, Vllm
from posttrain.rollouts.draw import Interrupted, RolloutSource
from posttrain.rollouts.groups import Prompt
from tests.tiny import build_model

END, STOP = 1, 7  # <eos> of builtin:digits, and 4, the end of turn of the template here


def recipe(
    backend: str = "vllm_colocate", model: Model | None = None, vllm: Vllm | None = None, **rollout
) -> RlvrRecipe:
    return RlvrRecipe(
        stage="rlvr",
        name="case",
        model=model or Model(init="org/model"),
        data=Data(sources=[Source(name="rows", path="rows.jsonl")], max_length=40),
        train=Train(learning_rate=1e-6, global_batch_size=16, max_steps=1),
        rewards=[Reward(name="math")],
        rollout=TrainRollout(
            backend=backend,
            max_new_tokens=24,
            temperature=0.8,
            top_p=0.9,
            batch_size=32,
            vllm=vllm or Vllm(),
            **rollout,
        ),
    )


def sections(asked: RlvrRecipe) -> tuple:
    return asked.model, asked.data.max_length, asked.rollout


def settings_of(asked: RlvrRecipe, **given) -> dict:
    return vllm_settings(*sections(asked), **given)


# ---- settings ----------------------------------------------------------------------------------------------


def test_settings_are_arguments_of_trl():
    known = inspect.signature(VLLMGeneration.__init__).parameters
    for backend in ("vllm_colocate", "vllm_server"):
        found = settings_of(recipe(backend), ranks=4, stops=[9, 3], positions=64)
        assert not set(found) - set(known)
        inspect.signature(VLLMGeneration.__init__).bind(None, "model", "accelerator", "tokenizer", **found)
        assert found["max_completion_length"] == 24 and found["logprobs"] == 0
        assert (found["temperature"], found["top_p"]) == (0.8, 0.9)
        assert found["generation_kwargs"] == {"stop_token_ids": [3, 9]}


def test_each_mode_has_its_own_settings():
    vllm = Vllm(gpu_memory_utilization=0.5, tensor_parallel_size=2, enable_sleep_mode=True)
    found = settings_of(recipe(vllm=vllm), ranks=4)
    assert found["mode"] == "colocate" and "server_base_url" not in found
    assert found["gpu_memory_utilization"] == 0.5 and found["enable_sleep_mode"] is True
    assert (found["max_model_length"], found["max_num_seqs"]) == (40 + 24, 32 * 2)
    served = Vllm(server_base_url="http://gpu7:9000", server_timeout=9.0)
    found = settings_of(recipe("vllm_server", vllm=served), ranks=4)
    assert found["mode"] == "server" and "gpu_memory_utilization" not in found
    assert (found["server_base_url"], found["server_timeout"]) == ("http://gpu7:9000", 9.0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (recipe("transformers"), "rollout.backend = transformers does not use vLLM"),
        (recipe(vllm=Vllm(tensor_parallel_size=3)), "= 3 does not divide the 4 rank"),
        (recipe(vllm=Vllm(gpu_memory_utilization=0)), "gpu_memory_utilization = 0 must be in"),
        (
            recipe("vllm_server", vllm=Vllm(enable_sleep_mode=True)),
            "enable_sleep_mode has no effect on vllm_server",
        ),
        (recipe(model=Model(from_config=FromConfig("llama"))), "not model.from_config"),
        (
            recipe(model=Model(init="a/b", lora=Lora(), quantization=Quantization())),
            "cannot be used with model.quantization: merging the adapter",
        ),
        (
            recipe("vllm_server", Model(init="a/b", lora=Lora(), dtype="bfloat16")),
            "cannot be used with model.lora and model.dtype = bfloat16",
        ),
        (
            recipe(model=Model(init="a/b", lora=Lora(options={"trainable_token_indices": [3]}))),
            "cannot take model.lora.options.trainable_token_indices",
        ),
    ],
)
def test_settings_that_cannot_work(asked, words):
    with pytest.raises(RequestError, match=words):
        settings_of(asked, ranks=4)


def test_more_than_the_models_positions():
    assert settings_of(recipe(), ranks=1, positions=64)
    with pytest.raises(RequestError, match="= 64 is above the model's maximum, 63"):
        settings_of(recipe(), ranks=1, positions=63)


def test_without_vllm_the_request_is_wrong(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    refuse_without_vllm("transformers")
    with pytest.raises(RequestError, match=r"vllm_server needs vLLM.*posttrain\[vllm\]"):
        refuse_without_vllm("vllm_server")


def test_vllm_needs_a_gpu():
    refuse_cpu("transformers", "this machine has no GPU")
    refuse_cpu("vllm_server", None)
    for backend in ("vllm_server", "vllm_colocate"):
        with pytest.raises(RequestError, match=f"{backend} needs a GPU for the policy .this machine has no"):
            refuse_cpu(backend, "this machine has no GPU")


# ---- what a server says of itself --------------------------------------------------------------------------

SHAPE = {"model_type": "llama", "hidden_size": 32, "total_num_hidden_layers": 2, "vocab_size": 23}
SAYS = {"logprobs_mode": "processed_logprobs", "dtype": "torch.float32", "max_model_len": 64}


def compare(llama, shape: dict | None = None, vllm: Vllm | None = None, **says) -> None:
    info = {"model_config": SAYS | says | {"model_arch_config": SHAPE | (shape or {})}}
    refuse_server("http://gpu7", info, llama.config, "float32", 64, vllm or Vllm())


def test_a_server_with_the_policys_model(llama):
    compare(llama)
    compare(llama, {"model_type": "llava", "text_model_type": "llama"})  # the text part of another
    refuse_server("http://gpu7", {}, llama.config, "float32", 64, Vllm())  # it says nothing


@pytest.mark.parametrize(
    ("shape", "says", "words"),
    [
        ({"model_type": "qwen2", "text_model_type": "qwen2"}, {}, "serves a qwen2 model"),
        ({"vocab_size": 24}, {}, "serves a model with a vocabulary of 24 rows, but the policy has 23"),
        (
            {},
            {"max_model_len": 63},
            "takes at most 63 tokens, .* = 64; restart it with --max-model-len 64",
        ),
        ({}, {"dtype": "torch.float16"}, "computes in float16, but the policy in float32"),
        ({}, {"logprobs_mode": "raw_logprobs"}, "returns raw_logprobs, which do not include the temperature"),
    ],
)
def test_a_server_that_is_not_the_policys(llama, shape, says, words):
    with pytest.raises(RequestError, match=f"the vLLM server at http://gpu7 {words}") as caught:
        compare(llama, shape, **says)
    assert len(str(caught.value).splitlines()) == 1


def test_without_a_comparison_log_probabilities_may_be_any(llama):
    other = {"logprobs_mode": "raw_logprobs", "dtype": "torch.bfloat16"}
    compare(llama, vllm=Vllm(correction="none", max_logp_diff=None), **other)
    for half in (Vllm(correction="none"), Vllm(max_logp_diff=None)):
        with pytest.raises(RequestError, match="returns raw_logprobs"):
            compare(llama, vllm=half, **other)


def test_the_dtype_in_which_the_policy_computes(llama):
    names = {m: compute_dtype(llama, SimpleNamespace(mixed_precision=m)) for m in ("no", "bf16", "fp16")}
    assert names == {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


# ---- TRL's code around an engine that is not there
# -----------------------------------------------------------


class Engine:
    """Answers like vLLM: prompt [a, b] sample j becomes a, b, j and, where j is even, an end token."""

    def __init__(self, **built):
        self.built, self.asked, self.loaded = built, [], []
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.loaded.extend))
        driver = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=driver))

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked.append((prompts, sampling_params))
        seen: dict[tuple, int] = {}
        outputs = []
        for prompt in prompts:
            ids = tuple(prompt["prompt_token_ids"])
            j = seen[ids] = seen.get(ids, -1) + 1
            tokens = reply(list(ids), j)
            log_probs = [{t: SimpleNamespace(rank=5, logprob=-0.5 * (i + 1))} for i, t in enumerate(tokens)]
            log_probs[0][tokens[0]].logprob = math.nan
            one = SimpleNamespace(token_ids=tuple(tokens), logprobs=log_probs)
            outputs.append(SimpleNamespace(prompt_token_ids=list(ids), outputs=[one]))
        return outputs


class Client:
    """Answers like TRL's client of a server."""

    def __init__(self, **built):
        self.built, self.asked, self.updates = built, [], []

    def init_communicator(self, device):
        pass

    def get_server_info(self):
        return {"model_config": SAYS}

    def update_named_params(self, metadata, params):
        self.updates.append((len(metadata), len(list(params))))

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, features, n, **sampling):
        self.asked.append((prompts, {"n": n, **sampling}))
        ids = [reply(prompt, j) for prompt in prompts for j in range(n)]
        log_probs = [[[None], *([[-0.5 * (i + 1)] for i in range(1, len(s))])] for s in ids]
        return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": log_probs}


def reply(prompt: list[int], j: int) -> list[int]:
    return [*prompt, 3 + j, *([[END], [], [STOP], []][j % 4])]


@pytest.fixture
def start(monkeypatch, digits, tmp_path):
    """`start(backend, model, **)`: a generator on TRL's class, whose calls of vLLM go to the fakes above."""
    monkeypatch.setattr(settings, "find_spec", lambda name: True)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda: True)
    monkeypatch.setattr(vllm_generation, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(vllm_generation, "ensure_master_addr_port", lambda: None)
    monkeypatch.setattr(vllm_generation, "LLM", Engine, raising=False)
    monkeypatch.setattr(vllm_generation, "VLLMClient", Client)
    monkeypatch.setattr(vllm_generation, "SamplingParams", SimpleNamespace, raising=False)
    monkeypatch.setattr(vllm_generation, "gather_object", lambda mine: mine)
    monkeypatch.setattr(vllm_generation, "broadcast_object_list", lambda objects, from_process: None)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # TRL sets them for an engine of its own process
        monkeypatch.setenv(name, "0")
    accelerator = SimpleNamespace(
        num_processes=1,
        process_index=0,
        local_process_index=0,
        is_main_process=True,
        mixed_precision="no",
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
        state=SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None),
    )

    def begin(backend: str, model=None, rows: int = len(digits), **rollout):
        model = model or build_model("llama", len(digits))
        model.name_or_path = str(tmp_path)
        replaced = copy.copy(model.config)
        replaced.vocab_size = rows
        replaced.save_pretrained(tmp_path)
        parts = SimpleNamespace(tokenizer=digits, template=Template("t", "", digits, (), "4"))
        state = SimpleNamespace(global_step=0)
        trainer = SimpleNamespace(model=model, accelerator=accelerator, parts=parts, state=state)
        generator = vllm_generator(trainer, *sections(recipe(backend, **rollout)))
        generator.trainer = trainer
        return generator

    return begin


SAMPLING = Sampling(temperature=1.3, top_p=1.0, max_new_tokens=11)
PROMPTS = [[4, 5], [6], [8, 9, 10]]


@pytest.mark.parametrize("backend", ["vllm_colocate", "vllm_server"])
def test_completions_keep_the_order_and_how_they_ended(start, digits, backend):
    generator = start(backend)
    found = generator.generate(PROMPTS, 4, SAMPLING, seed=5)
    assert [(r.prompt_index, r.sample_index) for r in found] == [(p, s) for p in range(3) for s in range(4)]
    for completion in found:
        ids = reply(PROMPTS[completion.prompt_index], completion.sample_index)
        ended = completion.sample_index % 2 == 0
        assert completion.token_ids == ids and completion.finish == ("stop" if ended else "length")
        assert completion.text == digits.decode(ids[:-1] if ended else ids)
        assert math.isnan(completion.log_probs[0])
        assert completion.log_probs[1:] == [-0.5 * (i + 1) for i in range(1, len(ids))]


def test_colocated_every_copy_of_a_prompt_is_a_request_without_a_seed(start):
    engine = (generator := start("vllm_colocate")).engine.llm
    generator.generate(PROMPTS, 2, SAMPLING, seed=5)
    ((prompts, params),) = engine.asked
    assert [p["prompt_token_ids"] for p in prompts] == [p for p in PROMPTS for _ in range(2)]
    assert (params.n, params.temperature, params.top_p, params.max_tokens) == (1, 1.3, 1.0, 11)
    assert params.stop_token_ids == [END, STOP] and params.logprobs == 0
    assert not hasattr(params, "seed")  # it would make the copies one text
    assert engine.built["logprobs_mode"] == "processed_logprobs"
    assert engine.built["model"] == generator.trainer.model.name_or_path
    assert engine.built["max_model_len"] == 64


def test_a_server_is_asked_for_each_prompt_once(start):
    generator = start("vllm_server")
    generator.generate(PROMPTS, 2, SAMPLING, seed=5)
    ((prompts, sampling),) = generator.engine.vllm_client.asked
    assert prompts == PROMPTS and sampling["n"] == 2 and sampling["max_tokens"] == 11
    assert sampling["generation_kwargs"] == {"stop_token_ids": [END, STOP]}


def test_ranks_with_fewer_prompts_ask_as_many_as_the_others(start, monkeypatch):
    import accelerate.utils

    generator = start("vllm_server")
    generator.engine.accelerator.num_processes = 2
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: [*mine, 3])
    for prompts in ([[4, 5]], []):
        found = generator.generate(prompts, 2, SAMPLING, seed=0)
        assert [r.prompt_index for r in found] == [0] * (2 * len(prompts))
        asked = generator.engine.vllm_client.asked.pop()[0]
        assert asked == (prompts or [[END]]) + [prompts[0] if prompts else [END]] * 2


@pytest.mark.parametrize("backend", ["vllm_colocate", "vllm_server"])
def test_weights_are_copied_once_a_step(start, digits, backend):
    model = build_model("llama", len(digits))
    generator = start(backend, model)
    for step, prompts in ((0, PROMPTS), (0, PROMPTS), (1, [])):  # also where this rank asks nothing
        generator.trainer.state.global_step = step
        generator.generate(prompts, 2, SAMPLING, seed=0)
    names = [name for name, _ in model.named_parameters()]
    if backend == "vllm_server":
        assert generator.engine.vllm_client.updates == [(len(names), len(names))] * 2
    else:
        assert [name for name, _ in generator.engine.llm.loaded] == names * 2
    assert generator.synced == 1


def test_a_vocabulary_that_has_grown_does_not_fit(start):
    with pytest.raises(RequestError, match=r"has 19 rows, but 23 .*; train an SFT stage"):
        start("vllm_colocate", rows=19)
    start("vllm_server", rows=19)  # the server has its own


def test_what_a_request_may_not_be(start):
    generator = start("vllm_colocate")
    for prompts, n, sampling, words in (
        ([[]], 1, SAMPLING, "prompt 0 is empty"),
        ([[4], [4] * 64], 1, SAMPLING, "prompt 1 has 64 tokens; vLLM's limit is 64"),
        ([[4]], 2, replace(SAMPLING, temperature=0), "temperature 0 is greedy"),
    ):
        with pytest.raises(RequestError, match=words):
            generator.generate(prompts, n, sampling, seed=0)
    assert generator.generate([], 4, SAMPLING, seed=0) == [] and not generator.engine.llm.asked


def test_a_server_that_fails_is_work_that_failed(start, monkeypatch):
    generator = start("vllm_server")

    def fail(*args, **kwargs):
        raise Exception("Request failed: 500")  # as TRL's client does

    monkeypatch.setattr(generator.engine.vllm_client, "generate", fail)
    with pytest.raises(WorkError, match=r"server at http://localhost:8000: Request failed: 500"):
        generator.generate(PROMPTS, 2, SAMPLING, seed=0)
    for log_probs, words in (
        (None, "returned no log-probabilities"),
        ([[[-1.0]]], "returned 1 completions; 6 were requested"),
    ):
        short = {"prompt_ids": [[4]], "completion_ids": [[5]], "logprobs": log_probs}
        monkeypatch.setattr(generator.engine.vllm_client, "generate", lambda short=short, **kwargs: short)
        with pytest.raises(WorkError, match=words):
            generator.generate(PROMPTS, 2, SAMPLING, seed=0)


@pytest.mark.parametrize(
    ("backend", "name"),
    [("vllm_colocate", "vLLM"), ("vllm_server", "the vLLM server at http://localhost:8000")],
)
def test_every_answer_is_checked(start, monkeypatch, backend, name):
    """Of the prompt [4, 5], sample 1 is the first with 23 among its tokens, one above the vocabulary."""
    monkeypatch.setitem(globals(), "reply", lambda prompt, j: [4, 5, 22 + j])
    with pytest.raises(WorkError, match=f"^{name} answered prompt 0, sample 1, with the token id 23, but"):
        start(backend, vllm=Vllm()).generate(PROMPTS, 2, SAMPLING, seed=0)


def test_weights_that_a_server_does_not_take(start, monkeypatch):
    generator = start("vllm_server")

    def fail(*args):
        raise Exception("Request failed: 500, shapes differ")

    monkeypatch.setattr(generator.engine.vllm_client, "update_named_params", fail)
    with pytest.raises(WorkError, match="server at http://localhost:8000: .* shapes differ"):
        generator.generate(PROMPTS, 2, SAMPLING, seed=0)
    assert generator.synced is None


def test_an_engine_loads_the_base_of_an_adapter(start, tmp_path):
    """A policy merged from an adapter on an adapter has its folder's name, which vLLM cannot load."""
    base, first = tmp_path / "base", tmp_path / "first"
    model = build_model("llama", 23)
    model.config.save_pretrained(base)
    for folder, below in ((first, base), (tmp_path, first)):
        folder.mkdir(exist_ok=True)
        config = {"base_model_name_or_path": str(below), "peft_type": "LORA"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = start("vllm_colocate", model)
    assert generator.engine.llm.built["model"] == str(base)
    assert model.name_or_path == str(tmp_path), "only while the engine is built"


@pytest.mark.parametrize(("rank", "ranks", "share"), [(0, 2, [0, 2]), (1, 2, [1]), (3, 4, [])])
def test_a_round_of_rollouts_is_one_call_on_each_rank(rank, ranks, share):
    """Every rank makes the same number of collective calls, whatever its share and whichever was stopped."""
    calls = []

    def generate(prompts, n, sampling, seed, streams):
        calls.append(list(streams))
        return []

    prompts = [Prompt(i, "rows", i, [4], None) for i in range(3)]
    asked = recipe(num_generations=32).rollout  # a group is a whole batch_size
    source = RolloutSource(
        prompts, asked, None, 0, rank, ranks, gather=lambda mine: [mine], stop_requested=lambda: True
    )
    with pytest.raises(Interrupted):
        source.draw(lambda: nullcontext(SimpleNamespace(generate=generate)), 3)
    assert calls == [share] and source.position == 0


# ---- vLLM itself -------------------------------------------------------------------------------------------


def test_vllm_knows_every_argument(start):
    """Its own classes, wherever the package imports; no GPU."""
    params = pytest.importorskip("vllm.sampling_params", reason="vLLM is not installed").SamplingParams
    from vllm.engine.arg_utils import EngineArgs

    generator = start("vllm_colocate", vllm=Vllm(gpu_memory_utilization=0.4))
    assert not set(generator.engine.llm.built) - set(EngineArgs.__dataclass_fields__)
    generator.generate(PROMPTS, 2, SAMPLING, seed=0)
    made = params(**vars(generator.engine.llm.asked[0][1]))
    assert made.all_stop_token_ids >= {STOP} and made.max_tokens == 11 and made.logprobs == 0


@pytest.mark.gpu
def test_a_colocated_engine_follows_the_weights(tmp_path, digits):
    """Log-probabilities are the model's after temperature, before and after the weights change."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM

    digits.save_pretrained(tmp_path)
    shape = LlamaConfig(
        vocab_size=len(digits),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(shape).bfloat16().save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).cuda()
    asked = recipe(vllm=Vllm(gpu_memory_utilization=0.3))
    step = [0]
    generator = VllmGenerator.start(*sections(asked), model, Accelerator(), digits, step=lambda: step[0])
    sampling = Sampling(temperature=0.7, max_new_tokens=16)
    for step[0] in (0, 1):
        found = generator.generate(PROMPTS, 8, sampling, seed=0)
        assert len({tuple(r.token_ids) for r in found}) > 12
        for completion in found:
            prompt = PROMPTS[completion.prompt_index]
            ids = torch.tensor([prompt + completion.token_ids], device="cuda")
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / sampling.temperature
            expected = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
            theirs = torch.tensor(completion.log_probs, device="cuda")
            assert (theirs - expected).abs().max() < 0.1  # bf16, two implementations
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(-1.0)
