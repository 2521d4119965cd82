"""What the configs of small models have beside the sizes of tiny.py, by what is special in a family."""

from __future__ import annotations

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
"""Of most families."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
"""Mixtral, gpt-oss, Granite: another name."""
SHARED_EXPERT = {"shared_expert_intermediate_size": 16}
LATENT = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "num_key_value_heads": 4},
    **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    **{"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "n_routed_experts": 4,
}
"""DeepSeek: attention through a smaller space, a dense layer first, an expert that all tokens share."""
LINEAR = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8},
}
"""Qwen 3 Next: linear attention."""
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
"""Falcon H1: a state space beside attention."""
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}
