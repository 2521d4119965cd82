"""A conversation with a checkpoint in the terminal. Left out: tools, images, serving."""

from __future__ import annotations

import sys

import torch
from transformers import TextStreamer

from posttrain.data.tokenizers import load_tokenizer
from posttrain.errors import RequestError
from posttrain.models.load import load_scored
from posttrain.rundir import checkpoints as ckpt

HELP = "Type a message; an empty line or Ctrl-D ends. /new forgets the conversation."


def chat(reference: str, system: str | None, temperature: float, max_new_tokens: int) -> None:
    """Read messages from standard input and stream replies to standard output.

    Raises `RequestError` where there is no such model, or it has no chat template.
    """
    path, _ = ckpt.resolve(reference)
    tokenizer = load_tokenizer(path)
    if not tokenizer.chat_template:
        raise RequestError(f"{path} has no chat template: it was not trained to talk")
    model = load_scored(path, "cuda" if torch.cuda.is_available() else "cpu")
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    print(HELP, file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        text = text.encode(errors="replace").decode()  # bytes on stdin that are no UTF-8
        if not text:
            return
        if text == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
        room = getattr(model.config, "max_position_embeddings", None)
        if room is not None and ids["input_ids"].shape[1] + 1 >= room:
            print(f"the conversation fills the model's {room} positions; /new starts over", file=sys.stderr)
            messages.pop()
            continue
        limit = max_new_tokens if room is None else min(max_new_tokens, room - ids["input_ids"].shape[1])
        sampling = (
            {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        )
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        with torch.inference_mode():
            out = model.generate(
                **ids,
                max_new_tokens=limit,
                streamer=streamer,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )
        reply = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": reply})
