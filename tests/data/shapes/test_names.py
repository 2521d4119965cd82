"""Which names may say what is trained: decided by the name alone."""

from __future__ import annotations

import pytest

from posttrain.data.shapes.names import FLAGS, like_a_flag
from posttrain.data.shapes.rows import to_example
from posttrain.recipe.schema import Source


@pytest.mark.parametrize(
    "name",
    [
        *(
            "loss_mask",
            "lossMask",
            "train_mask",
            "label_mask",
            "labels_mask",
            "assistant_masks",
            "target_mask",
        ),
        *("completion_mask", "response_mask", "sft_loss_mask", "mask", "Masked", "is_masked", "token_mask"),
        *("is_trained", "trainable", "should_train", "use_loss", "weigth", "wieght", "Weight", "weights"),
        *("sample_weight", "sample_weights", "example_weight", "token_weights", "loss_weight"),
    ],
)
def test_what_may_say_what_is_trained(name):
    assert like_a_flag(name)


@pytest.mark.parametrize(
    "name",
    [
        *FLAGS,
        *("face_mask", "has_mask", "wears_mask", "mask_id", "image_mask", "mask_ratio", "unmasked"),
        *("attention_mask", "special_tokens_mask", "padding_mask", "pad_mask"),
        *("weight_decay", "weight_kg", "training_step", "loss_scale", "gloss", "strain", "class_weights"),
    ],
)
def test_other_names(name):
    assert not like_a_flag(name)


def test_a_column_of_another_mask_is_not_refused():
    for value in (7, 1, 0, True, [0, 1]):
        row = {"prompt": "p", "completion": "c", "face_mask": value, "mask_id": value}
        assert to_example(row, Source(name="s", path="f"), "f:1").unused == ("face_mask", "mask_id")
