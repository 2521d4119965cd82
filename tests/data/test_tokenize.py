"""Tokens and labels, worked by hand, for every style of template and odd tokenizers."""

from __future__ import annotations

import pytest

from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from tests.data.tokens import (
    BPE,
    BYTES,
    MARKED,
    STYLES,
    TALK,
    bpe_tokenizer,
    by_hand,
    byte_tokenizer,
    check,
    ids_of,
    pair,
    row_of,
    trained,
    wrap,
)


@pytest.mark.parametrize("style", STYLES)
def test_exact_masks_of_the_four_styles(style):
    row = row_of(TALK, style)
    check(row, MARKED[style])
    sizes = [len("Hé 😀".encode()) + 1, 1]  # the end of turn is one token
    assert row.segment_ids[row.segment_ids > 0].tolist() == [1] * sizes[0] + [2] * sizes[1]
    assert (row.p, row.truncated) == (None, False)


@pytest.mark.parametrize("style", STYLES)
def test_train_on_last_and_all(style):
    text = MARKED[style].replace("[", "").replace("]", "")
    first, _, rest = MARKED[style].partition("]")
    check(row_of(TALK, style, train_on="last"), first.replace("[", "") + rest)
    row = row_of(TALK, style, train_on="all")
    ids = ids_of(text)
    assert row.input_ids.tolist() == ids and row.labels.tolist() == [-100, *ids[1:]]
    assert row.segment_ids.tolist() == [0] + [1] * (len(ids) - 1)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("muted", [(2,), (4,), (2, 4)])
def test_a_reply_of_weight_0_is_not_trained_with_all(style, muted):
    talk = [turn | {"trained": False} if k in muted else turn for k, turn in enumerate(TALK)]
    ids, labels = by_hand(MARKED[style])
    masked, turn = [], 0
    for i, label in enumerate(labels):
        turn += label >= 0 and (i == 0 or labels[i - 1] < 0)
        masked.append(label >= 0 and 2 * turn in muted)
    row = row_of(talk, style, train_on="all")
    assert row.input_ids.tolist() == ids
    want = [-100 if out or i == 0 else token for i, (token, out) in enumerate(zip(ids, masked, strict=True))]
    assert row.labels.tolist() == want and -100 in want[1:]


@pytest.mark.parametrize("style", STYLES)
def test_a_pair_is_a_conversation_of_two(style):
    chat = [{"role": "user", "content": "12*34="}, {"role": "assistant", "content": "0408"}]
    one, two = row_of(pair("12*34=", "0408", p=0.5), style), row_of(chat, style)
    assert one.input_ids.tolist() == two.input_ids.tolist()
    assert one.labels.tolist() == two.labels.tolist() and trained(one)[:4] == "0408"
    assert (one.p, two.p) == (0.5, None)


def test_digits_as_the_quickstart_has_them():
    digits = load_tokenizer("builtin:digits")
    row = row_of(pair("12*34=", "0408"), "plain", digits)
    assert digits.convert_ids_to_tokens(row.input_ids.tolist()) == [*"12*34=0408", "<eos>"]
    assert row.segment_ids.tolist() == [0] * 6 + [1] * 5
    assert row.labels.tolist() == [-100] * 6 + row.input_ids[6:].tolist()


def test_plain_text_trains_everything_and_the_end():
    for template in ("chatml", "plain"):  # a text is no conversation, whatever the template
        row = row_of(pair("", "abc"), template)
        assert row.input_ids.tolist() == [97, 98, 99, BYTES.eos_token_id]
        assert row.labels.tolist() == [-100, 98, 99, BYTES.eos_token_id]
        assert row.segment_ids.tolist() == [0, 1, 1, 1]


def test_a_begin_token_is_there_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    for style in STYLES:
        ids = row_of(TALK, style, tokenizer).input_ids.tolist()
        assert ids.count(bos) == (style != "tulu") == (ids[0] == bos), "tulu declares that it has none"
    row = row_of(pair("", "a"), "plain", tokenizer)
    assert row.input_ids.tolist() == [bos, 97, tokenizer.eos_token_id]
    assert row.labels.tolist() == [-100, 97, tokenizer.eos_token_id]


def test_a_reply_is_tokenised_as_generation_meets_it():
    """`t\\nHello` merges across the border; the row must not hold a token the prompt cannot end in."""
    assert any("Ċ" in token and "H" in token for token in BPE.get_vocab())
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert ids_of(prompt + "Hello", BPE)[: len(ids_of(prompt, BPE))] != ids_of(prompt, BPE)
    for example in (chat, pair("Hi", "Hello there")):
        check(row_of(example, "chatml", BPE), f"{prompt}[Hello there<|im_end|>]\n", BPE)
    check(row_of(pair("12*34=", "0408"), "plain", BPE), "12*34=[0408<eos>]", BPE)


def test_a_token_across_the_border_of_an_earlier_turn_drops_the_row():
    """The reply would be trained without its first letters."""
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello there"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "x"},
    ]
    with pytest.raises(
        RowError, match=r"mask_mismatch: the token '.*ĊH.*' begins in the prompt and contains 'H"
    ):
        row_of(chat, "chatml", BPE)
    row = row_of(chat, "chatml", BPE, train_on="last")
    assert trained(row, BPE) == "x<|im_end|>"


def test_an_added_token_that_takes_the_space_before_it():
    """`<think>` with lstrip begins in the header. The last turn is cut off from it, an earlier one is not."""
    from tokenizers import AddedToken

    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", lstrip=True)])
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>a</think>b"}
    assert trained(row_of([user, reply], tokenizer=tokenizer), tokenizer) == "<think>a</think>b<|im_end|>"
    with pytest.raises(
        RowError, match="mask_mismatch: the token '<think>' begins in the prompt and contains"
    ):
        row_of([user, reply, user, reply], tokenizer=tokenizer)


def test_white_space_of_a_reply_may_be_in_a_token_of_the_prompt():
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\n\n\nx"}]
    row = row_of([*chat, *chat], "chatml", BPE)
    assert trained(row, BPE).endswith("x<|im_end|>\n\n\nx<|im_end|>")
    assert not trained(row, BPE).startswith("\n\n\n")


def llama_2_tokenizer():
    """Normalises `a b` to `▁a▁b`, and drops the first space of what it decodes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = "▁\nabcdefghijklmnopqrstuvwxyz0123456789=*:"
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *letters])}
    vocab["▁b"] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "b")], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    return wrap(backend, unk_token="<unk>")


@pytest.mark.parametrize("reply", [" b", "  b a", "b", " "])
def test_a_decoder_that_drops_a_space(reply):
    tokenizer = llama_2_tokenizer()
    row = row_of(pair("a", reply), "plain", tokenizer)
    tokens = [*"▁a", *(["▁", "▁b", "▁", "a"] if reply == "  b a" else [reply.replace(" ", "▁")])]
    assert tokenizer.convert_ids_to_tokens(row.input_ids.tolist()) == [*tokens, "<eos>"]
    assert row.labels.tolist() == [-100, -100, *row.input_ids[2:].tolist()]


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("style", ["chatml", "tulu", "plain"])
def test_spaces_at_borders_whatever_the_offsets_say(trim, style):
    """GPT-NeoX' offsets leave out leading spaces, GPT-2's do not."""
    tokenizer = bpe_tokenizer(trim_offsets=trim)
    for prompt, reply in [("12*34", " = 0408"), ("12*34 ", "= 0408"), ("a  ", "  b "), ("\n", "\n\n")]:
        row = row_of(pair(prompt, reply), style, tokenizer)
        end = "<|im_end|>" if style == "chatml" else "<eos>"
        assert trained(row, tokenizer) == reply + end


def metaspace_tokenizer():
    """Puts a space before every text, as Llama 2's does: two parts would gain one in the middle."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789=*:"
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return wrap(backend, unk_token="<unk>")


def test_a_tokenizer_that_prepends_a_space():
    tokenizer = metaspace_tokenizer()
    row = row_of(pair("12*34=", "0408"), "plain", tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(row.input_ids.tolist())
    assert tokens == ["▁", *"12*34=0408", "<eos>"]
    assert row.labels.tolist() == [-100] * 7 + row.input_ids[7:].tolist()


def test_a_tokenizer_that_normalises():
    from tokenizers import normalizers

    tokenizer = bpe_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    row = row_of(pair("HI", "HELLO"), "chatml", tokenizer)
    assert trained(row, tokenizer) == "hello<|im_end|>"


def test_characters_without_a_token_drop_the_row():
    digits = load_tokenizer("builtin:digits")
    with pytest.raises(RowError, match="unknown_text: the tokenizer has no token for 'x'"):
        row_of(pair("1+x=", "2"), "plain", digits)


def test_text_that_a_tokenizer_loses_drops_the_row():
    from tokenizers import normalizers

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("b", "")
    with pytest.raises(RowError, match="mask_mismatch: the tokens lose 'b'"):
        row_of(pair("abc", "d"), "plain", tokenizer)


def test_a_slow_tokenizer_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(RequestError, match="slow one; masks need the character offsets"):
        row_of(pair("a", "b"), tokenizer=Slow())


def test_an_end_of_turn_in_pieces_is_trained_whole():
    tokenizer = bpe_tokenizer()
    row = row_of(pair("Hi", "Hello"), "llama3", tokenizer)
    assert load_template("llama3", tokenizer).missing_tokens(tokenizer)
    assert trained(row, tokenizer) == "Hello<|eot_id|>"


def test_overlong_rows():
    example = pair("12*34=", "0408")  # plain: 6 + 4 + 1 tokens
    assert len(row_of(example, "plain", max_length=11).input_ids) == 11
    with pytest.raises(RowError, match="^overlong: 11 tokens$"):
        row_of(example, "plain", max_length=10)
    with pytest.raises(RequestError, match="here:1: 11 tokens, more than data.max_length = 10"):
        row_of(example, "plain", max_length=10, overlong="error")
    row = row_of(example, "plain", max_length=8, overlong="truncate")
    assert row.truncated and row.input_ids.tolist() == list(b"12*34=04")
    assert row.labels.tolist() == [-100] * 6 + list(b"04")
    assert row.segment_ids.tolist() == [0] * 6 + [1, 1]
    with pytest.raises(RowError, match="^overlong: 11 tokens; after truncation"):
        row_of(example, "plain", max_length=6, overlong="truncate")
    assert not row_of(example, "plain", max_length=11, overlong="truncate").truncated
