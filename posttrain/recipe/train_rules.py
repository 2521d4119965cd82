"""What the `train:` section may not say: bounds, batch arithmetic, and fields of TRL's config by name."""

from __future__ import annotations

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems, positive
from posttrain.recipe.recipes import Recipe
from posttrain.recipe.trl_fields import config_fields

_BY_PLACE = {
    "output_dir": "output_dir",
    "data.max_length": "max_length",
    "data.padding_free": "packing padding_free packing_strategy eval_packing",
    "data.overlong": "truncation_mode",
    "data.shuffle": "train_sampling_strategy shuffle_dataset length_column_name",
    "data.template": "chat_template_path",
    "data.train_on": "assistant_only_loss completion_only_loss",
    "data": "dataset_kwargs dataset_num_proc dataset_text_field remove_unused_columns pad_to_multiple_of use_cache",
    "loss": "loss_type label_smoothing_factor average_tokens_across_devices label_names router_aux_loss_coef",
    "train.global_batch_size": "gradient_accumulation_steps accelerator_config auto_find_batch_size",
    "train.dataloader_num_workers": "dataloader_drop_last dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_in_order dataloader_multiprocessing_context",
    "train.activation_checkpointing": "gradient_checkpointing activation_offloading",
    "train.logging_steps": "logging_strategy logging_nan_inf_filter include_num_input_tokens_seen",
    "train.seed": "data_seed",
    "checkpoints": "save_steps save_strategy save_total_limit save_only_model save_on_each_node load_best_model_at_end "
    "metric_for_best_model greater_is_better enable_jit_checkpoint",
    "the run directory: a run resumes by itself": "ignore_data_skip resume_from_checkpoint "
    "restore_callback_states_from_checkpoint",
    "evaluate": "eval_steps eval_strategy eval_on_start eval_delay eval_accumulation_steps eval_do_concat_batches "
    "eval_use_gather_object bf16_full_eval fp16_full_eval prediction_loss_only batch_eval_metrics "
    "include_for_metrics do_train do_eval do_predict",
    "model.options": "model_init_kwargs trust_remote_code",
    "model.tokenizer": "eos_token pad_token",
    "the accelerate config of the launch": "fsdp fsdp_config deepspeed use_cpu",
    "no recipe: sequence and tensor parallelism are not here": "parallelism_config",
    "no recipe: nothing is pushed anywhere; see `posttrain export`": "push_to_hub hub_model_id hub_token hub_strategy "
    "hub_private_repo hub_always_push hub_revision",
    "rollout": "num_generations num_generations_eval max_completion_length temperature top_p top_k min_p repetition_penalty "
    "generation_kwargs generation_batch_size steps_per_generation cache_implementation use_vllm vllm_mode "
    "vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port "
    "vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length vllm_tensor_parallel_size "
    "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_cap "
    "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min mask_truncated_completions log_completions "
    "log_multimodal num_completions_to_print log_unique_prompts log_completions_hub_repo ds3_gather_for_generation "
    "use_transformers_continuous_batching transformers_continuous_batching_config use_transformers_paged",
    "policy": "num_iterations epsilon epsilon_high importance_sampling_level scale_rewards multi_objective_aggregation",
    "policy.beta, or preference.beta": "beta",
    "policy.loss, which has no such loss": "sapo_temperature_neg sapo_temperature_pos vespo_k_neg vespo_k_pos vespo_lambda_neg "
    "vespo_lambda_pos",
    "no recipe: its state would be lost when a run resumes": "use_adaptive_entropy entropy_coef_delta entropy_coef_max "
    "entropy_coef_min entropy_target",
    "rewards": "reward_weights",
    "preference": "label_smoothing ld_alpha loss_weights use_weighting precompute_ref_log_probs precompute_ref_batch_size "
    "f_divergence_type f_alpha_divergence_coef discopop_tau",
    "no recipe: the reference stays where it is": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "no recipe: tools are not here": "max_tool_calling_iterations chat_template_kwargs",
    "no recipe: not tried with the fused head": "torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
    "liger_kernel_config cast_lm_head_to_fp32",
}
EXTRA_ELSEWHERE = {name: place for place, names in _BY_PLACE.items() for name in names.split()}
"""Fields of the TRL config that posttrain decides itself, and where it is said."""


def train(recipe: Recipe, problems: Problems) -> None:
    t = recipe.train
    if (t.num_train_epochs is None) == (t.max_steps is None):
        problems.add("train", "train needs exactly one of num_train_epochs and max_steps")
    for key in (
        "learning_rate",
        "global_batch_size",
        "per_device_train_batch_size",
        "num_train_epochs",
        "max_steps",
        "logging_steps",
        "adam_epsilon",
    ):
        positive(problems, f"train.{key}", getattr(t, key))
    for key in ("max_grad_norm", "weight_decay", "warmup_steps", "dataloader_num_workers"):
        positive(problems, f"train.{key}", getattr(t, key), 0, strict=False)
    if t.bf16 and t.fp16:
        problems.add("train", "train.bf16 and train.fp16 exclude each other")
    if (
        t.global_batch_size > 0
        and t.per_device_train_batch_size > 0
        and t.global_batch_size % t.per_device_train_batch_size
    ):
        problems.add(
            "train.global_batch_size",
            f"train.global_batch_size = {t.global_batch_size} is not a multiple of "
            f"per_device_train_batch_size = {t.per_device_train_batch_size}",
        )
    known = config_fields(recipe.stage) if t.extra else frozenset()
    typed = set(t.__dataclass_fields__) - {"extra"}
    for key in t.extra:
        path = f"train.extra.{key}"
        if key in typed:
            problems.add(path, f"{path}: {key} is a field of train itself; write train.{key}")
        elif key in EXTRA_ELSEWHERE and key in known:
            problems.add(path, f"{path}: posttrain decides {key}; it is said in {EXTRA_ELSEWHERE[key]}")
        elif key not in known:
            problems.add(path, f"{path}: TRL's config has no field {key!r}{did_you_mean(key, known | typed)}")
