"""Rules of the sections `train` and `loss`: bounds, exclusive settings, and the fields of TRL's config
classes that `train.extra` may set.
"""

from __future__ import annotations

from posttrain.errors import did_you_mean
from posttrain.recipe.build import Problems
from posttrain.recipe.recipes import Recipe, SftRecipe, TrainRecipe
from posttrain.recipe.schema import Loss
from posttrain.recipe.trl_fields import config_fields

SET_WITH = {
    "output_dir": "output_dir",
    "data.max_length": "max_length",
    "data.padding_free": "packing padding_free packing_strategy eval_packing",
    "data.overlong": "truncation_mode",
    "data.shuffle": "train_sampling_strategy shuffle_dataset length_column_name",
    "data.template": "chat_template_path",
    "data.train_on": "assistant_only_loss completion_only_loss",
    "data": (
        "dataset_kwargs dataset_num_proc dataset_text_field remove_unused_columns pad_to_multiple_of "
        "use_cache"
    ),
    "loss": "loss_type label_smoothing_factor average_tokens_across_devices label_names router_aux_loss_coef",
    "train.global_batch_size": "gradient_accumulation_steps accelerator_config auto_find_batch_size",
    "train.dataloader_num_workers": (
        "dataloader_drop_last dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_in_order dataloader_multiprocessing_context"
    ),
    "train.activation_checkpointing": "gradient_checkpointing activation_offloading",
    "train.logging_steps": "logging_strategy logging_nan_inf_filter include_num_input_tokens_seen",
    "train.seed": "data_seed",
    "checkpoints": (
        "save_steps save_strategy save_total_limit save_only_model save_on_each_node "
        "load_best_model_at_end metric_for_best_model greater_is_better enable_jit_checkpoint"
    ),
    "evaluate": (
        "eval_steps eval_strategy eval_on_start eval_delay eval_accumulation_steps eval_do_concat_batches "
        "eval_use_gather_object bf16_full_eval fp16_full_eval prediction_loss_only batch_eval_metrics "
        "include_for_metrics do_train do_eval do_predict"
    ),
    "model.options": "model_init_kwargs trust_remote_code",
    "model.tokenizer": "eos_token pad_token",
    "the accelerate config of the launch": "fsdp fsdp_config deepspeed use_cpu",
    "rollout": (
        "num_generations num_generations_eval max_completion_length temperature top_p top_k min_p "
        "repetition_penalty generation_kwargs generation_batch_size steps_per_generation "
        "cache_implementation use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode "
        "vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port "
        "vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
        "vllm_tensor_parallel_size vllm_importance_sampling_correction vllm_importance_sampling_mode "
        "vllm_importance_sampling_cap vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min "
        "mask_truncated_completions log_completions log_multimodal num_completions_to_print "
        "log_unique_prompts log_completions_hub_repo ds3_gather_for_generation "
        "use_transformers_continuous_batching transformers_continuous_batching_config "
        "use_transformers_paged"
    ),
    "policy": (
        "num_iterations epsilon epsilon_high importance_sampling_level scale_rewards "
        "multi_objective_aggregation"
    ),
    "policy.kl": "use_bias_correction_kl",
    "policy.beta or preference.beta": "beta",
    "rewards": "reward_weights",
    "preference": (
        "label_smoothing ld_alpha loss_weights use_weighting precompute_ref_log_probs "
        "precompute_ref_batch_size f_divergence_type f_alpha_divergence_coef discopop_tau"
    ),
}
"""What decides a setting instead -> fields of TRL's config classes that `train.extra` therefore refuses."""
NOT_SUPPORTED = {
    "a run resumes from its run directory by itself": (
        "ignore_data_skip resume_from_checkpoint restore_callback_states_from_checkpoint"
    ),
    "sequence and tensor parallelism are not supported": "parallelism_config",
    "nothing is pushed to a hub; see `posttrain export`": (
        "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision"
    ),
    "policy.loss has no loss that uses it": (
        "sapo_temperature_neg sapo_temperature_pos vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos"
    ),
    "its state would be lost when a run resumes": (
        "use_adaptive_entropy entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target"
    ),
    "the reference model is never updated": "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
    "tools are not supported": "max_tool_calling_iterations chat_template_kwargs",
    "it is not tested with the fused head": (
        "torch_compile torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config "
        "cast_lm_head_to_fp32"
    ),
}
"""Reasons -> fields of TRL's config classes that no recipe can set."""
EXTRA_ELSEWHERE = {
    **{field: f"use {place} instead" for place, fields in SET_WITH.items() for field in fields.split()},
    **{field: reason for reason, fields in NOT_SUPPORTED.items() for field in fields.split()},
}
"""Fields of TRL's config classes that `train.extra` refuses -> what the user is told."""
EXPONENTS = ("power", "focal", "maxrl")
"""Losses that read `loss.exponent`."""


def train(recipe: TrainRecipe, problems: Problems) -> None:
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
        problems.require_above(f"train.{key}", getattr(t, key))
    for key in ("max_grad_norm", "weight_decay", "warmup_steps", "dataloader_num_workers"):
        problems.require_at_least(f"train.{key}", getattr(t, key))
    if t.bf16 and t.fp16:
        problems.add("train", "train.bf16 and train.fp16 cannot both be true")
    batch, micro = t.global_batch_size, t.per_device_train_batch_size
    if batch > 0 and micro > 0 and batch % micro:
        at = "train.global_batch_size"
        problems.add(at, f"{at} = {batch} is not a multiple of train.per_device_train_batch_size = {micro}")
    _extra(recipe, problems)


def _extra(recipe: TrainRecipe, problems: Problems) -> None:
    """Fields of TRL's config classes, by name; the classes themselves would import torch."""
    given = recipe.train.extra
    known = config_fields(recipe.stage) if given else frozenset()
    typed = set(recipe.train.__dataclass_fields__) - {"extra"}
    for key in given:
        at = f"train.extra.{key}"
        if key in typed:
            problems.add(at, f"{at}: {key} is a key of train itself; write train.{key}")
        elif key in EXTRA_ELSEWHERE and key in known:
            problems.add(at, f"{at} is not allowed: {EXTRA_ELSEWHERE[key]}")
        elif key not in known:
            problems.add(at, f"{at}: TRL's config has no field {key!r}{did_you_mean(key, known | typed)}")


def loss(recipe: Recipe, problems: Problems) -> None:
    if not isinstance(recipe, SftRecipe):
        return
    given = recipe.loss
    _exponents(given, problems)
    _segments(given, problems)
    if given.p == "external" and given.value == "exact":
        problems.add(
            "loss.value",
            "loss.p = external needs loss.value = surrogate: an exact loss exists only for the model's own p",
        )
    problems.require_share("loss.p_below", given.p_below)
    for key in ("weight_above", "z_loss", "skip_below"):
        problems.require_at_least(f"loss.{key}", getattr(given, key))
    problems.require_above("loss.chunk_rows", given.chunk_rows)
    if given.skip_below is not None:
        _skipping(given, given.skip_below, problems)


def _exponents(given: Loss, problems: Problems) -> None:
    """`n` and `exponent`, which only some losses read."""
    if given.name == "confidence_limited":
        problems.require_at_least("loss.n", given.n, 1)
    elif given.n != 1.0:
        at = "loss.n"
        problems.add(
            at, f"{at} = {given.n:g} is used only with loss.name = confidence_limited, not {given.name}"
        )
    at, value = "loss.exponent", given.exponent
    if given.name not in EXPONENTS:
        if value is not None:
            problems.add(at, f"{at} is used only with loss.name = {', '.join(EXPONENTS)}, not {given.name}")
        return
    if value is None:
        problems.add(at, f"loss.name = {given.name} needs {at}")
        return
    if given.name == "focal":
        problems.require_at_least(at, value)
    else:
        problems.require_above(at, value)
    if given.name == "maxrl" and not float(value).is_integer():
        problems.add(at, f"{at} = {value:g} must be a whole number: it is T of maxrl")


def _segments(given: Loss, problems: Problems) -> None:
    if given.segment == "answer" and not given.answer_marker:
        problems.add("loss.answer_marker", "loss.segment = answer needs loss.answer_marker, e.g. '#### '")
    if given.segment != "answer" and given.answer_marker:
        at = "loss.answer_marker"
        problems.add(at, f"{at} is used only with loss.segment = answer, not {given.segment}")
    if given.segment == "step" and not given.step_delimiter:
        at = "loss.step_delimiter"
        problems.add(at, f"{at} must not be empty with loss.segment = step")


def _skipping(given: Loss, skip_below: float, problems: Problems) -> None:
    at = "loss.skip_below"
    if given.z_loss:
        problems.add(at, f"{at} cannot be used with loss.z_loss: skipped tokens would lose their z-loss")
    gates = (given.p_below, given.weight_above) != (None, None)
    if given.name == "cross_entropy" and not gates:
        problems.add(
            at,
            f"{at} does nothing for cross_entropy without p_below or weight_above: all its weights are 1",
        )
    if skip_below >= 1 and given.name != "focal":
        problems.add(at, f"{at} = {skip_below:g} would skip every token: no weight is above 1")
