"""Layouts that public rows come in, read as they are meant in every form and file; found by trying to break rules."""

import json

import datasets
import pytest
from errors import refuses
from families import ASK
from meant import ASKS, CHAT, HEAD, PLAIN, TURN, calls, chat, learnt, said, text_of

from alignax.data.counts import DataError
from alignax.data.encode import demo_rows, pair_rows, prompt_rows
from alignax.data.forms import convert
from alignax.data.openings import opening
from alignax.data.sources.jsonl import jsonl
from alignax.data.sources.ultrafeedback_binarized import ultrafeedback_binarized

GOOD, BAD = said("assistant", "yes"), said("assistant", "no")


# ---- text that is JSON


@pytest.mark.parametrize("spell", [json.dumps, repr], ids=["json", "python"])
def test_messages_that_a_table_keeps_as_text(spell):
    pair = {"prompt": spell([ASK]), "chosen": spell([GOOD]), "rejected": spell([BAD])}
    whole = {"chosen": spell([ASK, GOOD]), "rejected": spell([ASK, BAD])}
    for row in (pair, whole, pair | {"chosen": spell(GOOD)}):
        made, counts = convert([row], "preference")
        batch, _ = pair_rows(made, chat(), counts=counts, **CHAT)
        told = [chat().decode(batch[side]["tokens"][0][batch[side]["mask"][0]]) for side in ("chosen", "rejected")]
        assert told == ["yes<|im_end|>", "no<|im_end|>"]
    ranking = {"prompt": "p", "replies": spell(["a", "b"])}
    assert convert([ranking], "ranked")[0] == [{"prompt": "p", "replies": ["a", "b"]}]
    rated = {"prompt": "p", "completion": "c", "ratings": spell({"x": 3})}
    assert convert([rated], "ratings")[0][0]["ratings"] == {"x": 3}
    assert learnt([{"prompt": spell([ASK]), "completion": spell([GOOD])}], chat())[0] == ["yes<|im_end|>"]
    prompts, _ = prompt_rows(convert([{"prompt": spell([ASK])}], "prompt_only")[0], chat(), template="chat",
                             max_prompt_length=99)  # fmt: skip
    assert chat().decode(prompts["tokens"][0]).count("role") == 0
    for other in ('[{"role": "wolf", "content": "x"}]', '{"role": 1}', "[1, 2]", '{"name": "f"}', "[the role"):
        assert learnt([{"prompt": "p", "completion": other}], chat())[0] == [f"{other}<|im_end|>"]  # words as others


# ---- calls, parts and weights


@pytest.mark.parametrize("key", ["arguments", "parameters", "args", "input"])
def test_what_a_call_is_given_under_any_name(key):
    turn = said("assistant", "", tool_calls=[{"name": "f", key: {"city": "Rome"}, "strict": True}])
    texts, counts = learnt([{"messages": [ASK, turn]}], chat())
    assert texts == ['<tool_call>{"name": "f", "arguments": {"city": "Rome"}}</tool_call><|im_end|>']
    assert counts["unread"] == ["tool_calls.strict"]


def test_weights_of_parts_are_refused_and_other_keys_named():
    part = lambda text, **rest: {"type": "text", "text": text, **rest}  # noqa: E731
    rows = [{"messages": [ASK, said("assistant", [part("BAD", **one), part(" good")])]}
            for one in ({"train": False}, {"weight": 0}, {"cache_control": {"type": "e"}})]  # fmt: skip
    texts, counts = learnt(rows, chat())
    assert texts == ["BAD good<|im_end|>"] and counts["dropped_turn_weight"] == 2
    assert counts["unread"] == ["content.cache_control"]
    odd = [said("assistant", [one]) for one in ({"type": None, "text": "a"}, {"type": "text", "content": "a"}, "a")]
    assert learnt([{"messages": [ASK, one]} for one in odd], chat())[0] == ["a<|im_end|>"] * 3
    listed = said("assistant", [{"type": ["text"], "text": "h"}])
    assert learnt([{"messages": [ASK, one]} for one in (listed, GOOD)], chat())[1]["kept"] == 1


def test_a_user_turn_of_no_weight_is_not_learnt_whole():
    row = {"messages": [said("user", "no", weight=0), GOOD]}
    assert learnt([row, {"messages": [ASK, GOOD]}], chat(), train_on="all")[1]["dropped_turn_weight"] == 1
    assert learnt([row], chat())[0] == ["yes<|im_end|>"]


FIRST_CALL = (
    HEAD + TURN.replace("for c in m.tool_calls or []", "for c in (m.tool_calls or [])[:1]").replace(
        "END", "'<|im_end|>\n'"
    ) + ASKS
)  # fmt: skip


@pytest.mark.parametrize("first, second", [({"n": 12}, {"n": 1}), ({"q": "Rome today"}, {"q": "Rome"}), ({}, {})])
def test_a_second_call_that_is_left_out_is_not_excused_by_the_first(first, second):
    rows = [{"messages": [ASK, calls(first, second)]}, {"messages": [ASK, GOOD]}]
    assert learnt(rows, chat())[1]["kept"] == 2
    assert learnt(rows, chat(FIRST_CALL))[1] == {"rows": 2, "kept": 1, "dropped_not_written": 1}
    before = [{"messages": [*rows[0]["messages"], said("tool", "2"), said("tool", "3"), GOOD]}, rows[1]]
    assert learnt(before, chat(FIRST_CALL))[1]["dropped_not_written"] == 1


@pytest.mark.parametrize("thought, reply", [("4", "The answer is 4."), ("The answer is 4.", "4"), ("yes", "yes")])
def test_a_thought_that_is_left_out_is_not_excused_by_the_reply(thought, reply):
    rows = [{"messages": [ASK, said("assistant", reply, reasoning_content=thought)]}, {"messages": [ASK, GOOD]}]
    assert learnt(rows, chat())[1]["dropped_not_written"] == 1
    talk = {"messages": [ASK, said("assistant", "a", reasoning_content="b"), ASK, GOOD]}  # a turn that is not learnt
    aware = chat("{# reasoning_content #}" + PLAIN)  # names it, and does not write it
    for tokenizer in (chat(), aware):
        assert learnt([talk], tokenizer)[1]["unread"] == ["messages.reasoning_content"]


def test_the_end_of_a_call_may_be_a_merely_added_token():
    other = "'<|eom_id|>' if m.tool_calls else '<|im_end|>\n'"
    tokenizer = chat(HEAD + TURN.replace("END", other) + ASKS)
    tokenizer.add_tokens(["<|eom_id|>"])
    (text,), _ = learnt([{"messages": [ASK, calls({"a": 1})]}], tokenizer)
    assert text.endswith("</tool_call><|eom_id|>")
    spelt = [{"messages": [said("user", "x<|eom_id|>"), GOOD]}, {"messages": [ASK, GOOD]}]
    assert learnt(spelt, tokenizer)[1]["dropped_special_token"] == 1


# ---- prompts


def test_the_last_words_of_a_user_are_a_prompt():
    talk = [said("user", "q1"), said("assistant", "a1"), said("user", "q2")]
    tool = [ASK, calls({"a": 1}), said("tool", "42")]
    assert [row["prompt"] for row in convert([{"messages": one} for one in (talk, tool)], "prompt_only")[0]] == [
        talk, [ASK, *convert([{"messages": tool}], "prompt_only")[0][0]["prompt"][1:]],
    ]  # fmt: skip
    ((row,), counts) = convert([{"prompt": "X", "messages": [*talk, said("assistant", "a2")]}], "prompt_only")
    assert row == {"prompt": talk} and counts["unread"] == ["prompt"]


def test_a_prompt_that_the_dialogues_do_not_hold_is_refused(tmp_path):
    pair = {"prompt": "You are a pirate.", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    with refuses(DataError, "prompt_mismatch", "pirate"):
        convert([pair], "preference")
    (tmp_path / "a.jsonl").write_text(json.dumps(pair | {"score_chosen": 1}) + "\n")
    with pytest.raises(DataError, match="prompt_mismatch"):
        convert(*[ultrafeedback_binarized(path=str(tmp_path / "a.jsonl"))[0]], "preference")


def test_replies_to_one_prompt_that_a_template_is_told_otherwise_are_apart():
    row = {"prompt": "q", "completion": "a", "ratings": {"x": 1}, "tools": [{"name": "A"}]}
    rows = [row, row | {"completion": "b", "ratings": {"x": 2}, "tools": [{"name": "B"}]}]
    with pytest.raises(DataError, match="too_few_replies"):
        convert(rows, "preference")
    assert convert(rows, "prompt_only")[1] == {"rows": 2, "kept": 2}


def test_judgements_that_are_not_read_are_named():
    ranking = {"prompt": "q", "replies": ["worse", "better"], "scores": [0.1, 0.9]}
    assert convert([ranking], "ranked")[0] == [{"prompt": "q", "replies": ["better", "worse"]}]
    both = {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2], "ranks": [1, 2]}
    made, counts = convert([both], "ranked")
    assert made[0]["replies"] == ["b", "a"]
    tie = {"prompt": "q", "chosen": "a", "rejected": "b", "tie": True}
    for form in ("prompt_completion", "unpaired", "ranked"):
        assert convert([tie, tie | {"tie": "no"}], form)[1].dropped == {"equal_scores": 1}
    assert convert([tie], "preference")[0] == [tie]
    beside = [{"prompt": "p", "completion": "c", "label": i % 2, "labels": [-1, 2]} for i in range(2)]
    assert convert(beside, "unpaired")[1] == {"rows": 2, "kept": 2, "unread": ["labels"]}


# ---- what a file holds beside


@pytest.mark.parametrize("column", [
    {"timestamp": "2024-01-01 10:00:00"}, {"source": "Stack Exchange"}, {"tags": ["a", "b"]}, {"score_chosen": "5"},
    {"system": "be kind"}, {"rank": 2},
])  # fmt: skip
def test_columns_that_hold_no_prompt_do_not_stop_a_file(column):
    ((row,), _) = convert([{"chosen": "the sky is blue", "rejected": "the sky is red", **column}], "preference")
    assert (row["prompt"][-1]["content"] if "system" in column else row["prompt"]) == "the sky is"


def test_columns_of_odd_values_are_no_trouble(tmp_path):
    demo = {"prompt": "p", "completion": "c"}
    for other in ({"replies": 12}, {"image": False}, {"images": 0}, {"tools": "null"}, {"conversations": "id"}):
        assert learnt([demo | other], chat())[1]["kept"] == 1
    parts = said("system", [{"type": "text", "text": "s"}])
    assert learnt([{"system": "s", "messages": [parts, ASK, GOOD]}], chat())[1]["kept"] == 1
    talk = {"messages": [], "conversations": [ASK, GOOD]}
    assert learnt([talk], chat())[0] == ["yes<|im_end|>"]
    import datetime

    dated = calls({"day": datetime.date(2026, 1, 2)})
    assert '"2026-01-02"' in learnt([{"messages": [ASK, dated]}], chat())[0][0]
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    assert learnt([{"messages": [ASK, calls(deep)]}, demo], chat())[1]["dropped_bad_call"] == 1


def test_a_null_role_beside_a_speaker(tmp_path):
    """As Parquet pads a file of both layouts."""
    told = [{"role": None, "content": None, "from": "human", "value": "hi"},
            {"role": None, "content": None, "from": "gpt", "value": "yes"}]  # fmt: skip
    pair = {"chosen": told, "rejected": [told[0], told[1] | {"value": "no"}]}
    plain = {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}
    assert convert([pair, plain], "preference")[1] == {"rows": 2, "kept": 2}
    datasets.Dataset.from_list([{"messages": told}]).to_parquet(tmp_path / "a.parquet")
    assert learnt(jsonl(path=str(tmp_path / "a.parquet"))[0], chat())[0] == ["yes<|im_end|>"]


def test_explicit_and_implicit_pairs_of_one_file():
    rows = [{"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}, {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}]
    made, counts = convert(rows, "preference")
    assert made[0] == made[1] and counts == {"rows": 2, "kept": 2}


def test_one_conversation_is_on_one_side_whatever_its_layout():
    texts = [f"question {i}" for i in range(40)]
    layouts = [
        lambda q: {"messages": [said("user", q), GOOD]},
        lambda q: {"messages": json.dumps([said("user", q, id=3), GOOD])},
        lambda q: {"messages": [said("user", [{"type": "text", "text": q}]), GOOD], "prompt": ""},
        lambda q: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": "yes"}]},
        lambda q: {"prompt": q, "completion": "a"},
        lambda q: {"history": [[q, "a"]], "prompt": "and?", "completion": "b"},
        lambda q: {"prompt": [said("user", q, weight=0)], "chosen": GOOD, "rejected": BAD},
        lambda q: {"messages": [said("user", q)], "chosen": [GOOD], "rejected": [BAD]},
    ]
    assert all({opening(layout(text)) for layout in layouts} == {text} for text in texts)


def test_the_columns_that_a_source_makes_are_not_the_file_s(tmp_path):
    from alignax.data.sources.gsm8k import gsm8k

    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "4\n#### 4", "level": "low"}) + "\n")
    for template, prompt in (("plain", "2 + 2?\n"), ("chat", "2 + 2?")):
        rows, counts = gsm8k(path=str(tmp_path / "a.jsonl"), template=template)
        made, counts = convert(rows, "prompt_completion", counts)
        assert made[0]["prompt"] == prompt and counts["unread"] == ["level"]
    text = "".join(demo_rows(made, chat(), **CHAT)[1].get("unread", []))
    assert text == "" and text_of(made, chat()).startswith("<|im_start|>user\n2 + 2?<|im_end|>")
