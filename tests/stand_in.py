"""A stand-in for vLLM on a thread: the paths that alignax asks, replies that a tiny model of ours really samples."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np

from alignax import sharding
from alignax.interop.origin import family_of
from alignax.models.hf.weights import load_weights
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.stages import parents

ROOM = 32  # tokens of a prompt


class StandIn:
    """An engine with a model, its weights and, to be set by a test, its faults.

    `faults` are taken one by one, by requests for completions: "drop" and "half" close the connection, "500" and
    "abort" are what vLLM says in trouble, a number is a delay in seconds. `spoil` changes a reply. `keys_of(prompt, n)`
    is the noise of n replies; without it every request draws anew.
    """

    def __init__(self, model, params, ends, pad, capacity, *, tokenizer=None, context=64, raw=False, takes=True):
        self.model, self.params, self.ends, self.pad, self.tokenizer = model, params, ends, pad, tokenizer
        self.context, self.raw, self.takes, self.name = context, raw, takes, "policy"
        self.faults, self.spoil, self.keys_of, self.asked, self.folders = [], None, None, [], []
        self.lock = threading.Lock()
        fixed = {"capacity": capacity, "eos_ids": jnp.asarray(ends, jnp.int32), "pad_id": pad, "report": ("raw_logp",)}
        self._sample = jax.jit(
            lambda params, tokens, valid, keys, temperature, group: sample(
                model, params, tokens, valid, keys, options=Options(temperature=temperature), group=group, **fixed
            ),
            static_argnums=5,
        )

    def models(self, body):
        return {"object": "list", "data": [{"id": self.name, "max_model_len": self.context}]}

    def tokenize(self, body):
        assert body["add_special_tokens"] is False
        return {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}

    def completions(self, body):
        self.asked.append(body)
        prompt, n = body["prompt"], body["n"]
        row = np.full((1, ROOM), self.pad, np.int32)
        row[0, ROOM - len(prompt) :] = prompt
        numbers = jnp.arange(n) + 1000 * len(self.asked)
        keys = self.keys_of(prompt, n) if self.keys_of else row_keys(jax.random.key(7), numbers)
        valid = np.arange(ROOM)[None] >= ROOM - len(prompt)
        found = jax.device_get(self._sample(self.params, row, valid, keys, jnp.float32(body["temperature"]), n))
        choices = []
        for i in range(n):
            mask = found.mask[i]
            ids, logp = found.tokens[i][mask].tolist(), (found.raw_logp if self.raw else found.old_logp)[i][mask]
            choice = {"index": i, "token_ids": ids, "logprobs": {"token_logprobs": logp.astype(float).tolist()}}
            choices.append(choice | {"finish_reason": "stop" if found.finished[i] else "length", "text": ""})
        if self.spoil:
            choices = [self.spoil(choice) for choice in choices]
        return {"choices": choices[::-1]}  # in any order

    def load(self, folder):
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        targets = parents.sharded_shapes(shapes, sharding.make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1]))
        config = self.model.config
        self.params = jax.device_get(load_weights(folder, family_of(config, {}), config, targets))
        self.folders.append(folder)

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        self.load(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def update_weights_from_disk(self, body):
        try:
            self.load(body["model_path"])
        except (OSError, ValueError) as error:
            return {"success": False, "message": str(error)}
        return {"success": True}

    def reset_prefix_cache(self, body):
        return {"success": True}


def handler(engine):
    """What answers the requests of an engine."""
    paths = {"/v1/models": engine.models, "/v1/completions": engine.completions}
    paths |= {"/tokenize": engine.tokenize} if engine.tokenizer else {}
    new = ("collective_rpc", "reset_prefix_cache", "update_weights_from_disk") if engine.takes else ()
    paths |= {f"/{name}": getattr(engine, name) for name in new}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, found, part=1.0):
            text = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text[: int(part * len(text))])

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            with engine.lock:
                fault = engine.faults.pop(0) if engine.faults and self.path == "/v1/completions" else None
            if isinstance(fault, float):
                time.sleep(fault)
            if fault == "drop":
                return
            if fault == "500":
                self.answer(500, {"error": {"message": "EngineCore encountered an issue"}})
            elif self.path not in paths:
                self.answer(404, {"detail": "Not Found"})
            elif body.get("model", engine.name) != engine.name:
                self.answer(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            else:
                with engine.lock:
                    found = paths[self.path](body)
                if fault == "abort":
                    found["choices"][0]["finish_reason"] = "abort"
                with contextlib.suppress(OSError):  # a client that no longer waits
                    self.answer(200, found, 0.5 if fault == "half" else 1.0)

        do_GET = do_POST

        def log_message(self, *args):
            pass

    return Handler


@contextlib.contextmanager
def served(engine):
    """The URL of the engine, while it serves."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(engine))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
