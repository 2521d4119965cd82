"""`posttrain chat`: a conversation with a checkpoint in the terminal. Left out: tools, images, serving."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from posttrain.commands.arguments import CHECKPOINT, positive, temperature
from posttrain.errors import RequestError
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
        RequestError: there is no such model, or it has no chat template.
    """
    import torch

    from posttrain.data.tokenizers import load_tokenizer
    from posttrain.models.load import load_scored

    path, _ = ckpt.resolve(options.checkpoint)
    tokenizer = load_tokenizer(tokenizer_place(path))
    if not tokenizer.chat_template:
        raise RequestError(f"{path} has no chat template, so it was not trained on conversations")
    model = load_scored(path, "cuda" if torch.cuda.is_available() else "cpu")
    start = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(start)
    print(HELP, file=sys.stderr)
    while text := _message():
        if text == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
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
        messages.append(
            {"role": "assistant", "content": _reply(model, tokenizer, ids, limit, options.temperature)}
        )


def _message() -> str:
    """The next message; empty where the conversation ends."""
    try:
        text = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
    return text.encode(errors="replace").decode()  # standard input may not be UTF-8


def _reply(model: Any, tokenizer: Any, ids: Any, limit: int, temperature: float) -> str:
    """The reply to the prompt `ids` (1, T) of at most `limit` tokens, printed as it is sampled."""
    import torch
    from transformers import TextStreamer

    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.inference_mode():
        out = model.generate(
            **ids,
            max_new_tokens=limit,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
