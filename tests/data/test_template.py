"""Templates: the exact text of each style, the exact place of each turn, and refusals."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from posttrain.data.shapes.prompts import tokenize_prompt
from posttrain.data.template import NAMES, load_template, own_template
from posttrain.data.tokenize import tokenize_example
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.evaluate.score import _answer_tokens
from posttrain.recipe.schema import Data, Loss
from posttrain.types import Example, Problem

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi 😀"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": ""},
]
GOLDEN = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi 😀<|im_end|>\n"
        "<|im_start|>assistant\n[Hello<|im_end|>]\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n[<|im_end|>]\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi 😀<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[Hello<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[<|eot_id|>]"
    ),
    "tulu": (
        "<|system|>\nBe brief.\n<|user|>\nHi 😀\n<|assistant|>\n[Hello<eos>]\n"
        "<|user|>\nBye\n<|assistant|>\n[<eos>]"
    ),
    "plain": "Be brief.Hi 😀[Hello<eos>]Bye[<eos>]",
}
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "tulu": "<eos>", "plain": "<eos>"}


def bytes_with(**special):
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.add_special_tokens(special)
    return tokenizer


def marked(text, turns) -> str:
    for turn in reversed(turns):
        text = f"{text[: turn.begin]}[{text[turn.begin : turn.end]}]{text[turn.end :]}"
    return text


@pytest.mark.parametrize("name", GOLDEN)
def test_the_four_styles(name):
    template = load_template(name, bytes_with(bos_token="<s>"))
    text, turns = template.turns(TALK)
    assert marked(text, turns) == GOLDEN[name]
    assert text == GOLDEN[name].replace("[", "").replace("]", "")
    assert [text[turn.begin : turn.content_end] for turn in turns] == ["Hello", ""]
    assert template.end_of_turn == END[name]
    assert template.turns(TALK, last_only=True) == (text, turns[1:])


@pytest.mark.parametrize("name", GOLDEN)
def test_the_prompt_is_what_stands_before_the_turn(name):
    template = load_template(name, bytes_with(bos_token="<s>"))
    before = GOLDEN[name].partition("[")[0]
    assert template.render(TALK[:2], add_generation_prompt=True) == before
    opening = template.render([], add_generation_prompt=True)
    assert before.endswith(opening.removeprefix("<s>"))


@pytest.mark.parametrize("name", GOLDEN)
def test_the_template_is_saved_with_the_tokenizer(tmp_path, name):
    tokenizer = bytes_with(bos_token="<s>")
    template = load_template(name, tokenizer)
    template.apply_to(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    text = template.render(TALK)
    assert again.apply_chat_template(TALK, tokenize=False) == text
    assert load_template("tokenizer", again).turns(TALK) == template.turns(TALK)


def test_missing_tokens():
    tokenizer = bytes_with()
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert load_template("llama3", tokenizer).missing_tokens(tokenizer) == headers
    for name in ("chatml", "tulu", "plain"):
        assert load_template(name, tokenizer).missing_tokens(tokenizer) == []
    digits = load_tokenizer("builtin:digits")
    assert load_template("chatml", digits).missing_tokens(digits) == ["<|im_start|>", "<|im_end|>"]
    tokenizer.add_tokens(headers, special_tokens=True)
    assert load_template("llama3", tokenizer).missing_tokens(tokenizer) == []


def test_llama3_trims_as_the_original_does():
    template = load_template("llama3", bytes_with())
    text, [turn] = template.turns([{"role": "assistant", "content": "  a b \n"}])
    assert text == "<|start_header_id|>assistant<|end_header_id|>\n\na b<|eot_id|>"
    assert text[turn.begin : turn.content_end] == "a b"


@pytest.fixture
def adds_bos():
    """A tokenizer that puts <s> before a raw text, as those of Llama and Gemma do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_with(bos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a").input_ids == [tokenizer.bos_token_id, 97]
    return tokenizer


def test_a_begin_token_the_tokenizer_would_add_is_written_once(adds_bos):
    """chatml and plain do not write one by themselves; tulu is to have none."""
    for name in GOLDEN:
        template = load_template(name, adds_bos)
        text = template.render(TALK)
        assert text.count("<s>") == (name != "tulu") == text.startswith("<s>"), name
        template.apply_to(adds_bos)
        assert adds_bos.apply_chat_template(TALK, tokenize=False) == text


@pytest.mark.parametrize("name", GOLDEN)
def test_every_place_renders_a_prompt_alike(adds_bos, name, tmp_path):
    """A training row, the prompt of a stage that samples, of a task, and of the saved tokenizer in stock use:
    the same tokens, with <s> in front unless the template declares that there is none."""
    template = load_template(name, adds_bos)
    adds_bos.add_special_tokens({"additional_special_tokens": template.missing_tokens(adds_bos)})
    data = Data(sources=[], template=name)
    row = tokenize_example(Example(prompt="2+2?", completion="4"), adds_bos, data, Loss())
    prompt = row.input_ids[: int((row.labels != -100).argmax())].tolist()
    assert (prompt[0] == adds_bos.bos_token_id) == (name != "tulu")
    assert tokenize_prompt(Example(prompt="2+2?"), adds_bos, data).input_ids.tolist() == prompt
    asked, answer = _answer_tokens(Problem(id="1", prompt="2+2?", answer="4"), adds_bos, template, "sums")
    assert asked == prompt and asked + answer == row.input_ids[: len(asked + answer)].tolist()
    template.apply_to(adds_bos)
    adds_bos.save_pretrained(tmp_path)
    stock = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "2+2?"}]
    assert stock.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == prompt


def own(source: str):
    tokenizer = bytes_with()
    tokenizer.chat_template = source
    return load_template("tokenizer", tokenizer)


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"


def test_the_tokenizers_own_template():
    template = own(TURNS + ASK)
    assert template.end_of_turn == "<end>"
    text, turns = template.turns(TALK[1:3])
    assert marked(text, turns) == "<user>Hi 😀<end>\n<assistant>[Hello<end>]\n"
    # a reply that quotes the end of turn does not end there
    text, [turn] = template.turns([{"role": "assistant", "content": "say <end> twice"}])
    assert text[turn.begin : turn.end] == "say <end> twice<end>"
    with pytest.raises(
        RequestError, match="has no chat template; set data.template to one of chatml, llama3"
    ):
        load_template("tokenizer", bytes_with())


def test_a_template_that_does_not_say_where_a_turn_ends(caplog):
    tokenizer = bytes_with()
    assert own_template(tokenizer) is None and not caplog.text
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert own_template(tokenizer) is None
    assert "the end of an assistant turn is not known: template 'tokenizer': nothing closes" in caplog.text


def test_a_template_that_changes_earlier_turns_is_refused():
    template = own(
        "{% for m in messages %}<{{ m.role }}>"
        "{{ m.content if loop.last or m.role == 'user' else m.content | upper }}<end>{% endfor %}" + ASK
    )
    with pytest.raises(RequestError) as caught:
        template.turns(TALK[1:])
    message = str(caught.value)
    assert message.startswith("template 'tokenizer' drops or changes earlier turns")
    assert "At message 1 (assistant)" in message
    assert "data.train_on: each or last" in message
    assert "is not a prefix" in message and "'ello<end>'" in message and "'ELLO<end><user>Bye" in message


@pytest.mark.parametrize("last_only", [False, True])
def test_a_template_that_drops_earlier_replies_loses_them(last_only):
    template = own(
        "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.role }}>{{ m.content }}"
        "<end>{% endif %}{% endfor %}" + ASK
    )
    with pytest.raises(RowError, match=r"template_error: the template leaves out message 1 \(assistant\)"):
        template.turns(TALK[1:4] + [{"role": "assistant", "content": "x"}], last_only)


def test_a_template_that_opens_a_thought_is_refused():
    template = own(TURNS + "{% if add_generation_prompt %}<assistant><think>{% endif %}")
    with pytest.raises(RowError, match=r"no_thought: a prompt of template 'tokenizer' opens '<think>'"):
        template.turns([TALK[1], {"role": "assistant", "content": "fine"}])
    thought = {"role": "assistant", "content": "<think>so</think>fine"}
    text, [turn] = template.turns([TALK[1], thought])
    assert text[: turn.begin].endswith("<assistant><think>")
    assert text[turn.begin : turn.end] == "so</think>fine<end>"


def test_a_template_that_never_ends_a_turn_is_refused():
    with pytest.raises(RequestError, match="nothing closes an assistant turn"):
        own("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    ends_last = "{% for m in messages %}{{ m.content }}{% if loop.last %}<end>{% endif %}{% endfor %}"
    with pytest.raises(RequestError, match="is not a prefix"):
        own(ends_last).turns(TALK)
    ends_some = (
        "{% for m in messages %}{{ m.content }}{% if 'l' not in m.content %}<end>{% endif %}{% endfor %}"
    )
    with pytest.raises(RowError, match="template_error: .* message 1 .assistant. as it ends others: it must"):
        own(ends_some).turns(TALK[1:3])


def test_a_template_that_goes_on_after_the_end_is_refused():
    goes_on = "{% for m in messages %}{{ m.content }}<end>{{ 'and more' if 'l' in m.content }}{% endfor %}"
    with pytest.raises(RowError, match="must end with '<end>', but ends with 'Hello<end>and more'"):
        own(goes_on).turns(TALK[1:3])


def test_rows_a_template_cannot_render_are_dropped():
    alternate = (
        "{% if messages and messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    with pytest.raises(RowError, match="template_error.*no system role"):
        own(alternate + TURNS + ASK).turns(TALK)
    shout = "{% for m in messages %}{{ m.content | replace('l', 'L') }}<end>{% endfor %}"
    with pytest.raises(RowError, match="changes the text of message 1"):
        own(shout).turns(TALK[1:3])


def test_the_sandbox_holds():
    reach = "{% for m in messages %}{{ m.content }}<end>{% endfor %}{{ messages.append(1) }}"
    with pytest.raises(RequestError, match="template 'tokenizer': the template fails"):
        own(reach)
    with pytest.raises(RequestError, match="unsafe|fails"):
        own("{{ ''.__class__.__mro__[1].__subclasses__() }}")


def test_template_files(tmp_path):
    tokenizer = bytes_with()
    path = tmp_path / "mine.jinja"
    path.write_text("{#- no bos -#}\n{# tokens: <end> <assistant> #}\n" + TURNS + ASK + "\n")
    template = load_template(str(path), tokenizer)
    assert template.source == TURNS + ASK
    assert template.render(TALK[1:2], True) == "<user>Hi 😀<end>\n<assistant>"
    assert template.missing_tokens(tokenizer) == ["<end>", "<assistant>"]
    path.write_text((TURNS + ASK).replace("end>", "stop>"))
    assert load_template(str(path), tokenizer).end_of_turn == "<stop>"
    path.write_text("{% for m in messages %}")
    with pytest.raises(RequestError, match=r"mine\.jinja': the template fails: .*line 1"):
        load_template(str(path), tokenizer)
    path.write_bytes(b"\xff")
    with pytest.raises(RequestError, match=r"mine\.jinja: not UTF-8"):
        load_template(str(path), tokenizer)
    with pytest.raises(RequestError, match=r"mein\.jinja: No such file.*'mine\.jinja'"):
        load_template(str(tmp_path / "mein.jinja"), tokenizer)
    with pytest.raises(RequestError, match=r"unknown template 'chatlm' \(did you mean 'chatml'"):
        load_template("chatlm", tokenizer)


def test_every_named_template_has_a_file(root):
    files = {path.stem for path in (root / "posttrain/data/templates").glob("*.jinja")}
    assert files == set(NAMES[1:])
