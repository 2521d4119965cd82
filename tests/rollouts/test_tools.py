"""Prompts with tools and template options: the same tokens wherever they are rendered, and in pairs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from posttrain.data.cache import prepare_sources
from posttrain.data.shapes.pairs import to_pair
from posttrain.data.shapes.prompts import Asked
from posttrain.data.shapes.rows import is_conversation
from posttrain.data.template import FOLDER, KNOWN_AS, load_template, own_template
from posttrain.data.tokenize import conversation, prompt_text, tokenize_example
from posttrain.data.tokens import RowError
from posttrain.errors import RequestError
from posttrain.evaluate.score import _answer_tokens, _prompt
from posttrain.generation.base import Completion
from posttrain.recipe.schema import Data, Loss, Source
from posttrain.recipe.sections import Rollout
from posttrain.rewards.compose import Graded
from posttrain.rollouts.continuations import Continuer
from posttrain.rollouts.groups import Group, Prompt
from posttrain.rollouts.pairing import Pair, Side, pair_row, side
from posttrain.rollouts.records import rows_of
from posttrain.types import Example, Problem
from tests.calling import CALLS, FULL, ROWS, SHORT, TEXTS, THINKS, text_of, write_template
from tests.data.families import tokenizer_of

SOURCE = Source(name="made", path="pairs.jsonl")


def prepared(folder, rows: list[dict], template: str):
    """(table, tokenizer, template)."""
    tokenizer, loaded = text_of(template)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source("s", path=str(folder / "rows.jsonl"))
    data = Data([source], template=template, max_length=400, cache_dir=str(folder / "cache"))
    return prepare_sources(data.sources, data, Loss(), tokenizer, shape="prompts")[0], tokenizer, loaded


@pytest.fixture
def made(tmp_path):
    return prepared(tmp_path, ROWS, write_template(tmp_path))


def test_what_is_sampled_from_by_hand(made):
    table, tokenizer, _ = made
    assert [tokenizer.decode(table[i].input_ids) for i in range(len(ROWS))] == TEXTS
    asked = [table.asked(i) for i in range(len(ROWS))]
    assert [(each.tools, each.template_options) for each in asked] == [
        ([], {}),
        ([], SHORT),
        ([FULL], {}),
        ([{"type": "function", "function": {"name": "add"}}], SHORT),
    ]
    assert [each.columns for each in asked] == ROWS and asked[2].example().extra["tools"] == ROWS[2]["tools"]


def test_prompts_without_tools_are_written_as_before_and_old_tables_are_read(made):
    lines = [json.loads(line) for line in (made[0].folder / "columns.jsonl").read_text().splitlines()]
    assert [len(line) for line in lines] == [3, 4, 4, 4] and lines[0][1:] == ["Count.", ROWS[0]]
    assert made[0].asked(0) == Asked(lines[0][0], "Count.", ROWS[0])


def test_options_of_a_row_are_part_of_the_name_of_its_table():
    """An earlier version read no options: its table of the same rows has another name."""
    assert not is_conversation(ROWS[0]) and is_conversation(ROWS[1]) and is_conversation(ROWS[2])


class Silent:
    """A generator that keeps what it is asked and ends at once, at the end of a call or of a turn."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.prompts = ids, []

    def generate(self, prompts, n, sampling, seed, streams):
        self.prompts += prompts
        return [Completion(i, j, "", [self.ids[j]], "stop") for i in range(len(prompts)) for j in range(n)]


class Rewards:
    def grade(self, texts, rows, deadline=None):
        return [Graded(1.0, True)] * len(texts)


def test_continuations_go_on_from_the_tokens_of_the_table(made):
    table, tokenizer, template = made
    for i in range(len(ROWS)):
        generator = Silent([*template.calls_end, *template.end_ids])
        continuer = Continuer(generator, tokenizer, template, Rewards(), Rollout(), 0)
        prompt = Prompt(i, "s", i, table[i].input_ids.tolist(), table.asked(i))
        ((call, reply),) = continuer.of(prompt)({"position": i, "sample": 0}, [""], 2)
        assert generator.prompts == [prompt.ids]
        assert (call.ended, reply.ended) == (False, True), "a call that has its own end ends no reply"


def test_evaluation_samples_from_the_tokens_of_the_table(made):
    table, tokenizer, template = made
    for i in range(len(ROWS)):
        example = table.asked(i).rendered()
        problem = Problem(
            str(i),
            "2",
            example.messages,
            example.prompt,
            tools=example.tools,
            template_options=example.template_options,
        )
        text = _prompt(problem, template, "t")
        assert text == TEXTS[i] == prompt_text(example, template)
        assert _answer_tokens(problem, tokenizer, template, "t")[0] == table[i].input_ids.tolist()


def test_evaluation_names_what_the_template_leaves_out():
    _, template = text_of(str(FOLDER / KNOWN_AS / "chatml.jinja"))  # knows role and content only
    problem = Problem("7", "2", prompt="Call.", tools=[FULL])
    with pytest.raises(RequestError, match=r"task t, problem 7: template '.*' does not render 'tools'"):
        _prompt(problem, template, "t")


def test_generation_stops_at_the_end_of_a_call_too(tmp_path):
    """Also where the end of turn is several tokens, at which it cannot stop."""
    tokenizer, template = text_of(write_template(tmp_path))
    call, turn = tokenizer.convert_tokens_to_ids(["<|call|>", "<|im_end|>"])
    assert template.stops == [turn, call] and template.calls_end == {call: "<|call|>"}
    tokenizer.chat_template = template.source
    assert own_template(tokenizer).stops == template.stops
    several = CALLS.replace("else '<|im_end|>", "else '###")
    tokenizer, template = text_of(write_template(tmp_path, several))
    assert template.end_of_turn == "###" and template.stops == [tokenizer.convert_tokens_to_ids("<|call|>")]
    assert text_of("chatml")[1].calls_end == {}


# ---- pairs -------------------------------------------------------------------------------------------------


def dpo_row(pair: Pair, asked: Asked, template):
    """The row of pairs.jsonl as a dpo stage reads it: (chosen, rejected)."""
    example, about = asked.rendered(), {"source": "s", "row": 0, "where": "f:1"}
    opened = template.opened(conversation(example), example)
    row = json.loads(json.dumps(pair_row(pair, example, about, "best_worst", "c", opened)))
    return to_pair(row, SOURCE, "pairs.jsonl:1")


def pair_of(template, chosen: tuple[str, int], rejected: tuple[str, int]) -> Pair:
    """A pair of (text, token that ended it), as the stage makes it of its rollouts."""
    sides = []
    for sample, (text, end) in enumerate((chosen, rejected)):
        completion = Completion(0, sample, text, [9, end], "stop")
        group = Group(Prompt(0, "s", 0, [1], Asked("f:1", "q", {})), [completion], [Graded(1.0, True)])
        sides.append(side(rows_of(group, 0, "q", template.calls_end)[0] | {"sample": sample}))
    return Pair(*sides)


@pytest.mark.parametrize("i", range(len(ROWS)))
def test_a_dpo_stage_sees_the_tokens_that_were_sampled(made, i, tmp_path):
    """Prompt, reply and end, of a side that ended its turn and of one that ended at a call."""
    table, tokenizer, template = made
    call, turn = next(iter(template.calls_end)), template.end_ids[0]
    data = Data([SOURCE], template=template.name, train_on="last", max_length=400)
    pair = pair_of(template, ('@add{"a": 1}', call), ("11", turn))
    assert pair.chosen == Side('@add{"a": 1}<|call|>', 2, 1.0, 0, is_prefix=True)
    sides = dpo_row(pair, table.asked(i), template)
    for example, text in zip(sides, ('@add{"a": 1}<|call|>', "11<|im_end|>"), strict=True):
        row = tokenize_example(example, tokenizer, data, Loss())
        start = int(np.flatnonzero(row.labels >= 0)[0])
        assert row.input_ids[:start].tolist() == table[i].input_ids.tolist()
        assert tokenizer.decode(row.labels[row.labels >= 0]) == text


@pytest.mark.parametrize("cut", [False, True])
def test_a_reply_behind_an_opened_thought(tmp_path, cut):
    """The prompt has `<think>`, what is sampled has not, and the dpo stage puts it behind the prompt."""
    table, tokenizer, template = prepared(tmp_path, ROWS[:1], write_template(tmp_path, THINKS))
    assert tokenizer.decode(table[0].input_ids).endswith("assistant\n<think>\n")
    pair = Pair(Side("so</think>2", 9, 1.0, 0), Side("hm</think>1", 9, 0.0, 1, is_prefix=cut))
    data = Data([SOURCE], template=template.name, train_on="last", max_length=400)
    ends = "<|im_end|>", "" if cut else "<|im_end|>"
    for example, text, end in zip(
        dpo_row(pair, table.asked(0), template), ("so</think>2", "hm</think>1"), ends, strict=True
    ):
        row = tokenize_example(example, tokenizer, data, Loss())
        start = int(np.flatnonzero(row.labels >= 0)[0])
        assert row.input_ids[:start].tolist() == table[0].input_ids.tolist()
        assert tokenizer.decode(row.labels[row.labels >= 0]) == text + end


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano", "qwen3_5_think"])
def test_thoughts_of_published_templates(name):
    """Their prompts end in `<think>`: what was sampled behind it is what is trained, to the token."""
    tokenizer, said = tokenizer_of(name), ("so\n</think>\n\n4", "hm\n</think>\n\n5")
    template = load_template("tokenizer", tokenizer)
    prompt = tokenizer(prompt_text(Example(prompt="2+2?"), template), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(prompt).endswith("<think>\n")
    pair = Pair(*(Side(text, 9, 1.0, 0) for text in said))
    data = Data([SOURCE], template="tokenizer", train_on="last", max_length=400)
    for example, text in zip(dpo_row(pair, Asked("f:1", "2+2?", {}), template), said, strict=True):
        row = tokenize_example(example, tokenizer, data, Loss())
        assert row.input_ids[: len(prompt)].tolist() == prompt and (row.labels[: len(prompt)] < 0).all()
        assert tokenizer.decode(row.labels[row.labels >= 0]) == text + template.end_of_turn


def test_a_prefix_whose_text_the_template_changes_is_dropped(tmp_path):
    """Where it ends cannot be found in a text with other spaces."""
    narrow = write_template(tmp_path, CALLS.replace("+ m.content", "+ m.content | replace('  ', ' ')"))
    table, tokenizer, template = prepared(tmp_path, ROWS[:1], narrow)
    pair = Pair(Side("2", 9, 1.0, 0), Side("h  m", 9, 0.0, 1, is_prefix=True))
    data = Data([SOURCE], template=template.name, train_on="last", max_length=400)
    with pytest.raises(RowError, match="template_error: the template changes the text of the last message"):
        tokenize_example(dpo_row(pair, table.asked(0), template)[1], tokenizer, data, Loss())
