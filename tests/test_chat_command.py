"""`alignax chat`: a dialogue read from a pipe, Ctrl-C in a reply and at the prompt, a context that is full; and
`alignax sample` with files."""

import argparse
import io
import json

import pytest
from errors import names, refuses
from served import policy_in, service_of

from alignax.config import ConfigError
from alignax.data.counts import DataError
from alignax.main import main, parser
from alignax.sampling.programs import Ask
from alignax.sampling.service import Piece, Service
from alignax.serving import chat, sample
from alignax.serving.chat import Dialogue
from alignax.stages import playground
from alignax.stages.playground import complete

LENGTH = 48


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return policy_in(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def service(policy):
    with service_of(policy, slots=1, length=LENGTH) as made:
        yield made


class Open(Service):
    """A service that stays open after the command."""

    def __init__(self, service):
        self.__dict__ |= vars(service)

    def close(self):
        pass


@pytest.fixture
def talk(policy, service, monkeypatch, capsys):
    """Runs the command on lines; (what it printed, what it said on stderr)."""

    def run(*lines, template="chat", options=()):
        monkeypatch.setattr(chat, "opened", lambda *_, **__: (policy._replace(template=template), Open(service)))
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", "runs/x", "--max-new-tokens=6", "--seed=1", *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_replies_to_piped_lines_are_those_of_the_dialogue_so_far(talk, policy, service):
    lines = ("tea .", "", "cake .", "/reset", "tea .", "/walk", "/quit", "music .")
    status, out, err = talk(*lines)
    replies = [line.removesuffix(" [cut off]") for line in out.splitlines()]
    assert status == 0 and len(set(replies)) == len(replies) == 3
    first, second = {"role": "user", "content": "tea ."}, {"role": "user", "content": "cake ."}
    before = {0: [first], 2: [first, {"role": "assistant", "content": replies[0]}, second], 4: [first]}
    for want, (number, turns) in zip(replies, before.items(), strict=True):  # by the number of the line
        ask = Ask(tuple(policy.encode(turns)), 6, seed=1, number=number)
        assert "".join(piece.text for piece in service.pieces(ask)) == want
    names(err, "/reset begins anew", "a new dialogue", "/walk: no such command")


def test_what_cannot_be_read_is_said_and_the_dialogue_goes_on(talk):
    status, out, err = talk("tea xylophone", "tea <eos>", "tea .")
    assert status == 0 and len(out.splitlines()) == 1
    names(err, "does not know", "special_token")


def test_earlier_turns_are_forgotten_when_the_context_is_full(talk, policy):
    lines = ["tea . " * 6, "cake . " * 6, "music . " * 6]
    status, out, err = talk(*lines)
    assert status == 0 and len(out.splitlines()) == 3
    names(err, "the first 2 turns no longer fit into 48 tokens")
    dialogue = Dialogue(policy, LENGTH)
    dialogue.turns = [{"role": "user", "content": "tea ."}, {"role": "assistant", "content": "cake ."}]
    before = list(dialogue.turns)
    with refuses(DataError, "this has 4", "at most 32", "--max-length"):
        dialogue.asked("tea . " * 20)
    assert dialogue.turns == before
    dialogue.asked("tea .")
    dialogue.answered(" ")  # no template writes a reply without words
    assert dialogue.turns == before
    dialogue.asked("tea .")
    names(dialogue.answered("cake <user> tea"), "begins anew", "special_token")
    assert dialogue.turns == []


def test_ctrl_c_stops_a_reply_and_not_the_program(policy, service, monkeypatch, capsys):
    """While a reply comes, what came of it stays in the dialogue; at the prompt it is a hint."""
    begin, left = service.pieces, []

    def interrupted(ask):
        pieces = begin(ask)
        try:
            yield next(pieces)
            raise KeyboardInterrupt
        finally:
            left.append(ask)
            pieces.close()

    halting = Open(service)
    halting.pieces = interrupted
    dialogue = Dialogue(policy, LENGTH)
    chat.turn(halting, dialogue, "tea .", Ask((0,), 20, min_tokens=20, seed=1))
    out = capsys.readouterr().out
    assert out.endswith(" [stopped]\n") and len(left) == 1
    assert dialogue.turns[-1] == {"role": "assistant", "content": out.removesuffix(" [stopped]\n")}
    keys = iter([KeyboardInterrupt, "tea .", EOFError])

    def typed(_):
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", typed)
    assert list(chat.lines()) == ["tea ."]
    names(capsys.readouterr().err, "/quit ends")


def test_a_plain_checkpoint_takes_each_line_for_itself(talk):
    status, out, err = talk("tea .", "tea .", template="plain", options=["--temperature=0"])
    first, second = out.splitlines()
    assert status == 0 and first == second
    names(err, "no chat template", "each line")
    status, _, err = talk("tea .", template="plain", options=["--system=be brief"])
    assert status == 1
    names(err, "--system='be brief'", "'plain'", "leave it out")


@pytest.mark.parametrize("option, words", [
    ("--temperature=-1", ("temperature = -1.0", "0 (the most")),
    ("--max-new-tokens=0", ("max_tokens = 0", "1 or more")),
    ("--max-length=9", ("--max-length=9", "more than 16")),
])  # fmt: skip
def test_a_setting_out_of_range_is_said_before_anything_is_loaded(option, words, capsys, monkeypatch):
    monkeypatch.setattr(chat, "opened", None)
    assert main(["chat", "runs/x", option]) == 1
    names(capsys.readouterr().err, *words)


def test_a_piece_is_printed_when_it_comes(policy, service, monkeypatch):
    seen = []

    def pieces(ask):
        for text in ("a ", "b"):
            yield Piece(text)
            seen.append(text)
        yield Piece("", (), "stop")

    slow = Open(service)
    slow.pieces = pieces
    monkeypatch.setattr("builtins.print", lambda *text, **more: seen.append(("printed", *text, more.get("flush"))))
    chat.turn(slow, Dialogue(policy, LENGTH), "tea .", Ask((0,)))
    assert seen[:4] == [("printed", "a ", True), "a ", ("printed", "b", True), "b"]


# ---- sample


def test_sample_reads_prompts_from_files_and_writes_rows(policy, monkeypatch, tmp_path, capsys):
    calls = []

    def record(checkpoint, prompts, **options):
        calls.append((prompts, options))
        return [[("one", True), ("two", False)] for _ in prompts]

    monkeypatch.setattr(sample, "complete", record)
    (tmp_path / "prompts.txt").write_text("tea\n\ncake\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "music"}\n')
    out = tmp_path / "new/out.jsonl"
    files = ["--prompts-file", str(tmp_path / "prompts.txt"), "--out", str(out), "--n=2"]
    assert main(["sample", "runs/x", "juice", *files, "--stop=.", "--stop=!", "--min-p=0.1"]) == 0
    prompts, options = calls[-1]
    assert prompts == ["juice", "tea", "cake"] and options["stop"] == [".", "!"] and options["min_p"] == 0.1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[2:4] == [
        {"prompt": "tea", "completion": "one", "finished": True},
        {"prompt": "tea", "completion": "two", "finished": False},
    ]
    assert len(rows) == 6 and str(out) in capsys.readouterr().out
    assert main(["sample", "runs/x", "--prompts-file", str(tmp_path / "rows.jsonl"), "--system=be brief"]) == 0
    assert calls[-1][0] == [[{"role": "system", "content": "be brief"}, {"role": "user", "content": "music"}]]
    monkeypatch.setattr("sys.stdin", io.StringIO("cider\n"))
    assert main(["sample", "runs/x", "--prompts-file=-"]) == 0 and calls[-1][0] == ["cider"]


def test_sample_without_prompts_is_refused(tmp_path, capsys):
    assert main(["sample", "runs/x"]) == 1
    names(capsys.readouterr().err, "no prompts", "--prompts-file=FILE")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "tea"}\n{"text": "tea"}\n')
    assert main(["sample", "runs/x", "--prompts-file", str(tmp_path / "rows.jsonl")]) == 1
    names(capsys.readouterr().err, "row 2", "expected an object", "prompt")


def test_a_completion_ends_before_a_stop_text(policy, monkeypatch):
    monkeypatch.setattr(playground, "load", lambda *_: policy)
    fixed = dict(max_new_tokens=8, seed=3, min_p=0.001, repetition_penalty=1.2)
    (((text, _),),) = complete("x", ["tea ."], **fixed)
    stop = text.split()[3]
    (((short, done),),) = complete("x", ["tea ."], stop=[stop], **fixed)
    assert short == text[: text.find(stop)] and done
    for changes, word in (({"min_p": 2.0}, "min_p = 2.0"), ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0")):
        with refuses(ConfigError, word, "expected"):
            complete("x", ["tea ."], **changes)


def test_one_beam_is_the_greedy_reply_and_a_search_reads_no_settings_of_sampling(policy, monkeypatch):
    monkeypatch.setattr(playground, "load", lambda *_: policy)
    fixed = dict(max_new_tokens=3)
    (found,) = complete("x", ["tea ."], beams=2, n=2, **fixed)
    assert len({text for text, _ in found}) == 2
    three = ["tea .", "cake .", "tea ."]
    greedy = complete("x", three, temperature=0.0, **fixed)
    assert complete("x", three, beams=1, **fixed) == greedy
    monkeypatch.setattr(playground, "slots_for", lambda *_, **__: 2)  # two prompts at a time, then the last
    assert complete("x", three, beams=1, **fixed) == greedy
    for changes, words in (
        ({"temperature": 0.5}, ("temperature beside beams = 2:", "leave it out")),
        ({"stop": ["."]}, ("stop beside beams = 2:", "leave it out")),
        ({"seed": 3}, ("seed beside beams = 2:", "leave it out")),
        ({"n": 3}, ("beams = 2:", "n = 3 or more")),
    ):
        with refuses(ConfigError, *words):
            complete("x", ["tea ."], beams=2, **changes)


def test_the_settings_of_chat_and_sample_have_one_form():
    """What one takes the other takes."""
    args = [parser().parse_args([command, "runs/x"]) for command in ("chat", "sample")]
    shared = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "seed", "system"}
    assert all(isinstance(one, argparse.Namespace) and shared <= set(vars(one)) for one in args)
