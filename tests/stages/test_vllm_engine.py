"""A real vLLM server as the engine. Slow, and only where ALIGNAX_VLLM names an interpreter that has vLLM.

Command: ALIGNAX_VLLM=/path/to/python pytest -n 0 -m slow tests/stages/test_vllm_engine.py
"""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request

import jax.numpy as jnp
import numpy as np
import pytest
from engine_runs import config, write_prompts
from errors import refuses
from stage_runs import file_config, metrics

from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import load_tokenizer
from alignax.interop.export import export
from alignax.manifest import read_manifest
from alignax.sampling.endpoint import EngineError
from alignax.sampling.engine import checked, engine
from alignax.sampling.options import Options
from alignax.sampling.sampler import sampler
from alignax.stages import online, parents, sft
from alignax.worlds import sources

PYTHON = os.environ.get("ALIGNAX_VLLM", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="ALIGNAX_VLLM names no interpreter")]
ENVIRONMENT = dict(VLLM_SERVER_DEV_MODE="1", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
MEAN = "sampling/sampling_logp_difference/mean"


@contextlib.contextmanager
def vllm(folder, log, *options):
    """The URL of a server on the folder, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = ["--model", str(folder), "--host", "127.0.0.1", "--port", port, "--served-model-name", "policy"]
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *where, "--dtype", "float32", "--enforce-eager"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")} | ENVIRONMENT
    with log.open("w") as out:
        server = subprocess.Popen([*command, *options], stdout=out, stderr=out, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a finished policy, "sft", whose heads are as wide as vLLM's kernels on a CPU ask for: 32."""
    path = tmp_path_factory.mktemp("policy")
    c = file_config("world/sft.py")
    c.model_args = dict(dim=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128)
    c.data.count, c.data.heldout, c.total_steps, c.eval_every_steps, c.save_every_steps = 512, 64, 40, 0, 40
    sft.run(c, path / "sft")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the prompts."""
    return write_prompts(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def url(run, tmp_path_factory):
    """vLLM on the tiny policy, whose embeddings are untied for it: see docs/online.md."""
    path = tmp_path_factory.mktemp("vllm")
    with vllm(export(run / "sft", path / "exported", untied=True), path / "log.txt",
              "--logprobs-mode", "processed_logprobs") as url:  # fmt: skip
        yield url


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_run_with_vllm(run, folder, url, tmp_path, temperature):
    """Its log-probabilities are the learner's at every step, with the weights of that step."""
    settings = dict(engine=url, engine_args=dict(untied=True), temperature=temperature)
    c = config(run, folder, **settings, optimizer_args=dict(learning_rate=3e-3))
    rows = metrics(online.run(c, tmp_path / "run"))
    for row in rows:
        print({name: value for name, value in row.items() if name.startswith("sampling/")})
        assert row["sampling/staleness"] == 0 and row[MEAN] < 1e-4
        assert row["sampling/sampling_logp_difference/max"] < 1e-3


def test_older_weights_show(run, folder, url, tmp_path):
    settings = dict(engine=url, engine_args=dict(untied=True, every=2))
    c = config(run, folder, **settings, optimizer_args=dict(learning_rate=3e-3))
    first, second, third = metrics(online.run(c, tmp_path / "run"))
    assert max(first[MEAN], third[MEAN]) < 1e-4 < 0.1 < second[MEAN] and second["sampling/staleness"] == 1


def test_it_samples_from_the_policy(run, url, tmp_path):
    """Frequencies of the first token of a reply against the policy's probabilities: chi-square below its 1e-4 tail."""
    manifest, tokenizer = read_manifest(run / "sft"), load_tokenizer(str(run / "sft/tokenizer"))
    model, params = parents.whole(run / "sft", manifest)
    own = sampler(model, tokenizer, "chat", 1)
    client = checked(engine(url, timeout_s=120.0), tokenizer, 24)
    client.reload(client.endpoint, str(export(run / "sft", tmp_path / "out", untied=True)), timeout_s=120.0)
    prompt = encode_prompt(tokenizer, str(sources.prompts(split="train", count=1)[0][0]["prompt"]), "chat")
    tokens = np.tile(np.asarray(prompt, np.int32), (64, 1))
    fixed = dict(capacity=1, ends=own.ends, pad=own.pad, vocab_size=model.config.vocab_size)
    found = client.reply(tokens, np.ones(tokens.shape, bool), **fixed, options=Options(temperature=0.7), group=64)
    hidden = model.apply(params, jnp.asarray(tokens[:1]), jnp.ones((1, tokens.shape[1]), bool))
    logits = np.asarray(hidden[0, -1] @ model.unembed(params))[: model.config.vocab_size] / 0.7
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() * 64 * 64
    seen = np.bincount(found.tokens[:, -1], minlength=len(expected))
    often = expected >= 5
    chi = np.sum((seen - expected)[often] ** 2 / expected[often])
    assert chi < often.sum() + 4 * np.sqrt(2 * often.sum())


def test_raw_log_probabilities_are_refused(run, folder, tmp_path):
    with vllm(export(run / "sft", tmp_path / "exported", untied=True), tmp_path / "log.txt") as url:
        c = config(run, folder, engine=url, engine_args=dict(untied=True), temperature=0.7)
        with refuses(EngineError, url, "temperature 1", "samples at 0.7", "processed_logprobs"):
            online.run(c, tmp_path / "run")
