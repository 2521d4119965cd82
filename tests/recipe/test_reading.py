"""What YAML can hold and a recipe cannot: one sentence each, quickly; what people do write still loads."""

from __future__ import annotations

import time

import pytest

from posttrain.errors import RequestError
from posttrain.recipe import load, to_yaml
from tests.recipe.minimal import MINIMAL, fails

NAME, STEPS = "name: small", "  max_steps: 10"
LEVELS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (STEPS, "  max_steps: !!set {10}", "small.yaml:11: the YAML tag !!set has no meaning in a recipe"),
        (NAME, "name: !!binary aGFsbG8=", "the YAML tag !!binary has no meaning"),
        ("hidden_size: 32", "hidden_size: !!binary aGFsbG8=", "the YAML tag !!binary has no meaning"),
        (NAME, "name: !!python/object:os.system x", "the YAML tag !!python/object:os.system has no meaning"),
        (NAME, "name: !!timestamp 2026-01-01", "the YAML tag !!timestamp has no meaning"),
        (NAME, "name: !x y", "the YAML tag !x has no meaning"),
        (STEPS, "  max_steps: 010", "YAML reads 010 as an octal number (8); write 10, or '010' for text"),
        (STEPS, "  max_steps: 1:30", "YAML reads 1:30 as a number in base 60"),
        ("1e-3", "1:30.5", "YAML reads 1:30.5 as a number in base 60"),
        (STEPS, f"  max_steps: {'9' * 400}", "a number of 400 digits cannot be used"),
        (STEPS, f"  max_steps: {'9' * 5000}", "a number of 5,000 digits cannot be used"),
        (NAME, "name: no", "yes, no, on and off are true and false in YAML; put the word in quotes"),
        (NAME, 'name: "a\\0b"', r"small.yaml:2: name contains '\x00', which no text file can hold"),
        ("path: a.jsonl", 'path: "a\\0b"', r"data.sources[0].path contains '\x00'"),
        (NAME, "name: a\0b", "not valid YAML: unacceptable character #x0000"),
        (NAME, 'name: "a\\ud800"', "not valid YAML"),
        (STEPS, "\tmax_steps: 10", "not valid YAML"),
        (STEPS, STEPS + "\n  ~: 4", "small.yaml:12: a key must be text"),
        (STEPS, STEPS + "\n  ? [a]\n  : 4", "a key must be text"),
        (STEPS, STEPS + "\n---\nstage: sft", "found another document"),
        (STEPS, STEPS + "\n  extra: &e {a: *e}", "an alias stands inside the value that it means"),
        (STEPS, STEPS + f"\n  extra: {'{a: ' * 90}1{'}' * 90}", "nested more than 60 levels deep"),
        (STEPS, STEPS + f"\n  extra: {'[' * 20000}{']' * 20000}", "nested more than 60 levels deep"),
        (NAME, "l0: &l0 [1]\n" + LEVELS + NAME, "a recipe has at most 10,000 values"),
        (NAME, "name: ${a", "cannot be read: no viable alternative"),
        (NAME, f"name: {'x' * 10_000_000}", "a recipe file has at most 1 MiB"),
    ],
)
def test_what_yaml_can_hold_and_a_recipe_cannot(recipe, old, new, expected):
    assert old in MINIMAL
    recipe.write_text(MINIMAL.replace(old, new))
    begun = time.monotonic()
    text = fails(recipe)
    assert expected in text and len(text.splitlines()) == 1
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_steps=!!set {10}", "the YAML tag !!set has no meaning"),
        ("train.max_steps=010", "YAML reads 010 as an octal number (8)"),
        ("name=a\udcff", r"name contains '\udcff', which no text file can hold"),
        ("train.seed=" + "[" * 5000, "cannot apply"),
        ("data.sources.roles=join", "data.sources is a list; write data.sources.0.roles"),
        ("data.sources.columns.prompt=q", "data.sources is a list; write data.sources.0.columns.prompt"),
        ("data.sources.7.roles=join", "data.sources has 1 item, numbered from 0"),
    ],
)
def test_overrides_too(recipe, override, expected):
    assert expected in fails(recipe, override)


def test_what_people_write_loads(recipe):
    text = MINIMAL.replace(NAME, "name: &n 2026-01-01").replace("1e-3", "1_0e-4")
    text += "  bf16: yes\n  seed: 0x10\noutput_dir: *n\n"
    recipe.write_text("\ufeff" + text.replace("1_0e-4", "1e-3"))
    found = load(recipe)
    assert (found.name, found.output_dir, found.train.seed) == ("2026-01-01", "2026-01-01", 16)
    assert found.train.bf16 is True and found.train.learning_rate == 1e-3
    with pytest.raises(RequestError, match="no such recipe file"):
        load(recipe.parent / "other.yaml")


def test_a_literal_interpolation_survives_recipe_yaml(recipe, tmp_path):
    recipe.write_text(MINIMAL + "loss: {segment: answer, answer_marker: '\\${x} \\\\\\${y}'}\n")
    found = load(recipe)
    assert found.loss.answer_marker == r"${x} \${y}"
    (tmp_path / "again.yaml").write_text(to_yaml(found))
    assert load(tmp_path / "again.yaml") == found
