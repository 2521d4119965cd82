"""`posttrain chat`: a conversation with a checkpoint in the terminal. Left out: tools, images, serving."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from posttrain.base.printable import printable
from posttrain.commands.arguments import CHECKPOINT, positive, temperature
from posttrain.errors import RequestError
from posttrain.generation.base import completion_text, end_tokens, ending_of
from posttrain.rundir import checkpoints as ckpt
from posttrain.rundir.adapters import tokenizer_place

HELP = "Type a message; an empty line or Ctrl-D ends. /new starts a new conversation."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help=CHECKPOINT)
    parser.add_argument("--system", help="system message")
    parser.add_argument("--temperature", type=temperature, default=0.7, metavar="T", help="0: greedy")
    parser.add_argument("--max-new-tokens", type=positive, default=512, metavar="N", help="of one reply")


def run(options: argparse.Namespace) -> None:
    """Reads messages from standard input and streams replies to standard output.

    Raises:
        RequestError: there is no such model, or it has no chat template, or one that refuses the messages.
    """
    import torch

    from posttrain.data.template import own_template
    from posttrain.data.tokenizers import load_tokenizer
    from posttrain.models.load import load_scored

    path, _ = ckpt.resolve(options.checkpoint)
    tokenizer = load_tokenizer(tokenizer_place(path))
    if not tokenizer.chat_template:
        raise RequestError(f"{path} has no chat template, so it was not trained on conversations")
    model = load_scored(path, "cuda" if torch.cuda.is_available() else "cpu")
    template = own_template(tokenizer)
    stops = end_tokens(model, tokenizer, template.stops if template else ())
    start = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(start)
    print(HELP, file=sys.stderr)
    while text := _message():
        if text == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        prompt = _prompt(tokenizer, messages, path)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
        positions = getattr(model.config, "max_position_embeddings", None)
        room = options.max_new_tokens if positions is None else positions - ids["input_ids"].shape[1]
        if room <= 1 and positions is not None:
            print(
                f"the conversation fills the model's {positions} positions; /new starts a new one",
                file=sys.stderr,
            )
            messages.pop()
            continue
        limit = min(options.max_new_tokens, room)
        stream = Stream(tokenizer, stops, template.endings if template else [])
        _sample(model, ids, limit, options.temperature, stream)
        messages.append({"role": "assistant", "content": stream.text})


def _prompt(tokenizer: Any, messages: list[dict[str, str]], path: str) -> str:
    """The conversation up to where the reply begins."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:  # for example no system messages
        raise RequestError(f"the chat template of {path} refuses the conversation: {error}") from error


def _message() -> str:
    """The next message; empty where the conversation ends."""
    try:
        text = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    return text.encode(errors="replace").decode()  # standard input may not be UTF-8


class Stream:
    """A streamer of `generate` that prints a reply while it is sampled. It ends with one of the tokens
    `stops`, or with one of `endings`, ends of a turn of several tokens.

    A character that is not complete yet waits for its other tokens, and so does the text of an ending.
    """

    def __init__(self, tokenizer: Any, stops: list[int], endings: list[list[int]] | None = None) -> None:
        self.tokenizer, self.stops, self.endings = tokenizer, stops, endings or []
        self.ids: list[int] | None = None
        self.printed = 0

    @property
    def text(self) -> str:
        """The reply so far."""
        ids = self.ids or []
        single = bool(ids) and ids[-1] in self.stops
        return completion_text(self.tokenizer, ids, ended=self._matched() or int(single))

    def ends(self, ids: list[int]) -> bool:
        """Whether the last of `ids` are an end of several tokens."""
        return ending_of(ids, self.endings) > 0

    def _matched(self) -> int:
        """How many of the last tokens begin an end of several tokens."""
        begun = (ending[: i + 1] for ending in self.endings for i in range(len(ending)))
        return ending_of(self.ids or [], begun)

    def put(self, tokens: Any) -> None:
        """Called by `generate` with the prompt, then with each token."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += tokens.tolist()
        self._print(self.text.rstrip("\ufffd"))

    def end(self) -> None:
        """Called by `generate` after the last token."""
        if not self.ends(self.ids or []):
            self.endings = []  # what began one is text
        self._print(self.text)
        print()

    def _print(self, text: str) -> None:
        print(printable(text[self.printed :]), end="", flush=True)
        self.printed = max(self.printed, len(text))


def _sample(model: Any, ids: Any, limit: int, temperature: float, stream: Stream) -> None:
    """Samples a reply of at most `limit` tokens to the prompt `ids` (1, T) into `stream`."""
    import torch
    from transformers import StoppingCriteriaList

    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        model.generate(
            **ids,
            max_new_tokens=limit,
            streamer=stream,
            eos_token_id=stream.stops,
            stopping_criteria=StoppingCriteriaList([lambda row, *_, **__: stream.ends(row[0].tolist())]),
            pad_token_id=stream.tokenizer.pad_token_id,
            **sampling,
        )
