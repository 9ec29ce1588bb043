"""`alignax serve`: OpenAI's form by hand, whole and streamed, errors by name; the command from port to goodbye."""

import asyncio
import json
import socket
import threading
import time
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import names
from served import policy_in, service_of
from tiny import tiny

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

from starlette.testclient import TestClient  # noqa: E402

from alignax import forward  # noqa: E402
from alignax.main import main  # noqa: E402
from alignax.serving import fields  # noqa: E402
from alignax.serving.app import app  # noqa: E402
from alignax.stages import playground  # noqa: E402
from alignax.stages.playground import complete  # noqa: E402
from alignax.worlds.tokenizer import build_tokenizer  # noqa: E402

LENGTH = 40
USER = [{"role": "user", "content": "mara asks : tea ."}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return policy_in(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def service(policy):
    with service_of(policy, slots=3, length=LENGTH) as made:
        yield made


@pytest.fixture(scope="module")
def client(service, policy):
    with TestClient(app(service, policy, "tiny")) as made:
        yield made


def ask(client, path, **body):
    answer = client.post(path, json={"model": "tiny"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client, path, **body):
    """The events of a streamed answer, but for the last."""
    with client.stream("POST", path, json={"model": "tiny", "stream": True} | body) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


# ---- what is answered


def test_a_chat_is_what_sample_writes(client, policy, monkeypatch):
    monkeypatch.setattr(playground, "load", lambda *_: policy)
    options = {"temperature": 0.8, "top_k": 30, "seed": 5}
    (((want, done),),) = complete("x", [USER[0]["content"]], max_new_tokens=9, **options)
    got = ask(client, CHAT, messages=USER, max_tokens=9, **options)
    (choice,) = got["choices"]
    assert choice["message"] == {"role": "assistant", "content": want} and want
    assert choice["finish_reason"] == ("stop" if done else "length")
    assert got["usage"]["completion_tokens"] == 9 and got["object"] == "chat.completion"
    assert got["usage"]["prompt_tokens"] == len(policy.encode(USER)) and got["model"] == "tiny"


def test_every_form_of_prompt_and_several_replies(client, policy):
    text = "mara asks : tea ."
    ids = policy.tokenizer(text)["input_ids"]
    fixed = dict(max_tokens=5, seed=3, temperature=1.0)
    one = ask(client, TEXT, prompt=text, n=2, **fixed)["choices"]
    assert [choice["index"] for choice in one] == [0, 1] and one[0]["text"] != one[1]["text"]
    for prompt in ([text], ids, [ids]):
        assert ask(client, TEXT, prompt=prompt, n=2, **fixed)["choices"] == one
    got = ask(client, TEXT, prompt=[text, text], n=1, return_token_ids=True, **fixed)
    assert [choice["text"] for choice in got["choices"]] == [choice["text"] for choice in one]  # rows 0 and 1
    assert all(choice["prompt_token_ids"] == ids and len(choice["token_ids"]) == 5 for choice in got["choices"])
    assert got["usage"] == {"prompt_tokens": 2 * len(ids), "completion_tokens": 10, "total_tokens": 2 * len(ids) + 10}
    assert got["choices"][0]["text"] == policy.tokenizer.decode(got["choices"][0]["token_ids"])


@pytest.mark.parametrize("path, prompt", [(TEXT, {"prompt": ["tea", "cake ."]}), (CHAT, {"messages": USER})])
def test_a_stream_joined_is_the_whole(path, prompt, client):
    options = dict(max_tokens=11, seed=1, n=2, stop=["zzz"], return_token_ids=True, logprobs=True)
    options["logprobs"] = True if path == CHAT else 2
    whole = ask(client, path, **prompt, **options)
    events = stream(client, path, **prompt, **options, stream_options={"include_usage": True})
    last = events.pop()
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert {event["object"] for event in events} == {"chat.completion.chunk" if path == CHAT else "text_completion"}
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        parts = [part for event in events for part in event["choices"] if part["index"] == choice["index"]]
        assert len(parts) > 1 and [bool(part["finish_reason"]) for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert [i for part in parts for i in part["token_ids"]] == choice["token_ids"]
        if path == CHAT:
            assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * (len(parts) - 1)
            assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
            told = [one for part in parts for one in part["logprobs"]["content"]]
            assert told == choice["logprobs"]["content"]
        else:
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [x for part in parts for x in part["logprobs"][name]] == values


def test_log_probs_are_those_of_the_whole_text(client, policy):
    asked = dict(max_tokens=8, seed=2, temperature=0.6, return_token_ids=True)
    text = ask(client, TEXT, prompt="mara asks : tea .", logprobs=3, **asked)["choices"][0]
    row = jnp.array([text["prompt_token_ids"] + text["token_ids"]])
    first = len(text["prompt_token_ids"])
    read = lambda params: forward.token_statistics(policy.model, params, row, row >= 0, start=first).logp[0, first:]  # noqa: E731
    told = text["logprobs"]
    np.testing.assert_allclose(told["token_logprobs"], jax.jit(read)(policy.params), atol=2e-5)
    for token, logp, offset, top in zip(
        told["tokens"], told["token_logprobs"], told["text_offset"], told["top_logprobs"]
    ):
        assert text["text"][offset:].startswith(token if offset else token.lstrip())
        assert top[token] == logp and 3 <= len(top) <= 4
    chat = ask(client, CHAT, messages=USER, logprobs=True, top_logprobs=2, **asked)
    (choice,) = chat["choices"]
    assert chat["prompt_token_ids"] == policy.encode(USER)
    said = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in said).lstrip() == choice["message"]["content"]
    assert all(bytes(one["bytes"]).decode() == one["token"] and len(one["top_logprobs"]) == 2 for one in said)
    assert ask(client, TEXT, prompt="tea", logprobs=0, max_tokens=2)["choices"][0]["logprobs"]["top_logprobs"] is None


def test_a_stop_text_is_not_in_the_reply(client):
    whole = ask(client, TEXT, prompt="tea", max_tokens=12, seed=4)["choices"][0]["text"]
    stop = whole[7:15]
    (choice,) = ask(client, TEXT, prompt="tea", max_tokens=12, seed=4, stop=stop)["choices"]
    assert choice["text"] == whole[: whole.find(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert ask(client, TEXT, prompt="tea", max_tokens=12, seed=4, stop=None, user="me")["choices"][0]["text"] == whole


def test_tools_and_arguments_go_to_the_template(policy):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t['function']['name'] + ' ' }}{% endfor %}" + (
        tokenizer.chat_template + "{% if slow %} cake{% endif %}"
    )
    other = policy._replace(tokenizer=tokenizer)
    tool = {"type": "function", "function": {"name": "music", "description": "", "parameters": {"type": "object"}}}
    body = {"messages": USER, "tools": [tool], "chat_template_kwargs": {"slow": True}}
    (ids,) = fields.chat(body, other, "tiny", LENGTH).prompts
    assert tokenizer.decode(ids).split()[0] == "music" and tokenizer.decode(ids).split()[-1] == "cake"


def test_a_model_is_named_and_well(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("tiny", "model", LENGTH)
    assert client.get("/health").json() == {"status": "ok"}


# ---- what is refused


@pytest.mark.parametrize("path, body, param, words", [
    (TEXT, {}, "prompt", ("prompt = None is empty", "expected some words")),
    (TEXT, {"prompt": ""}, "prompt", ("prompt = '' is empty", "expected")),
    (TEXT, {"prompt": ["tea", ""]}, "prompt", ("prompt holds ''", "expected", "none of them empty")),
    (TEXT, {"prompt": [[]]}, "prompt", ("prompt holds []", "expected")),
    (TEXT, {"prompt": {"a": 1}}, "prompt", ("prompt = {'a': 1}", "a list of ids")),
    (TEXT, {"prompt": [5, 999999]}, "prompt", ("prompt has the token id 999999", "0 to")),
    (TEXT, {"prompt": [5] * 40}, "prompt", ("prompt has 40 tokens", "at most 39")),
    (TEXT, {"prompt": "tea", "max_tokens": 40}, "max_tokens", ("max_tokens = 40", "at most 39", "lower")),
    (TEXT, {"prompt": "tea", "temperature": -1}, "temperature", ("temperature = -1", "0 (the most")),
    (TEXT, {"prompt": "tea", "temperature": "hot"}, "temperature", ("temperature = 'hot'", "a number")),
    (TEXT, {"prompt": "tea", "top_p": 2.0}, "top_p", ("top_p = 2.0", "(0, 1]")),
    (TEXT, {"prompt": "tea", "n": 0}, "n", ("n = 0", "1 to 128")),
    (TEXT, {"prompt": "tea", "n": True}, "n", ("n = True", "a whole number")),
    (TEXT, {"prompt": "tea", "stop": [""]}, "stop", ("stop = ('',)", "not empty")),
    (TEXT, {"prompt": "tea", "logit_bias": {"x": 1}}, "logit_bias", ("logit_bias", "by token id")),
    (TEXT, {"prompt": "tea", "logprobs": 21}, "logprobs", ("logprobs = 21", "0 to 20")),
    (TEXT, {"prompt": "tea", "echo": True}, "echo", ("echo = True", "expected False", "leave it out")),
    (TEXT, {"prompt": "tea", "temprature": 1}, "temprature", ("'temprature'", "did you mean 'temperature'")),
    (CHAT, {}, "messages", ("messages is missing", "expected a list")),
    (CHAT, {"messages": []}, "messages", ("messages = []", "one message")),
    (CHAT, {"messages": [{"role": "tool", "content": "a"}, *USER]}, "messages", ("template_refused", "no role tool")),
    (CHAT, {"messages": [*USER, {"role": "assistant", "content": "a"}]}, "messages", ("bad_turns", "")),
    (CHAT, {"messages": USER, "prompt": "tea"}, "prompt", ("'prompt' is no field", "known")),
    (CHAT, {"messages": USER, "top_logprobs": 2}, "top_logprobs", ("top_logprobs without logprobs", "true")),
])  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(path, body, param, words, client):
    answer = client.post(path, json={"model": "tiny"} | body)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    names(error["message"], *words)
    assert (error["code"] == "context_length_exceeded") == ("at most" in " ".join(words))


def test_what_is_not_there_is_404(client):
    answer = client.post(TEXT, json={"model": "gpt-5", "prompt": "tea"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    names(answer.json()["error"]["message"], "model = 'gpt-5'", "expected 'tiny'")
    answer = client.get("/v1/embeddings")
    assert answer.status_code == 404
    names(answer.json()["error"]["message"], "GET /v1/embeddings", "POST /v1/completions")
    assert client.get(TEXT).status_code == 405


@pytest.mark.parametrize(
    "content, words", [(b"{", ("no JSON", "expected an object")), (b"[]", ("list", "JSON object"))]
)
def test_a_body_that_is_none_is_refused(content, words, client):
    answer = client.post(TEXT, content=content)
    assert answer.status_code == 400
    names(answer.json()["error"]["message"], *words)


def test_a_plain_checkpoint_has_no_chat_and_names_words_that_it_does_not_know(client, policy, service):
    with TestClient(app(service, policy._replace(template="plain"), "tiny")) as plain:
        error = plain.post(CHAT, json={"messages": USER}).json()["error"]
        names(error["message"], "template 'plain'", "/v1/completions")
        error = plain.post(TEXT, json={"prompt": "tea xylophone"}).json()["error"]
        names(error["message"], "'tea xylophone'", "does not know")
        assert ask(plain, TEXT, prompt="tea", max_tokens=2)["choices"][0]["text"]


def test_who_leaves_frees_the_slot(service, policy):
    """The client disconnects after its request; nothing is answered, and nothing goes on."""
    body = json.dumps({"prompt": "tea", "max_tokens": 39, "min_tokens": 39, "n": 8}).encode()
    messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": TEXT, "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(app(service, policy, "tiny")(scope, receive, send))
    assert [m.get("status") for m in sent if m["type"] == "http.response.start"] == [499]
    wait(lambda: not any(service.seats) and not service.waiting)


def wait(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_that_has_failed_is_a_server_error(policy, service, monkeypatch):
    monkeypatch.setattr(service, "closed", True)
    monkeypatch.setattr(service, "failure", "the worker has failed")
    with TestClient(app(service, policy, "tiny")) as broken:
        for answer in (broken.get("/health"), broken.post(TEXT, json={"prompt": "tea"})):
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")


# ---- the command


def fails(capsys, *arguments):
    assert main(["serve", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def test_a_port_in_use_is_refused_before_the_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("alignax.serving.slots.load", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        names(fails(capsys, "runs/x", f"--port={port}"), f"--port={port}", "in use", "--port=0")


def test_what_cannot_be_is_said_at_once(capsys, monkeypatch, tmp_path):
    names(fails(capsys, "runs/x", "--port=70000"), "--port=70000", "1 to 65535")
    names(fails(capsys, "runs/x", "--host=256.1.1.1"), "--host=256.1.1.1", "127.0.0.1")
    names(fails(capsys, "runs/x", "--slots=0"), "--slots=0", "1 slot")
    names(fails(capsys, str(tmp_path), "--port=0"), str(tmp_path), "finished stage")
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    names(fails(capsys, "runs/x"), "'uvicorn'", "pip install 'alignax[serve]'")


def test_the_command_serves_until_it_is_ended(policy, monkeypatch, capsys):
    """On a free port, over real HTTP."""
    servers, begin = [], uvicorn.Server.run
    monkeypatch.setattr("alignax.serving.slots.load", lambda *_: policy)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, **more: servers.append(self) or begin(self, **more))
    arguments = ["serve", "runs/tea", "--port=0", "--slots=3", f"--max-length={LENGTH}", "--name=tea"]
    thread = threading.Thread(target=main, args=(arguments,), daemon=True)
    thread.start()
    wait(lambda: servers and servers[0].started)
    port = servers[0].servers[0].sockets[0].getsockname()[1]
    body = json.dumps({"model": "tea", "messages": USER, "max_tokens": 3}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{CHAT}", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.loads(answer.read())["choices"][0]["message"]["content"]
    servers[0].should_exit = True
    thread.join(60)
    assert not thread.is_alive()
    names(capsys.readouterr().out, f"serving 'tea' at http://127.0.0.1:{port}/v1", "3 slots of 40 tokens")


def test_a_length_beyond_the_model_is_refused(policy, monkeypatch, capsys):
    model, params = tiny(vocab_size=len(policy.tokenizer), layers=1, max_positions=32, positions="learned")
    monkeypatch.setattr("alignax.serving.slots.load", lambda *_: policy._replace(model=model, params=params))
    names(fails(capsys, "runs/x", "--port=0", "--max-length=64"), "--max-length=64", "at most 32")
