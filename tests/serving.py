"""A small vLLM server for tests: the protocol that TRL's client speaks with `vllm serve`, on a tiny model.

Everything goes over HTTP as TRL 1.16 sends it: health, models, server info, completions with
log-probabilities, the steps of a weight update. Only the weights do not: vLLM's NCCL transfer needs GPUs, so
`there_is_a_gpu` replaces it at the seam where TRL's client calls vLLM (`NCCLWeightTransferEngine`), by a
queue that the server reads while it handles `/update_weights`. TRL's client and generation class, and all of
ours, run as they are.

    right    the model takes the weights that it is sent
    stale    receives them and keeps its own
    raw      takes them, but returns log-probabilities before the temperature

A foreign server is a stale one with another model; one in another dtype has a model of that dtype.
Left out: images, chat, LoRA, streaming; more than one weight transfer at a time.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from types import SimpleNamespace

import pytest
import torch

WIRES: dict[int, Queue] = {}
"""Port of a weight transfer -> what is sent over it: both ends are in this process."""


class Refused(Exception):
    """A request that the server answers with a status other than 200."""


class Server:
    """`model` under `url`; `info` replaces what it says of itself, `requests` lists (path, body)."""

    def __init__(self, model, mode: str = "right", seed: int = 0, **info) -> None:
        self.model, self.mode = model.eval(), mode
        self.random = torch.Generator().manual_seed(seed)
        self.requests: list[tuple[str, dict]] = []
        self.wire: Queue | None = None
        self.updating, self.updates, self.lock = False, 0, threading.Lock()
        self.config = self._describe() | info

    def _describe(self) -> dict:
        config = self.model.config
        shape = {
            "model_type": config.model_type,
            "text_model_type": config.model_type,
            "hidden_size": config.hidden_size,
            "total_num_hidden_layers": config.num_hidden_layers,
            "vocab_size": config.vocab_size,
        }
        return {
            "model": "org/served",
            "dtype": str(self.model.dtype),
            "max_model_len": config.max_position_embeddings,
            "logprobs_mode": "processed_logprobs",
            "quantization": None,
            "model_arch_config": shape,
        }

    # ---- GET -----------------------------------------------------------------------------------------------

    def health(self, body):
        return {}

    def models(self, body):
        one = {"id": self.config["model"], "object": "model", "max_model_len": self.config["max_model_len"]}
        return {"object": "list", "data": [one]}

    def server_info(self, body):
        return {"vllm_config": {"model_config": self.config, "weight_transfer_config": {"backend": "nccl"}}}

    def world_size(self, body):
        return {"world_size": 1}

    # ---- POST ----------------------------------------------------------------------------------------------

    def init_transfer(self, body):
        self.wire = WIRES.setdefault(body["init_info"]["master_port"], Queue())
        return {"message": "ok"}

    def start_update(self, body):
        if self.wire is None or self.updating:
            raise Refused("no weight transfer was opened, or an update is under way")
        self.updating = True
        return {"message": "ok"}

    def update(self, body):
        if not self.updating:
            raise Refused("no update was started")
        own, given = dict(self.model.named_parameters()), body["update_info"]
        for name, dtype, shape in zip(given["names"], given["dtype_names"], given["shapes"], strict=True):
            sent, tensor = self.wire.get(timeout=30)
            if (sent, str(tensor.dtype), list(tensor.shape)) != (name, f"torch.{dtype}", shape):
                raise Refused(f"announced {name} {dtype} {shape}, but {sent} {tensor.dtype} arrived")
            if self.mode != "stale":
                if name not in own or own[name].shape != tensor.shape:
                    raise Refused(f"the model has no {name} of shape {shape}")
                own[name].data.copy_(tensor)
        return {"message": "ok"}

    def finish_update(self, body):
        self.updating, self.updates = False, self.updates + 1
        return {"message": "ok"}

    def reset_cache(self, body):
        return {"success": True}

    def completions(self, body):
        if body["model"] != self.config["model"]:
            raise Refused(f"the model {body['model']} does not exist")
        choices = []
        with self.lock:
            for prompt in body["prompt"]:
                for _ in range(body["n"]):
                    choices.append(self._choice(prompt, body) | {"index": len(choices)})
        return {"object": "text_completion", "choices": choices}

    @torch.no_grad()
    def _choice(self, prompt: list[int], body: dict) -> dict:
        if len(prompt) + body["max_tokens"] > self.config["max_model_len"]:
            raise Refused(f"{len(prompt)} + {body['max_tokens']} tokens are more than max_model_len")
        ids, log_probs, stops = [], [], set(body["stop_token_ids"])
        while len(ids) < body["max_tokens"] and not (ids and ids[-1] in stops):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1].float()
            sampled = _nucleus(logits / body["temperature"], body["top_p"])
            ids.append(int(torch.multinomial(sampled.exp(), 1, generator=self.random)))
            said = logits.log_softmax(-1) if self.mode == "raw" else sampled
            log_probs.append(float(said[ids[-1]]))
        tokens = [f"token_id:{i}" for i in ids]
        top = [{token: value} for token, value in zip(tokens, log_probs, strict=True)]
        said = {"tokens": tokens, "token_logprobs": log_probs, "top_logprobs": top}
        return {"prompt_token_ids": prompt, "token_ids": ids, "logprobs": said}


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities [V] after top_p: the fewest tokens that have this probability together."""
    log_probs, order = logits.log_softmax(-1).sort(descending=True)
    before = log_probs.exp().cumsum(-1) - log_probs.exp()
    kept = torch.full_like(logits, -torch.inf)
    kept[order[before < top_p]] = logits[order[before < top_p]]
    return kept.log_softmax(-1)


ROUTES = {
    "/health": Server.health,
    "/v1/models": Server.models,
    "/server_info": Server.server_info,
    "/get_world_size": Server.world_size,
    "/v1/completions": Server.completions,
    "/init_weight_transfer_engine": Server.init_transfer,
    "/start_weight_update": Server.start_update,
    "/update_weights": Server.update,
    "/finish_weight_update": Server.finish_update,
    "/reset_prefix_cache": Server.reset_cache,
}


class Handler(BaseHTTPRequestHandler):
    """Passes a request to the `Server` of the HTTP server."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(json.loads(self.rfile.read(length)) if length else {})

    def _answer(self, body: dict) -> None:
        server, path = self.server.served, self.path.partition("?")[0]
        server.requests.append((path, body))
        status, answer = 404, {"error": path}
        if path in ROUTES:
            try:
                status, answer = 200, ROUTES[path](server, body)
            except Refused as error:
                status, answer = 400, {"error": str(error)}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args) -> None:
        """Nothing on stderr."""


@contextmanager
def serving(server: Server):
    """Serves until the block ends; `server.url` is its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.served, server.url = server, f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
        WIRES.clear()


# ---- the client's side -------------------------------------------------------------------------------------


class Transfer:
    """vLLM's `NCCLWeightTransferEngine` without NCCL: tensors are put into the queue of the server's port."""

    @staticmethod
    def trainer_init(init_info):
        wire = WIRES.setdefault(init_info["master_port"], Queue())
        return SimpleNamespace(wire=wire, group=SimpleNamespace())

    @staticmethod
    def trainer_send_weights(iterator, trainer_args):
        for name, tensor in iterator:
            trainer_args.group.wire.put((name, tensor.detach().clone()))


class TorchWithGpu:
    """The module torch in the client, which asks only whether the policy's device is a GPU."""

    def __getattr__(self, name):
        return getattr(torch, name)

    @staticmethod
    def device(*named):
        return SimpleNamespace(type="cuda", index=None)


def pretend(patch: pytest.MonkeyPatch) -> None:
    """The policy's device passes for a GPU and vLLM for installed; weights travel through a queue."""
    pytest.importorskip("requests", reason="TRL's client needs requests (pip install 'posttrain[test]')")
    from trl.generation import vllm_client, vllm_generation

    from posttrain.generation import vllm_settings
    from posttrain.stages import train

    patch.setattr(train, "trains_on_cpu", lambda: False)
    patch.setattr(vllm_settings, "find_spec", lambda name: True)
    for module in (vllm_client, vllm_generation):
        patch.setattr(module, "is_vllm_available", lambda **_: True)
    patch.setattr(vllm_client, "torch", TorchWithGpu())
    for name, value in (
        ("get_ip", lambda: "127.0.0.1"),
        ("NCCLWeightTransferEngine", Transfer),
        ("NCCLTrainerSendWeightsArgs", SimpleNamespace),
    ):
        patch.setattr(vllm_client, name, value, raising=False)


@pytest.fixture
def there_is_a_gpu(monkeypatch):
    """See `pretend`."""
    pretend(monkeypatch)
