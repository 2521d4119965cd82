"""Which families keep the documents of one row apart, and that the check finds it out at any scale of
weights, in any type, with any attention.

The verdicts come from elsewhere: a document alone has the logits that it has in a row behind another one,
with weights so large that a leak shows.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator

import pytest
import torch

from posttrain.errors import RequestError
from posttrain.models.documents import refuse_leaking_documents
from posttrain.models.self_check import KEEPS_DOCUMENTS_APART
from tests.families import EXPERTS, GPT2, LINEAR, LOCAL_EXPERTS, SHARED_EXPERT
from tests.flash import IMPLEMENTATION

V = 64
SIZES = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "is_decoder": True},
    **{**EXPERTS, **LOCAL_EXPERTS, **SHARED_EXPERT, **LINEAR, **GPT2, "n_positions": 128, "rotary_dim": 4},
    **{"ffn_dim": 48, "word_embed_proj_dim": 32, "lru_width": 32, "attention_heads": 4, "num_layers": 2},
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "state_size": 8},
    **{"d_model": 32, "n_heads": 4, "n_layers": 2},
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": V},
}
"""A small model of any family: what its config has of these."""
APART = [
    *KEEPS_DOCUMENTS_APART,
    *("apertus", "arcee", "bitnet", "codegen", "falcon", "gemma4_text", "glm4_moe", "aria_text"),
    *("gpt_bigcode", "ctrl"),
]
LEAKING = [
    *("bloom", "falcon_h1", "lfm2", "opt", "mamba", "recurrent_gemma", "qwen3_next", "biogpt", "xglm", "mpt"),
    *("falcon_mamba", "afmoe", "gpt_oss"),
]
OTHERWISE = ("gpt_bigcode", "opt", "biogpt", "afmoe")
"""The reverse under flash attention, which goes by position ids where eager and SDPA attention have masks."""
LARGE = 0.3
NO_FLASH = ("falcon", "gemma4_text", "gpt_oss", "ctrl")
"""A name that transformers 5.24 does not import; heads of 512; a kernel of the hub; attention of its own."""
MORE = {"lfm2": {"layer_types": ["conv", "full_attention"]}}


def model_of(kind: str, attention: str, scale: float | None = None, dtype=torch.float32):
    """Random weights as the family draws them, or all matrices with standard deviation `scale`."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    cls = CONFIG_MAPPING[kind]
    known = set(inspect.signature(cls.__init__).parameters)
    known |= {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    same = {name for name in cls.attribute_map if cls.attribute_map[name] in known}
    sizes = {name: value for name, value in SIZES.items() if name in known - same}
    config = cls(**sizes, **MORE.get(kind, {}))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    if scale is not None:
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, scale)
    return model.to(dtype).eval()


@torch.no_grad()
def difference(model) -> float:
    """Largest difference of a document's logits, alone and behind another one, to the largest logit."""
    worst = 0.0
    for seed, length in ((0, 9), (1, 11), (2, 17)):
        draw = torch.Generator().manual_seed(seed)
        before, ids = (torch.randint(1, V, (1, n), generator=draw) for n in (length, 14))
        positions = torch.cat([torch.arange(length), torch.arange(14)])[None]
        row = torch.cat([before, ids], 1)
        packed = model(input_ids=row, position_ids=positions, use_cache=False).logits[:, length:]
        alone = model(input_ids=ids, use_cache=False).logits
        worst = max(worst, float((packed - alone).abs().max() / alone.abs().max()))
    return worst


def accepts(model, mixed: str = "no") -> bool:
    try:
        refuse_leaking_documents(model, mixed)
    except RequestError as error:
        assert "lets documents in one row attend to each other" in str(error)
        return False
    assert not model.get_input_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())
    return True


def implementations(kind: str) -> list[str]:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    cls = AutoModelForCausalLM._model_mapping[CONFIG_MAPPING[kind]]
    flash = cls._supports_flash_attn and kind not in NO_FLASH
    found = {"eager": True, "sdpa": cls._supports_sdpa, IMPLEMENTATION: flash}
    return [name for name, supported in found.items() if supported]


def verdicts(kind: str, flash: str) -> Iterator[tuple[str, bool]]:
    """Attention -> whether documents are apart under it, by `difference`."""
    for attention in implementations(kind):
        half = attention == flash
        found = difference(model_of(kind, attention, LARGE, torch.bfloat16 if half else torch.float32))
        apart = found < 1e-5
        assert apart == ((kind in APART) != (half and kind in OTHERWISE)), (attention, found)
        assert apart or found > 1e-2, (attention, found)
        yield attention, apart


@pytest.mark.parametrize("kind", [*APART, *LEAKING])
def test_the_verdict_is_that_of_a_document_alone(kind, flash):
    """With weights as the family draws them, of which a leak is smallest."""
    for attention, apart in verdicts(kind, flash):
        dtype = torch.bfloat16 if attention == flash else torch.float32
        assert accepts(model_of(kind, attention, dtype=dtype)) == apart, attention


EVERY_KIND_OF_LEAK = ("llama", "gpt_bigcode", "bloom", "lfm2", "mamba", "gpt_oss")
"""None; under flash attention only; a bias by place; a convolution; a state; experts."""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in EVERY_KIND_OF_LEAK else pytest.mark.exhaustive)
        for kind in [*APART, *LEAKING]
    ],
)
def test_it_is_the_same_at_any_scale_and_in_any_type(kind, flash):
    for attention, apart in verdicts(kind, flash):
        for scale in (None, LARGE, 2.0):
            assert accepts(model_of(kind, attention, scale, torch.bfloat16)) == apart, (attention, scale)
            if attention != flash:
                assert accepts(model_of(kind, attention, scale)) == apart, (attention, scale)
        assert accepts(model_of(kind, attention), "bf16") == apart, attention


def test_what_cannot_be_measured_passes_by_family():
    """Sharded weights; weights on a CPU with flash attention: eager attention may have another verdict."""
    for kind in ("llama", "gpt_bigcode"):
        sharded, elsewhere = model_of(kind, "eager"), model_of(kind, "eager")
        next(sharded.parameters()).ds_id = 0
        elsewhere.config._attn_implementation_internal = "flash_attention_2"
        for model in (sharded, elsewhere):
            if kind == "llama":
                refuse_leaking_documents(model, "bf16")
                continue
            with pytest.raises(RequestError, match="gpt_bigcode keeps documents apart cannot be measured"):
                refuse_leaking_documents(model, "bf16")


def test_the_family_of_a_nested_config_is_that_of_its_text_model():
    from transformers import Gemma3Config

    model = model_of("gemma3_text", "eager")
    model.config = Gemma3Config(text_config=model.config)
    next(model.parameters()).ds_id = 0
    refuse_leaking_documents(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_count_on_are_found(dtype):
    """No gradient shows them: the second document is apart, but not what it is alone."""
    model = model_of("gpt2", "sdpa", dtype=dtype)
    assert accepts(model)
    table = model.transformer.wpe
    table.forward = lambda at: torch.nn.functional.embedding(torch.arange(at.shape[1])[None], table.weight)
    assert not accepts(model)


def test_logits_that_are_not_finite_cannot_be_measured():
    model = model_of("llama", "sdpa")
    model.get_output_embeddings().weight.data.fill_(torch.inf)
    with pytest.raises(RequestError, match="the logits of llama are not finite"):
        refuse_leaking_documents(model)
