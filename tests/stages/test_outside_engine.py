"""The online stage with an outside engine: a stand-in that draws by the same keys gives the run that we sample."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_runs import CAPACITY, GROUP, STEPS, config, write_prompts
from errors import refuses
from safetensors.numpy import load_file
from stage_runs import metrics
from stand_in import StandIn, served
from tiny import close

from alignax.checkpoint import load_params
from alignax.config import ConfigError
from alignax.data.encode import encode_prompt
from alignax.data.tokenizer import load_tokenizer
from alignax.interop.export import export
from alignax.manifest import read_manifest
from alignax.sampling.endpoint import EngineError
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import sampler
from alignax.stages import online, parents

RATIO, DIFFERENCE = "sampling/importance_sampling_ratio", "sampling/sampling_logp_difference"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the prompts."""
    return write_prompts(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def plain(run, folder):
    """The run without an engine."""
    return online.run(config(run, folder), folder / "plain")


@pytest.fixture(scope="module")
def stand_in(run, folder):
    """(the engine with the policy's own weights and tokenizer, its URL)."""
    manifest = read_manifest(run / "sft")
    tokenizer = load_tokenizer(str(run / "sft/tokenizer"))
    model, params = parents.whole(run / "sft", manifest)
    own = sampler(model, tokenizer, "chat", CAPACITY)
    engine = StandIn(model, jax.device_get(params), own.ends, own.pad, CAPACITY, tokenizer=tokenizer, context=48)
    with served(engine) as url:
        yield engine, url


@pytest.fixture
def at(stand_in):
    server, url = stand_in
    weights = server.params
    server.raw, server.keys_of, server.folders = False, None, []
    yield server, url
    server.params = weights


def test_a_run_equals_our_own(run, folder, plain, at, tmp_path):
    server, url = at
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    ids = {tuple(encode_prompt(server.tokenizer, row["prompt"], "chat")): i for i, row in enumerate(rows)}
    key = jax.random.key(0)  # config.seed

    def keys_of(prompt, n):  # as `produce` makes them: of the step, which is one for each set of weights
        noise = jax.random.fold_in(jax.random.fold_in(key, len(server.folders) - 1), 0)
        return row_keys(noise, ids[tuple(prompt)] * GROUP + jnp.arange(n))

    server.keys_of = keys_of
    out = online.run(config(run, folder, engine=url, engine_args=dict(timeout_s=60.0)), tmp_path / "engine")
    got, want = metrics(out), metrics(plain)
    assert len(server.folders) == STEPS and len(set(server.folders)) == STEPS
    for step, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert mine["sampling/staleness"] == 0 and mine[f"{DIFFERENCE}/mean"] < 1e-4, step
        for name in theirs:
            if not name.startswith("time/") and name != "split":
                np.testing.assert_allclose(mine[name], theirs[name], rtol=2e-3, atol=2e-4, err_msg=f"{name} {step}")
    close(load_params(out / "params"), load_params(plain / "params"), atol=1e-4)
    kept = list((out / "engine").iterdir())
    assert [path.name for path in kept] == [f"step-{STEPS - 1}"] and (kept[0] / "config.json").is_file()


def test_older_weights_are_measured_and_corrected(run, folder, at, tmp_path):
    server, url = at
    more = dict(every=2, timeout_s=60.0, folder=str(tmp_path / "weights"), reload="sglang")
    c = config(run, folder, engine=url, engine_args=more, optimizer_args=dict(learning_rate=3e-3))
    c.correction, c.correction_args = "masked_weights", dict(cap=1.3)
    first, second, third = metrics(online.run(c, tmp_path / "stale"))
    assert [row["sampling/staleness"] for row in (first, second, third)] == [0, 1, 0]
    assert first[f"{DIFFERENCE}/max"] < 1e-3 < second[f"{DIFFERENCE}/mean"] > 10 * third[f"{DIFFERENCE}/mean"]
    assert second[f"{RATIO}/min"] < second[f"{RATIO}/mean"] < second[f"{RATIO}/max"]
    assert first["sampling/kept"] == third["sampling/kept"] == 1 > second["sampling/kept"] > 0
    assert len(server.folders) == 2 and [path.name for path in (tmp_path / "weights/stale").iterdir()] == ["step-2"]


@pytest.mark.slow
def test_adapters_and_a_reward_model(run, folder, at, tmp_path):
    """The engine gets the adapter worked into its base, and the scores are of the device."""
    server, url = at
    c = config(run, folder, engine=url, reward="", reward_from=str(run / "reward"), lora_args=dict(rank=2))
    c.optimizer_args, c.total_steps, c.save_every_steps = dict(learning_rate=3e-2), 2, 2
    first, second = metrics(online.run(c, tmp_path / "adapted"))
    assert first[f"{DIFFERENCE}/mean"] < 1e-4 > second[f"{DIFFERENCE}/mean"] and second["objective/kl"] > 1e-4
    assert len(server.folders) == 2 and np.isfinite(second["objective/scores"])


def test_other_weights_and_untempered_log_probabilities(run, folder, at, tmp_path):
    server, url = at
    server.params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape), server.params)
    frozen = config(run, folder, engine=url, engine_args=dict(reload="none", timeout_s=60.0))
    with refuses(EngineError, url, "nats", "expected at most 0.1", "engine_args.reload"):
        online.run(frozen, tmp_path / "other")
    server.raw = True
    with refuses(EngineError, url, "temperature 1", "samples at 0.8", "processed_logprobs"):
        online.run(config(run, folder, engine=url, engine_args=dict(timeout_s=60.0)), tmp_path / "raw")
    assert server.folders  # it took the policy's weights


def test_an_untied_export_has_the_output_layer_too(run, tmp_path):
    tied, untied = (export(run / "sft", tmp_path / str(value), untied=value) for value in (False, True))
    before, after = (load_file(folder / "model.safetensors") for folder in (tied, untied))
    assert after.keys() - before.keys() == {"lm_head.weight"}
    np.testing.assert_array_equal(after["lm_head.weight"], before["model.embed_tokens.weight"])
    said = [json.loads((folder / "config.json").read_text())["tie_word_embeddings"] for folder in (tied, untied)]
    assert said == [True, False]


def test_a_context_that_is_too_short(run, folder, at, tmp_path):
    _, url = at
    with refuses(EngineError, url, "context of 48", "--max-model-len"):
        online.run(config(run, folder, engine=url, max_prompt_length=40), tmp_path / "short")


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(engine_args=dict(every=2)), ("config.engine_args", "config.engine is empty")),
        (dict(engine="localhost:8000"), ("config.engine_args: engine: url = 'localhost:8000'", "http://HOST:PORT")),
        (dict(engine="http://h:1", engine_args=dict(evry=2)), ("config.engine_args.evry", "every")),
        (dict(engine="http://h:1", engine_args=dict(every=0)), ("config.engine_args: engine: every = 0", "1 or more")),
        (dict(engine="http://h:1", engine_args=dict(reload="vlm")), ("config.engine_args.reload = 'vlm'", "vllm")),
        (dict(engine="http://h:1", engine_args=dict(dtype="int8")), ("config.engine_args.dtype", "bfloat16")),
        (dict(correction="masked"), ("config.correction = 'masked'", "masked_weights")),
        (dict(correction="masked_weights", correction_args=dict(cap=0.5)), ("masked_weights: cap = 0.5", "1 or more")),
    ],
)
def test_what_a_config_cannot_say(run, folder, values, words):
    with refuses(ConfigError, *words):
        online.plan(config(run, folder, **values))


def test_an_engine_gives_no_opponents_replies(run, folder):
    c = config(run, folder, engine="http://h:1", opponent="greedy", advantage="remax", advantage_args={})
    with refuses(ConfigError, "config.opponent = 'greedy'", "'none' with an engine"):
        online.plan(c)
