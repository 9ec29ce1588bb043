"""An outside engine over HTTP, a stand-in that samples with our own model: what comes back, and what is refused."""

import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from stand_in import StandIn, served
from tiny import EOS, PAD, VOCAB, prompt_batch, tiny

from alignax import forward
from alignax.ops.checks import Refused
from alignax.sampling.endpoint import EngineError
from alignax.sampling.engine import checked, engine
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys
from alignax.sampling.sampler import Sampler

CAPACITY, ENDS = 6, (EOS, 2)
FIXED = dict(capacity=CAPACITY, ends=ENDS, pad=PAD, vocab_size=VOCAB, group=2)
PATIENT = dict(timeout_s=30.0, retries=4, wait_s=0.01, workers=4)


class Letters:
    """A tokenizer with an id for each character, shifted."""

    def __init__(self, shift=0):
        self.shift = shift

    def __len__(self):
        return VOCAB

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [(ord(letter) + self.shift) % VOCAB for letter in text]}

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(i + 2 * VOCAB) for i in ids)


@pytest.fixture(scope="module")
def stand_in():
    model, params = tiny(layers=1)
    engine = StandIn(model, params, ENDS, PAD, CAPACITY, tokenizer=Letters())
    with served(engine) as url:
        yield engine, url


@pytest.fixture
def at(stand_in):
    """(the engine, its URL, a client), without faults."""
    server, url = stand_in
    model, params = tiny(layers=1)
    server.faults, server.spoil, server.asked, server.raw, server.params = [], None, [], False, params
    yield server, url, engine(url, **PATIENT, model="policy")
    assert not server.faults


def prompts(B=4):
    batch = prompt_batch(4)
    return np.asarray(batch["tokens"])[:B], np.asarray(batch["valid"])[:B]


def test_a_greedy_rollout_equals_our_own(at):
    server, _, client = at
    model, params = tiny(layers=1)
    tokens, valid = prompts()
    got = client.reply(tokens, valid, **FIXED, options=Options(temperature=0.0))
    own = Sampler(model, CAPACITY, ENDS, PAD)
    keys = row_keys(jax.random.key(0), jnp.arange(8))
    reply = jax.jit(lambda *args: own.reply(params, *args, Options(temperature=0.0), group=2))
    want = reply(tokens, valid, keys)
    for name in ("tokens", "valid", "mask", "finished", "reason"):
        mine, theirs = getattr(got, name), getattr(want, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    np.testing.assert_allclose(got.old_logp, want.old_logp, atol=1e-5)
    assert got.old_logp.dtype == np.float32


@jax.jit
def learners(params, tokens, valid, temperature):
    return forward.token_statistics(tiny(layers=1)[0], params, tokens, valid, temperature=temperature).logp


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_learners(at, temperature):
    server, _, client = at
    model, params = tiny(layers=1)
    got = client.reply(*prompts(), **FIXED, options=Options(temperature=temperature))
    logp = learners(params, got.tokens, got.valid, temperature)
    np.testing.assert_allclose(np.asarray(logp)[got.mask], got.old_logp[got.mask], atol=2e-5)
    assert (got.tokens[0] != got.tokens[1]).any() and got.finished.any() and not got.finished.all()
    assert (got.mask.sum(1) == CAPACITY)[~got.finished].all()
    last = got.tokens[np.arange(8), 4 + got.mask.sum(1)]
    np.testing.assert_array_equal(np.isin(last, ENDS), got.finished)
    (sent, *_) = server.asked
    assert sent["ignore_eos"] and sent["stop_token_ids"] == list(ENDS) and sent["top_p"] == 1.0 and sent["top_k"] == -1
    assert "seed" not in sent  # vLLM's generator on a CPU fails with one


def test_options_of_an_engine(at):
    server, _, client = at
    options = Options(top_k=5, top_p=0.9, min_p=0.1, max_new_tokens=6, min_new_tokens=0, presence_penalty=0.5)
    client.reply(*prompts(1), **FIXED, options=options)
    sent = server.asked[0]
    assert (sent["top_k"], sent["top_p"], sent["min_p"], sent["presence_penalty"]) == (5, 0.9, 0.1, 0.5)
    for name, value in (("temperature", jnp.ones(4)), ("logit_bias", jnp.zeros(VOCAB)), ("prefix", jnp.ones(2, int))):
        with refuses(ValueError, name, "one number", "here"):
            client.reply(*prompts(), **FIXED, options=Options(**{name: value}))
    with refuses(ValueError, "min_p = 2.0", "share"):
        client.reply(*prompts(), **FIXED, options=Options(min_p=2.0))


def test_a_lost_answer_is_asked_for_again(at):
    server, _, client = at
    server.faults = ["drop", "half", "500", "abort", "drop"]
    got = client.reply(*prompts(), **FIXED)
    assert got.tokens.shape == (8, 5 + CAPACITY) and got.mask.any(1).all()
    assert len(server.asked) == 4 + 2  # of those that were lost, two were sampled


def test_an_engine_that_goes_on_dying(at):
    server, url, client = at
    server.faults = ["drop", "500", "half"]
    client = client._replace(endpoint=client.endpoint._replace(retries=2))
    with refuses(EngineError, f"{url}/v1/completions", "3 times", "expected", "see in its log"):
        client.reply(*prompts(1), **FIXED)


def test_a_slow_engine(at):
    server, url, client = at
    server.faults = [1.0]
    client = engine(url, **PATIENT | dict(timeout_s=0.2))
    with refuses(EngineError, url, "0.2 s", "expected all", "engine_args.timeout_s"):
        client._replace(model="policy").reply(*prompts(1), **FIXED)


def test_nobody_is_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with refuses(EngineError, url, "2 times", "expected an OpenAI-compatible server", "Start"):
        checked(engine(url, **PATIENT | dict(retries=1)), Letters(), 10)


def test_an_engine_that_fits(at):
    _, url, _ = at
    assert checked(engine(url, **PATIENT), Letters(), 64).model == "policy"


@pytest.mark.parametrize(
    "settings, tokenizer, longest, words",
    [
        (dict(model="other"), Letters(), 10, ("serves policy", "'other'", "--served-model-name")),
        ({}, Letters(), 65, ("context of 64", "expected 65", "--max-model-len 65")),
        ({}, Letters(shift=1), 10, ("encodes", "expected", "alignax export")),
    ],
)
def test_a_mismatched_engine(at, settings, tokenizer, longest, words):
    _, url, _ = at
    with refuses(EngineError, url, *words):
        checked(engine(url, **PATIENT, **settings), tokenizer, longest)


@pytest.mark.parametrize("said", [None, {"detail": "a web page"}, {"data": []}])
def test_a_port_that_another_program_has(at, said):
    server, _, _ = at
    with served(Other(server, said)) as url, refuses(EngineError, url, "expected"):
        checked(engine(url, **PATIENT | dict(retries=0)), Letters(), 10)


class Other:
    """A program that says this at every path that it knows."""

    tokenizer, takes, faults, name = None, False, (), ""

    def __init__(self, server, said):
        self.lock, self.models, self.completions = server.lock, lambda body: said, None


@pytest.mark.parametrize(
    "spoil, words",
    [
        (dict(token_ids=None), ("no token ids", "return_token_ids", "release")),
        (dict(logprobs=None), ("no token ids", "expected")),
        (dict(token_ids=[VOCAB + 3], logprobs=dict(token_logprobs=[-1.0])), ("token 53", "less than 50", "export")),
        (dict(token_ids=[EOS], logprobs=dict(token_logprobs=[None])), ("no number", "weights")),
        (dict(token_ids=[5], logprobs=dict(token_logprobs=[-1.0]), finish_reason="stop"), ("(stop)", "an end among")),
        (
            dict(token_ids=[5], logprobs=dict(token_logprobs=[-1.0]), finish_reason="length"),
            ("(length)", "--max-model"),
        ),
    ],
)
def test_replies_that_are_none(at, spoil, words):
    server, url, client = at
    server.spoil = lambda choice: choice | spoil
    with refuses(EngineError, words[0], *words[1:]):
        client.reply(*prompts(1), **FIXED)


@pytest.mark.parametrize(
    "url, settings, words",
    [
        ("127.0.0.1:8000", {}, ("url = '127.0.0.1:8000'", "http://HOST:PORT")),
        ("http://host:8000/v1", {}, ("url = 'http://host:8000/v1'", "without a path")),
        ("http://host:8000", dict(every=0), ("every = 0", "1 or more")),
        ("http://host:8000", dict(retries=-1), ("retries = -1", "0 or more")),
        ("http://host:8000", dict(workers=0), ("workers = 0", "1 or more")),
        ("http://host:8000", dict(timeout_s=0.0), ("timeout_s = 0.0", "above 0")),
        ("http://host:8000", dict(max_difference=0.0), ("max_difference = 0.0", "above 0")),
        ("http://host:8000", dict(wait_s=-1.0), ("wait_s = -1.0", "0 or more")),
        ("http://host:8000", dict(key_variable="NO_SUCH_KEY"), ("key_variable = 'NO_SUCH_KEY'", "environment")),
    ],
)
def test_settings_that_cannot_be(url, settings, words):
    with refuses(Refused, *words):
        engine(url, **settings)


@pytest.mark.parametrize("reload", ["vllm", "sglang", "none"])
def test_new_weights(at, tmp_path, reload):
    server, url, _ = at
    client = engine(url, **PATIENT, reload=reload)
    if reload == "sglang":
        with refuses(EngineError, url, "did not take", "expected a folder"):
            client.reload(client.endpoint, str(tmp_path / "absent"), timeout_s=60.0)
    if reload == "none":
        client.reload(client.endpoint, str(tmp_path), timeout_s=60.0)
        assert server.params is tiny(layers=1)[1]


def test_an_engine_that_takes_no_weights(at):
    server, _, _ = at
    model, params = tiny(layers=1)
    with served(StandIn(model, params, ENDS, PAD, CAPACITY, takes=False)) as url:
        client = engine(url, **PATIENT)
        with refuses(EngineError, f"{url}/collective_rpc", "VLLM_SERVER_DEV_MODE=1", "'none'"):
            client.reload(client.endpoint, "somewhere", timeout_s=60.0)
        assert checked(client, Letters(shift=1), 10).model == "policy"  # it does not say how it encodes
