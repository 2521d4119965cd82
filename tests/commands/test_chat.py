"""`posttrain chat`: what is printed is the reply, and the reply is what the next prompt holds."""

from __future__ import annotations

import io

import pytest
import torch

from posttrain.cli import main
from posttrain.commands.chat import Stream
from posttrain.data.template import load_template
from posttrain.data.tokenizers import decode, load_tokenizer
from tests.unigram import unigram_model


def printed(stream: Stream, ids: list[int], capsys) -> list[str]:
    """What is printed after each token; the last item at the end."""
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    pieces = []
    for token in ids:
        stream.put(torch.tensor([token]))
        pieces.append(capsys.readouterr().out)
    stream.end()
    return [*pieces, capsys.readouterr().out]


@pytest.fixture
def stream():
    tokenizer = load_tokenizer("builtin:bytes")
    return Stream(tokenizer, load_template("chatml", tokenizer).stops)


@pytest.mark.parametrize(
    ("said", "pieces"),
    [
        ("a<|im_start|>b<|im_end|>", ["a", "<|im_start|>", "b", "", "\n"]),
        ("a<|im_start|>", ["a", "<|im_start|>", "\n"]),  # cut off
        ("é\n", ["", "é", "\n", "\n"]),  # a character of two bytes
        ("<|im_end|>", ["", "\n"]),
    ],
)
def test_tokens_are_printed_as_they_come(stream, capsys, said, pieces):
    ids = stream.tokenizer(said, add_special_tokens=False)["input_ids"]
    assert printed(stream, ids, capsys) == pieces
    assert stream.text + "\n" == "".join(pieces)


def test_an_end_of_several_tokens_is_not_printed(capsys):
    tokenizer = load_tokenizer("builtin:bytes")
    ids = tokenizer("a<b<end>", add_special_tokens=False)["input_ids"]
    endings = [tokenizer("<end>", add_special_tokens=False)["input_ids"]]
    whole = Stream(tokenizer, [], endings)
    assert printed(whole, ids, capsys) == ["a", "", "<b", "", "", "", "", "", "\n"]
    assert whole.text == "a<b" and whole.ends(ids) and not whole.ends(ids[:-1])
    cut = Stream(tokenizer, [], endings)
    assert printed(cut, ids[:-2], capsys)[-1] == "<en\n"  # cut off
    assert cut.text == "a<b<en"


def test_half_a_character_is_printed_at_the_end(stream, capsys):
    ids = stream.tokenizer("é", add_special_tokens=False)["input_ids"][:1]
    assert printed(stream, ids, capsys) == ["", "\ufffd\n"]


def test_the_next_prompt_holds_what_was_printed(tmp_path, capsys, monkeypatch):
    """The model writes "1" and a special token, and ends its turn with a token that is not the tokenizer's
    end token."""
    from transformers import GenerationMixin

    folder = unigram_model(tmp_path / "model", {"<|im_start|>": 0.5, "1": 0.3})
    prompts, generate = [], GenerationMixin.generate

    def spied(self, input_ids, **given):
        prompts.append(input_ids[0].tolist())
        return generate(self, input_ids, **given)

    monkeypatch.setattr(GenerationMixin, "generate", spied)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nmore\n\n"))
    torch.manual_seed(0)
    capsys.readouterr()  # what libraries print while they are imported
    assert main(["chat", str(folder), "--temperature", "1", "--max-new-tokens", "60"]) == 0
    first, second, _ = capsys.readouterr().out.split("\n")
    assert "<|im_start|>" in first and len(first) < 200, "it stops at the end of turn"
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    told = f"{asked}{first}<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = load_tokenizer(str(folder))
    assert [decode(ids, tokenizer) for ids in prompts] == [asked, told]
    assert "<|im_end|>" not in first + second


def with_template(folder, source: str) -> str:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = source
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_template_without_an_end_of_turn(tmp_path, capsys, monkeypatch, caplog):
    """Nothing tells where its turns end, so a reply ends with the tokenizer's token or at the limit."""
    folder = unigram_model(tmp_path / "model", {"1": 0.999})
    with_template(folder, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", str(folder), "--temperature", "0", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "11111\n"
    assert "nothing closes an assistant turn" in caplog.text


def test_a_template_that_refuses_the_messages(tmp_path, capsys, monkeypatch):
    folder = unigram_model(tmp_path / "model", {"1": 0.5})
    source = load_template("chatml", load_tokenizer(str(folder))).source
    source = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + source
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert main(["chat", with_template(folder, source), "--system", "Be brief."]) == 2
    assert f"the chat template of {folder} refuses the conversation: no system" in capsys.readouterr().err
