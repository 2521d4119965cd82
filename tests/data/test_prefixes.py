"""The beginnings of a conversation out of one rendering: equal to the rendering of each by itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data import prefixes, rendering
from posttrain.data.template import load_template
from posttrain.data.tokenizers import load_tokenizer
from posttrain.data.tokens import RowError
from tests.data import families

BYTES = load_tokenizer("builtin:bytes")
TALK = [
    {"role": "system", "content": "be"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
LINE = "{{ m['role'] }}: {{ m['content'] }}\n"
ASK = "{% if add_generation_prompt %}assistant: {% endif %}"


def loop(body, iterable="messages"):
    return f"{{% for m in {iterable} %}}{body}{{% endfor %}}"


def beginnings(source, messages, tools=None, options=None, tokenizer=BYTES):
    """For each beginning, and each with a prompt: (by one rendering, by itself); and which of them had to be
    rendered by themselves, as (messages, asks)."""
    render = rendering.renderer(source, tokenizer, tools, options)
    alone, plain = [], render._plain

    def noted(part, asks):
        alone.append((len(part), asks))
        return plain(part, asks)

    render._plain = noted
    found = []
    for count in (len(messages), *range(1, len(messages) + 1)):
        for asks in (False, True):
            part = messages[:count]
            both = []
            for each in (render, lambda *a: rendering.render(source, tokenizer, *a, tools, options)):
                try:
                    both.append(each(part, asks))
                except RowError as error:
                    both.append(error.detail)
            found.append(tuple(both))
    return found, alone


def same(source, messages, **more):
    found, alone = beginnings(source, messages, **more)
    for one, other in found:
        assert one == other
    return alone


@pytest.mark.parametrize("name", [*families.OURS, *families.NAMES, *families.STAND_INS])
def test_beginnings_are_as_rendered_by_themselves(name):
    source, tokenizer = families.family(name).source, families.tokenizer_of(name)
    for row in families.CASES.values():
        messages = row["messages"]
        same(source, messages, tools=row.get("tools"), tokenizer=tokenizer)
        same(source, messages + messages[-2:], tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["chatml", "llama3", "plain"])
def test_one_rendering_is_enough(name):
    source = families.family(f"{families.OWN}{name}").source
    assert same(source, TALK) == []


def test_a_template_of_its_own_line_for_the_prompt():
    assert same(loop(LINE) + ASK, TALK) == []
    assert (
        same("{% set name = 'assistant' %}" + loop(LINE) + ASK.replace("assistant", "{{ name }}"), TALK) == []
    )


@pytest.mark.parametrize(
    ("source", "alone"),
    [
        # told apart from the whole is what looks ahead, and only that
        (loop(LINE + "{% if m['role'] == 'user' and loop.last %}!{% endif %}") + ASK, {2, 4}),
        (loop(LINE + "{{ messages[loop.index0 + 1]['role'] if m['role'] == 'user' }}") + ASK, {2, 4}),
        (loop(LINE + "{{ (messages[loop.index0 + 1] | default({}))['role'] }}") + ASK, {1, 2, 3, 4}),
        (loop(LINE + "{{ messages[loop.index0 - 1]['role'] if not loop.first }}") + ASK, set()),
        (loop(LINE + "{{ (loop.previtem | default({}))['role'] }}") + ASK, set()),
        (loop(LINE + "{{ loop.nextitem['role'] if m['role'] == 'user' }}") + ASK, {2, 4}),
        (loop(LINE + "{{ messages[4]['role'] if loop.first }}") + ASK, {1, 2, 3, 4}),
        ("{{ messages[2]['role'] }}" + loop(LINE) + ASK, {1, 2}),
        ("{{ messages[0]['role'] }}{% if messages %}{% endif %}" + loop(LINE) + ASK, set()),
        ("{{ messages | length }}" + loop(LINE) + ASK, {1, 2, 3, 4}),
        ("{{ messages[-1]['role'] }}" + loop(LINE) + ASK, {1, 2, 3, 4}),
        ("{{ (messages | last)['role'] }}" + loop(LINE) + ASK, {1, 2, 3, 4}),
        ("{{ messages[1:] | length }}" + loop(LINE) + ASK, {1, 2, 3, 4}),
        (loop(LINE + "{{ loop.length }}") + ASK, {1, 2, 3, 4}),
        (loop(LINE + "{{ loop.revindex }}") + ASK, {1, 2, 3, 4}),
        (loop("{% if m['role'] == 'user' %}{% continue %}{% endif %}" + LINE) + ASK, {2, 4}),
        (loop(LINE + "{% if loop.index == 3 %}{% break %}{% endif %}") + ASK, {1, 2, 3, 4, 5}),
        (
            "{% for x in messages %}{{ x['role'] }}{% endfor %}".replace("messages", "messages | list")
            + loop(LINE)
            + ASK,
            {1, 2, 3, 4},
        ),
    ],
)
def test_what_looks_ahead_is_rendered_by_itself(source, alone):
    assert {count for count, _ in same(source, TALK)} == alone


NS = "{% set ns = namespace(n=0) %}"
COUNTED = loop(LINE + "{% set ns.n = ns.n + 1 %}")


@pytest.mark.parametrize(
    "source",
    [
        loop(LINE) + loop(LINE) + ASK,
        loop(LINE, "messages[1:]") + ASK,
        "{% if messages %}" + loop(LINE) + "{% endif %}" + ASK,
        "{% for m in messages recursive %}" + LINE + "{% endfor %}" + ASK,
        "{% for a, b in messages | items %}{% endfor %}" + ASK,
        # what stands behind the loop depends on what it did
        NS + COUNTED + "{{ ns.n }}" + ASK,
        NS + "{% set other = ns %}" + COUNTED + "{{ other.n }}" + ASK,
        NS + "{% set a = [ns] %}{% set b = a[0] %}" + COUNTED + "{{ b.n }}" + ASK,
        NS
        + "{% macro see(s) %}{% set s.n = s.n + 1 %}{% endmacro %}"
        + loop(LINE + "{{ see(ns) }}")
        + "{{ ns.n }}",
        "{% set q = {'k': messages} %}" + loop(LINE) + loop(LINE, "q.k") + ASK,
        "{% set roles = messages | map(attribute='role') %}" + loop(LINE) + "{{ (roles | list)[-1] }}",
        "{% block a %}{{ messages[0]['content'] }}{% endblock %}" + loop(LINE) + "{{ self.a() }}",
        "{% set messages = messages | reverse | list %}" + loop(LINE) + ASK,
        "{% set x = 'a' %}{% set x = messages | length %}" + loop(LINE) + "{{ x }}",
        loop("{% if m['role'] == 'user' %}{% set m = messages[loop.index0 - 1] %}{% endif %}" + LINE) + ASK,
        loop("{% for m in [m] %}" + LINE + "{% endfor %}") + ASK,
        NS + "{% macro f() %}{{ ns.n }}{% endmacro %}" + COUNTED + "{{ f() }}",
        NS + "{% macro f() %}{{ ns.n }}{% endmacro %}{% set g = f %}" + COUNTED + "{{ g() }}",
        "{% set c = cycler('x', 'y', 'z') %}" + loop(LINE + "{{ c.next() }}") + "{{ c.current }}",
        "{% set j = joiner('x') %}" + loop(LINE + "{{ j() }}") + "{{ j() }}",
        loop(LINE) + "{{ messages[-1]['role'] }}" + ASK,
        "{% set all = messages %}" + loop(LINE) + "{{ all | length }}" + ASK,
        "{% set all = messages %}" + loop(LINE) + loop(LINE, "all") + ASK,
        "{% set all %}{{ messages | length }}{% endset %}" + loop(LINE) + "{{ all }}" + ASK,
        loop(LINE + "{% if loop.last %}{{ add_generation_prompt }}{% endif %}"),
        # the messages as a whole
        "{{ messages }}" + loop(LINE) + ASK,
        "{{ messages | tojson }}" + loop(LINE) + ASK,
        "{{ messages == [] }}{{ [1] == messages }}" + loop(LINE) + ASK,
        loop("{{ raise_exception('no') if loop.index == 3 }}" + LINE) + ASK,
    ],
)
def test_templates_without_known_beginnings(source):
    assert {count for count, _ in same(source, TALK)} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}" + LINE + "{% else %}none{% endfor %}" + ASK,
        NS + COUNTED + ASK,
        "{% macro f(x) %}{{ x['content'] }}{% endmacro %}" + loop("{{ f(m) }}") + ASK,
        "{% if who is not defined %}{% set who = 'you' %}{% endif %}" + loop(LINE) + "{{ who }}",
    ],
)
def test_other_templates_with_known_beginnings(source):
    assert same(source, TALK) == []


def test_what_the_loop_writes_for_a_prompt_is_not_left_out():
    # of the first conversation the loop writes the same with and without a prompt, of the second it does not
    source = loop(LINE + "{{ 'x' if add_generation_prompt and m['role'] == 'system' }}") + ASK
    same(source, TALK[1:])
    same(source, TALK)


def test_the_end_is_not_taken_from_another_conversation():
    # what follows the loop depends on what was set before it, of the first message
    source = (
        "{% set who = messages[0]['content'] %}"
        + loop(LINE)
        + "{% if add_generation_prompt %}{{ who }}{% endif %}"
    )
    for name in ("x", "y"):
        same(source, [{"role": "system", "content": name}, *TALK[1:]])
    chosen = (
        "{% if messages[0]['content'] == 'x' %}{% set who = 'X' %}{% else %}{% set who = 'Y' %}{% endif %}"
    )
    for name in ("x", "y"):
        talk = [{"role": "system", "content": name}, *TALK[1:]]
        assert same(chosen + loop(LINE) + "{{ who }}", talk) == []
    for option in ("p", "q", ["r"]):
        same(loop(LINE) + "{{ style }}", TALK, options={"style": option})
    for tools in (None, [{"name": "f"}], [{"name": "g"}]):
        same(loop(LINE) + "{{ tools }}", TALK, tools=tools)


def test_other_conversations_are_rendered_by_themselves():
    render = rendering.renderer(loop(LINE) + ASK, BYTES, None, None)
    assert render(TALK, False).endswith("assistant: d\n")
    other = [dict(turn, content=turn["content"] * 2) for turn in TALK]
    assert render(other, False) == "system: bebe\nuser: aa\nassistant: bb\nuser: cc\nassistant: dd\n"
    assert render([*TALK, TALK[1]], True).endswith("d\nuser: a\nassistant: ")


def test_the_same_message_twice():
    twice = [TALK[1], TALK[2]] * 2
    assert same(loop(LINE) + ASK, twice) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), st.text(max_size=4)), max_size=6
    )
)
def test_any_order_of_any_texts(talk):
    messages = [{"role": role, "content": content} for role, content in talk]
    for name in ("chatml", "llama3", "tulu", "plain"):
        same(families.family(f"{families.OWN}{name}").source, messages)


def test_a_failure_is_said_as_by_itself():
    found, _ = beginnings(loop("{{ m['content'] + 1 }}"), TALK)
    assert all("the template fails" in one for one, _ in found)
    watched = prefixes.Watched([1, 2])
    assert watched[0] == 1
    for read in (str, repr, hash, lambda each: each == [1, 2], lambda each: each == [1, 2]):
        with pytest.raises(TypeError, match="the messages can only be read one by one"):
            read(watched)


def test_a_template_does_not_see_that_it_is_watched():
    names = ("all", "end", "ends", "look", "_all", "_end", "_told", "_look")
    same("".join(f"{{{{ messages.{name} is defined }}}}" for name in names) + loop(LINE) + ASK, TALK)


def test_a_reply_is_not_trained_with_what_a_tool_said():
    """The mark of a message that is set to an earlier one would move the end of that one."""
    body = "<{{ m['role'] }}>{{ m['content'] }}<end>"
    body += "{% if m['role'] == 'tool' %}{% set m = messages[loop.index0 - 1] %}{% endif %}"
    tokenizer = load_tokenizer("builtin:bytes")
    tokenizer.chat_template = loop(body) + "{% if add_generation_prompt %}<assistant>{% endif %}"
    talk = [("user", "a"), ("assistant", "calls <tool_call>"), ("tool", "a long thing"), ("assistant", "b")]
    messages = [{"role": role, "content": content} for role, content in talk]
    text, turns = load_template("tokenizer", tokenizer).turns(messages)
    assert [text[turn.begin : turn.end] for turn in turns] == ["calls <tool_call><end>", "b<end>"]
