"""Requests that arrive over time get what the sampler gives, whatever is beside them, and nothing compiles again."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import EOS, PAD, tiny

from alignax import forward
from alignax.sampling.options import Options
from alignax.sampling.programs import Ask, buckets
from alignax.sampling.sample import row_keys, sample
from alignax.sampling.sampler import Sampler
from alignax.sampling.service import Service
from alignax.sampling.stream import Growing, Until, cut

LENGTH, ENDS = 40, (EOS, 2, 3)


class Letters:
    """A tokenizer that writes a letter for each id."""

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        assert not skip_special_tokens and not clean_up_tokenization_spaces
        return "".join(chr(65 + i) for i in ids)


@pytest.fixture(scope="module")
def service():
    model, params = tiny()
    with Service(Sampler(model, 0, ENDS, PAD, Letters()), params, slots=3, length=LENGTH) as made:
        yield made


def prompt(size, seed=0):
    return tuple(np.random.default_rng(seed + 31 * size).integers(4, 50, size).tolist())


ASKS = [
    Ask(ids=prompt(3), max_tokens=20, temperature=0.0),
    Ask(ids=prompt(17), max_tokens=9, temperature=1.3, seed=7, top_k=20, repetition_penalty=1.3),
    Ask(ids=prompt(30), max_tokens=10, seed=2**32 - 1, number=3, top_p=0.8, logit_bias=((20, 3.0), (4, -100.0))),
    Ask(ids=prompt(5), max_tokens=35, temperature=0.7, seed=9, presence_penalty=1.0, frequency_penalty=0.5),
    Ask(ids=prompt(9), max_tokens=31, temperature=0.9, seed=9, min_p=0.05, min_tokens=12),
    Ask(ids=prompt(1), max_tokens=1, seed=1),
]


def whole(service, ask):
    """(text, tokens, reason, stop) of a reply."""
    pieces = list(service.pieces(ask))
    return "".join(p.text for p in pieces), [t for p in pieces for t in p.tokens], pieces[-1].reason, pieces[-1].stop


def together(service, asks):
    """Replies to requests that are all there at once, by their pieces."""
    found = [[] for _ in asks]
    for ask, pieces in zip(asks, found):
        service.submit(ask, pieces.append)
    until(lambda: all(pieces and pieces[-1].reason for pieces in found))
    return found


def until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def ids(pieces):
    return [token.id for piece in pieces for token in piece.tokens]


def test_replies_are_those_of_the_sampler(service):
    """Greedy and sampled, each with its own settings, in one batch of prompts padded on the left."""
    model, params = tiny()
    V, P = model.config.vocab_size, max(len(ask.ids) for ask in ASKS)
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    options = Options(
        **{name: jnp.array([getattr(ask, name) for ask in ASKS]) for name in names},
        min_new_tokens=jnp.array([ask.min_tokens for ask in ASKS]),
        max_new_tokens=jnp.array([ask.max_tokens for ask in ASKS]),
        logit_bias=jnp.array([[dict(ask.logit_bias).get(i, 0.0) for i in range(V)] for ask in ASKS]),
    )
    tokens = jnp.array([[PAD] * (P - len(ask.ids)) + list(ask.ids) for ask in ASKS])
    keys = [row_keys(jax.random.key(np.uint32(ask.seed or 0)), jnp.array([ask.number])) for ask in ASKS]
    fixed = dict(capacity=35, eos_ids=jnp.array(ENDS), pad_id=PAD, options=options)
    run = jax.jit(lambda params, keys: sample(model, params, tokens, tokens != PAD, keys, **fixed))
    rollout = jax.device_get(run(params, jnp.concatenate(keys)))
    for ask, row, mask, finished in zip(ASKS, rollout.tokens, rollout.mask, rollout.finished):
        _, got, reason, _ = whole(service, ask)
        assert [token.id for token in got] == row[mask].tolist()
        assert reason == ("stop" if finished else "length")


def test_requests_that_come_at_once_get_what_each_gets_alone(service):
    alone = [whole(service, ask) for ask in ASKS]
    for order in (range(6), [5, 3, 1, 0, 4, 2]):  # twice as many as slots
        for i, pieces in zip(order, together(service, [ASKS[i] for i in order])):
            assert ids(pieces) == [token.id for token in alone[i][1]]
            assert "".join(piece.text for piece in pieces) == alone[i][0]
            assert [bool(piece.reason) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len({len(one[1]) for one in alone}) > 3 and len(alone[4][1]) >= 12


def test_replies_to_one_prompt_have_it_read_once(service, monkeypatch):
    asks = [ASKS[3]._replace(number=i, temperature=1.0) for i in range(3)]
    alone = [ids(list(service.pieces(ask))) for ask in asks]
    read = []
    monkeypatch.setattr(
        service, "enter", {s: lambda *a, f=f, s=s: read.append(s) or f(*a) for s, f in service.enter.items()}
    )
    with service.changed:  # so that none is admitted before all are there
        found = [[] for _ in asks]
        for ask, pieces in zip(asks, found):
            service.submit(ask, pieces.append)
    until(lambda: all(pieces and pieces[-1].reason for pieces in found))
    assert [ids(pieces) for pieces in found] == alone and len(set(map(tuple, alone))) == 3
    assert read == [32]


def test_log_probs_are_those_of_the_whole_text(service):
    model, params = tiny()
    ask = ASKS[1]._replace(top=True)  # of the model's own distribution, whatever the settings
    _, tokens, _, _ = whole(service, ask)
    row, first = jnp.array([[*ask.ids, *(token.id for token in tokens)]]), len(ask.ids)

    @jax.jit
    def read(params):
        stats = forward.token_statistics(model, params, row, jnp.ones_like(row, bool), start=first)
        hidden = model.apply(params, row, jnp.ones_like(row, bool))[0, first - 1 : -1]
        return stats.logp[0, first:], jax.nn.log_softmax(hidden @ model.unembed(params)[:, :50])

    want, every = map(np.asarray, read(params))
    np.testing.assert_allclose([token.logp for token in tokens], want, atol=2e-5)
    for token, logp in zip(tokens, every):
        assert [i for i, _ in token.top] == np.argsort(-logp)[:20].tolist()
        np.testing.assert_allclose([x for _, x in token.top], np.sort(logp)[::-1][:20], atol=2e-5)
    assert not any(token.top for token in whole(service, ASKS[1])[1])


def test_a_stop_text_ends_a_reply_wherever_it_lies(service):
    text, tokens, _, _ = whole(service, ASKS[3])
    assert len(text) > 12
    for first, size in ((0, 1), (2, 4), (7, 3)):  # within a look of the host, and across two
        stop = text[first : first + size]
        at = text.find(stop)
        got = whole(service, ASKS[3]._replace(stop=("never", stop)))
        assert (got[0], got[2], got[3]) == (text[:at], "stop", stop)
        assert [token.id for token in got[1]] == [token.id for token in tokens[: at + size]]
    almost = text[-3:] + "?"  # held back, and part of the reply after all
    assert whole(service, ASKS[3]._replace(stop=(almost,)))[:3] == (text, tokens, "length")


def test_nothing_compiles_over_varied_requests(service):
    count = []

    def hear(name, *_, **__):
        count.extend([name] if "compile" in name or "trace" in name else [])

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        rng = np.random.default_rng(0)
        asks = [
            Ask(
                ids=prompt(int(rng.integers(1, 30)), i), max_tokens=1 + i % 10, temperature=float(rng.random()),
                top_k=i, top_p=float(1 - rng.random() / 2), min_p=0.01 * i, repetition_penalty=1 + i / 20,
                presence_penalty=i / 20, frequency_penalty=-i / 20, min_tokens=i % 3, logit_bias=((i, 1.0),),
                stop=("XY",) * (i % 2), seed=i, top=i % 4 == 0,
            )
            for i in range(20)
        ]  # fmt: skip
        found = together(service, asks)
        assert all(pieces[-1].reason in ("stop", "length") for pieces in found) and len(set(map(str, found))) == 20
        assert count == []
        jax.jit(lambda x: x + 1.2345)(1.0)
        assert count  # it would have been heard
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


def test_an_abandoned_reply_frees_its_slot(service):
    long = Ask(ids=prompt(2), max_tokens=38, min_tokens=38, seed=3)
    replies = [service.pieces(long._replace(number=i)) for i in range(3)]
    for reply in replies:
        assert next(reply).tokens and any(service.seats)
        reply.close()
    until(lambda: not any(service.seats))
    found = []
    with service.changed:  # abandoned while it waits
        service.submit(long, found.append).abandon()
        service.changed.notify()
    assert ids(list(service.pieces(ASKS[0]))) and found == []


@pytest.mark.parametrize("changes, words", [
    ({"ids": ()}, ("prompt is empty", "one token or more")),
    ({"ids": (3, 50)}, ("token id 50", "0 to 49")),
    ({"ids": (3, -1)}, ("token id -1", "0 to 49")),
    ({"ids": (5,) * 40}, ("prompt has 40 tokens", "at most 39", "--max-length")),
    ({"max_tokens": 38}, ("max_tokens = 38", "at most 37", "lower max_tokens")),
    ({"max_tokens": 0}, ("max_tokens = 0", "1 or more")),
    ({"temperature": -1.0}, ("temperature = -1.0", "0 (the most probable token)")),
    ({"temperature": float("nan")}, ("temperature = nan", "1.0")),
    ({"top_p": 0.0}, ("top_p = 0.0", "(0, 1]")),
    ({"min_p": 1.5}, ("min_p = 1.5", "[0, 1]")),
    ({"repetition_penalty": 0.0}, ("repetition_penalty = 0.0", "more than 0")),
    ({"presence_penalty": 3.0}, ("presence_penalty = 3.0", "[-2, 2]")),
    ({"logit_bias": ((50, 1.0),)}, ("logit_bias", "50", "0 to 49")),
    ({"stop": ("a", "")}, ("stop = ('a', '')", "not empty")),
    ({"seed": -1}, ("seed = -1", "0 to 4294967295")),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_by_name(service, changes, words):
    with refuses(ValueError, *words):
        service.submit(Ask(ids=(3, 4, 5))._replace(**changes), print)


def test_a_service_of_no_slots_is_refused():
    model, params = tiny()
    own = Sampler(model, 0, ENDS, PAD, Letters())
    with refuses(ValueError, "slots = 0", "1 or more"):
        Service(own, params, slots=0)
    with refuses(ValueError, "max_length = 1", "2 or more"):
        Service(own, params, length=1)


def test_a_worker_that_fails_says_so(monkeypatch):
    """The request that it had is told, and later ones are refused."""
    service = Service.__new__(Service)
    model, _ = tiny()
    service.own, service.length, service.vocab_size = Sampler(model, 0, ENDS, PAD, Letters()), LENGTH, 50
    monkeypatch.setattr(Service, "_compile", lambda self, count: setattr(self, "enter", {}))
    monkeypatch.setattr("alignax.sampling.service.weights_of", lambda own, params: None)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    service.__init__(service.own, None, slots=1, length=LENGTH)
    with refuses(RuntimeError, "worker of the slots has failed", "KeyError"):
        list(service.pieces(ASKS[0]))
    with refuses(RuntimeError, "worker of the slots has failed"):
        service.submit(ASKS[0], print)


def test_buckets_are_powers_of_two_up_to_a_slot():
    assert buckets(40) == (32, 40) and buckets(32) == (32,) and buckets(100) == (32, 64, 100)


# ---- text as it grows


class Bytes:
    """A byte for each token, and a space that no text begins with."""

    def decode(self, ids, **_):
        return bytes(ids).decode("utf-8", "replace").removeprefix(" ")


@pytest.mark.parametrize("lead", [(), (ord("a"),)])
def test_pieces_are_the_text_of_the_whole(lead):
    text = " héllo wörld ☂ 🜁 end"
    growing = Growing(Bytes(), lead)
    pieces = [growing.add(byte) for byte in text.encode()] + [growing.rest()]
    assert "".join(pieces) == (text if lead else text.removeprefix(" "))
    assert "☂" in pieces and "\ufffd" not in "".join(pieces)
    growing = Growing(Bytes(), lead)
    pieces = [growing.add(byte) for byte in "ab☂".encode()[:-1]] + [growing.rest()]
    assert "".join(pieces) == Bytes().decode([*lead, *"ab☂".encode()[:-1]])[len(lead) :]


def test_a_text_ends_before_the_first_stop_text_however_it_is_cut():
    rng = np.random.default_rng(1)
    for _ in range(300):
        text, stops = "".join(rng.choice(list("ab"), 12)), ["abb", "bab", "aaaa"]
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        until, got = Until(stops), ""
        for part in np.split(np.array(list(text)), np.sort(rng.integers(0, 12, 4))):
            heard = until.add("".join(part))
            got += heard.text
            if heard.stop:
                break
        else:
            got += until.rest()
        # one that ends earlier is found earlier, though it may begin later
        assert text.startswith(got) and (bool(heard.stop) == bool(ends))
        assert not any(stop in got for stop in stops)
        assert cut(text, stops) == text[: min(ends, default=len(text))]
