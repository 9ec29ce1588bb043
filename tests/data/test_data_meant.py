"""Nothing is learnt that nobody meant to teach, and nothing vanishes in silence: what public rows get wrong, by kind.

Five rules, each tried on the row that was reported and on its siblings: what a row says is used or named; what is
learnt stands in the text; no text is a control token; one value has one meaning; a refusal says what was found.
"""

import json

import datasets
import pytest
from errors import refuses
from families import ASK
from meant import (
    ASKS,
    CHAT,
    CHATML,
    DROPS,
    HEAD,
    MARKED,
    NO_END,
    OPENS,
    PLAIN,
    TURN,
    TWO_AND_TWO,
    calls,
    chat,
    learnt,
    said,
    text_of,
)
from tokenizers import AddedToken, normalizers

from alignax.data.counts import DataError
from alignax.data.encode import demo_rows, pair_rows, prompt_rows
from alignax.data.forms import convert
from alignax.data.rendering import end_texts
from alignax.data.sources.jsonl import jsonl
from alignax.data.templates import stop_ids
from alignax.data.thumbs import unpaired_rows

# ---- what a row says is used or named


def test_a_system_column_is_a_system_turn():
    rows = [
        {"system": word, "prompt": "which?", "chosen": a, "rejected": b}
        for word, a, b in (("one word", "ferry", "the ferry"), ("a sentence", "the ferry", "ferry"))
    ]
    made, counts = convert(rows, "preference", template="chat")
    assert [row["prompt"][0] for row in made] == [said("system", word) for word in ("one word", "a sentence")]
    assert "unread" not in counts
    for row in ({"messages": [ASK, said("assistant", "a")]}, {"prompt": [ASK], "completion": "a"}):
        for name in ("system", "system_prompt"):
            assert text_of([row | {name: "s"}], chat()).startswith(
                "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi"
            )
    same = {"system": "s", "messages": [said("system", "s"), ASK, said("assistant", "a")]}
    assert text_of([same], chat()).count("<|im_start|>system\ns<") == 1
    with refuses(DataError, "bad_turns", "system"):
        convert([same | {"system": "other"}], "prompt_completion")
    assert convert([{"system": "", "prompt": "p"}], "prompt_only")[1] == {"rows": 1, "kept": 1}
    demo = {"prompt": "p", "completion": "c"}
    made, _ = convert([demo | {"system": "s"}, demo], "prompt_completion")
    _, counts = demo_rows(made, chat(), template="plain", max_length=9)
    assert counts["dropped_needs_chat"] == 1


def test_earlier_turns_stand_before_the_prompt():
    row = {"history": [["one", "two"]], "system": "s", "prompt": "three", "completion": "four"}
    ((made,), counts) = convert([row], "prompt_completion")
    told = [said("system", "s"), said("user", "one"), said("assistant", "two"), said("user", "three")]
    assert made["prompt"] == told and "unread" not in counts
    assert convert([row | {"history": "one, two"}], "prompt_completion")[1]["unread"] == ["history"]


def test_columns_of_which_no_token_is_made_are_named():
    row = {"prompt": "p", "completion": "c", "weight": 0.5, "question": "q", "id": 3, "train": False, "messages": [ASK]}
    _, counts = convert([row, {"prompt": "p", "completion": "c", "note": None, "tags": []}], "prompt_completion")
    assert counts["unread"] == ["id", "messages", "question", "train", "weight"]
    assert "; not among the tokens: id, messages, question, train, weight" in str(counts)
    talk = {"messages": [said("user", "hi", name="ann"), said("assistant", "a", channel="final", tool_call_id="1")]}
    _, counts = learnt([talk | {"chat_template_kwargs": {"thinking": True}}], chat())
    assert counts["unread"] == [
        "chat_template_kwargs.thinking", "messages.channel", "messages.name", "messages.tool_call_id",
    ]  # fmt: skip
    _, counts = learnt([talk], chat(PLAIN.replace("m.role", "(m.name or m.role)")))  # the template asks for names
    assert counts["unread"] == ["messages.channel", "messages.tool_call_id"]


@pytest.mark.parametrize("name, value", [
    ("question", "which boat ?"), ("instruction", "why?"), ("context", ["the sea", "a"]), ("id", "a boat to the isle"),
])  # fmt: skip
def test_shared_words_are_no_prompt_beside_a_column_that_may_hold_it(name, value):
    pair = {"chosen": "the ferry .", "rejected": "the raft ."}
    with refuses(DataError, f"'{name}'", "data.fields", f"'prompt': '{name}'"):
        convert([pair | {name: value}], "preference")
    label = convert([pair | {"id": "a-17", "source": "web", "rank": 3}], "preference")
    assert label[0][0]["prompt"] == "the" and label[1]["unread"] == ["id", "rank", "source"]
    asked = {"question": value} | {
        side: [said("assistant", word)] for side, word in (("chosen", "a"), ("rejected", "b"))
    }
    with refuses(DataError, "1 prompt_mismatch", "tokens: question"):
        convert([asked], "preference")
    talk = {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi\n\nAssistant: b", name: value}
    assert convert([talk], "preference")[0][0]["prompt"] == "\n\nHuman: hi\n\nAssistant:"


def test_a_picture_is_counted():
    part = lambda kind: [{"type": "text", "text": "see"}, {"type": kind, kind: "x.png"}]  # noqa: E731
    rows = [
        {"messages": [said("user", part(kind)), said("assistant", "a")]} for kind in ("image", "image_url", "audio")
    ]
    good = {"messages": [said("user", [{"type": "text", "text": "h"}, "i"]), said("assistant", "a")]}
    texts, counts = learnt([*rows, good], chat())
    assert texts == ["a<|im_end|>"] and counts == {"rows": 4, "kept": 1, "dropped_not_text": 3}
    assert "<|im_start|>user\nhi<|im_end|>" in text_of([good], chat())
    assert "part of the type 'image'" in str(counts)
    _, counts = convert([good, good | {"images": ["x.png"]}, good | {"images": []}], "prompt_completion")
    assert counts == {"rows": 3, "kept": 2, "dropped_not_text": 1}


@pytest.mark.parametrize("no", [0, "0", False, "false", 0.0])
@pytest.mark.parametrize("key", ["weight", "train", "loss", "trainable"])
def test_a_turn_of_no_weight_is_not_learnt(key, no):
    bad, good = said("assistant", "five", **{key: no}), said("assistant", "four", **{key: 1})
    talk = {"messages": [ASK, bad, ASK, good]}
    texts, counts = learnt([talk], chat(), train_on="assistant")
    assert texts == ["four<|im_end|>"] and counts == {"rows": 1, "kept": 1}
    assert "five<|im_end|>" in text_of([talk], chat(), train_on="assistant")  # seen, and not learnt
    last = {"messages": [ASK, good, ASK, bad]}
    assert learnt([last], chat(), train_on="assistant")[0] == ["four<|im_end|>"]
    assert learnt([last, talk], chat())[1] == {"rows": 2, "kept": 1, "dropped_nothing_learnt": 1}
    assert learnt([talk], chat(MARKED), train_on="assistant")[0] == ["four<|im_end|>"]
    whole = [talk, {"messages": [ASK, said("assistant", "a")]}]
    assert learnt(whole, chat(), train_on="all")[1] == {"rows": 2, "kept": 1, "dropped_turn_weight": 1}


@pytest.mark.parametrize("weight", [{"weight": 0.5}, {"weight": "heavy"}, {"weight": -1}, {"mask": True}])
def test_a_weight_that_is_not_read_is_refused_by_its_name(weight):
    rows = [{"messages": [ASK, said("assistant", "a", **one)]} for one in (weight, {"weight": None})]
    _, counts = learnt(rows, chat())
    ((name, value),) = weight.items()
    assert counts == {"rows": 2, "kept": 1, "dropped_turn_weight": 1} and f"({name} = {value!r})" in str(counts)
    asked = [said("user", "hi", weight=1), said("assistant", "a")]
    assert learnt([{"messages": asked}], chat())[1]["unread"] == ["weight of user turns"]


HH = "\n\nHuman: hi\n\nAssistant:"


def test_a_dialogue_that_is_one_text_is_split_at_its_last_turn():
    later = "yes .\n\nHuman: ok\n\nAssistant: bye ."
    for prompt in ({}, {"prompt": HH}):
        begin = "" if prompt else HH
        row = prompt | {"chosen": f"{begin} {later}", "rejected": f"{begin} no ."}
        good = prompt | {"chosen": f"{begin} yes", "rejected": f"{begin} no"}
        made, counts = convert([row, good], "preference")
        assert made == [{"prompt": HH, "chosen": " yes", "rejected": " no"}]
        assert counts == {"rows": 2, "kept": 1, "dropped_prompt_mismatch": 1}
    ((row,), _) = convert([{"prompt": HH, "completion": f" {later}"}], "prompt_completion")
    assert row == {"prompt": f"{HH} yes .\n\nHuman: ok\n\nAssistant:", "completion": " bye ."}
    _, counts = convert([{"prompt": HH, "completion": " a\n\nHuman: b"}, row], "prompt_completion")
    assert counts["dropped_human_last"] == 1


def test_a_dialogue_that_is_one_text_becomes_turns_of_the_chat_template():
    rows = [{"prompt": f"{HH} a\n\nHuman: why\n\nAssistant:", "chosen": " so\n", "rejected": " no"}]
    made, _ = convert(rows, "preference", template="chat")
    talk = [ASK, said("assistant", "a"), said("user", "why")]
    assert made == [{"prompt": talk, "chosen": "so", "rejected": "no"}]
    assert convert(rows, "preference", template="plain")[0] == rows
    kind = {"prompt": f"Be kind.{HH}"}
    assert convert([kind], "prompt_only", template="chat")[0] == [{"prompt": [said("system", "Be kind."), ASK]}]
    quoted = [{"prompt": f"Who is right?{HH} a\n\nAnswer:"}]  # a text that holds a dialogue is none
    assert convert(quoted, "prompt_only", template="chat")[0] == quoted
    assert convert([{"text": f"{HH} a"}], "language_modelling", template="chat")[0] == [
        {"messages": [ASK, said("assistant", "a")]}
    ]


@pytest.mark.parametrize("prompt, opening", [(HH, HH), ("Q: why?\nA:", "Q: why?\nA:"), ([ASK], [ASK]), ("hi", [ASK])])
def test_a_prompt_that_opens_the_replies_is_no_part_of_them(prompt, opening):
    whole = lambda word: opening + ([said("assistant", word)] if isinstance(opening, list) else f" {word}")  # noqa: E731
    forms = {
        "prompt_completion": {"completion": whole("yes")},
        "unpaired": {"completion": whole("yes"), "label": True},
        "preference": {"chosen": whole("yes"), "rejected": whole("no")},
        "ranked": {"replies": [whole("yes"), whole("no")]},
    }
    for form, row in forms.items():
        ((made,), counts) = convert([{"prompt": prompt} | row], form)
        told = [one for name in ("completion", "chosen", "rejected") if name in made for one in [made[name]]]
        for reply, word in zip(told or made["replies"], ("yes", "no")):
            assert reply in (f" {word}", [said("assistant", word)])
        if (prompt, form) != ("hi", "preference"):  # a text beside whole dialogues, which are split where they part
            assert counts["noted_prompt_repeated"] == 1
        assert made["prompt"] in (prompt, opening)


def test_words_that_replies_repeat_by_chance_stay():
    told = (("Hello", "Hello!", "Hello there"), ("a", "b", "c"), ("d", "e", "f"))
    rows = [{"prompt": prompt, "chosen": good, "rejected": bad} for prompt, good, bad in told]
    assert convert(rows, "preference") == (rows, {"rows": 3, "kept": 3, "noted_prompt_echoed": 1})
    echo = [{"prompt": "say a", "completion": "say a"}, {"prompt": "hi", "completion": "high"}]
    assert convert(echo, "prompt_completion")[0] == echo
    whole = [{"prompt": f"Q{i}:", "completion": f"Q{i}: a"} for i in range(9)] + [{"prompt": "R:", "completion": "b"}]
    made, counts = convert(whole, "prompt_completion")
    assert [row["completion"] for row in made] == [" a"] * 9 + ["b"] and counts["noted_prompt_repeated"] == 9
    some, counts = convert(whole[-3:], "prompt_completion")
    assert some == whole[-3:] and counts["noted_prompt_echoed"] == 2


def test_rows_of_two_forms_are_read_or_refused_together():
    talk = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}
    demo = {"prompt": "hi", "completion": "no"}
    texts, counts = learnt([talk, demo], chat())
    assert sorted(texts) == ["no<|im_end|>", "yes<|im_end|>"] and counts == {"rows": 2, "kept": 2}
    pair = {"prompt": "hi", "chosen": "a", "rejected": "b"}
    thumb = {"prompt": "hi", "completion": "c", "label": True}
    assert convert([pair, thumb], "prompt_completion")[1] == {"rows": 2, "kept": 2}
    demos, talks = "prompt_completion", "language_modelling"
    for form, row, other in (("preference", demo, demos), ("unpaired", demo, demos), ("preference", talk, talks)):
        with refuses(DataError, "2 forms", "1 preference (chosen, prompt, rejected)", f"1 {other} (", "files"):
            convert([pair, row], form)
    lacking = [pair, {"prompt": "hi", "chosen": "a", "rejected": None}]  # of one form, and not whole
    assert convert(lacking, "preference")[1]["kept"] == 2


def test_replies_beside_the_messages_that_they_answer():
    good, bad = said("assistant", "yes"), said("assistant", "no")
    pair = {"messages": [ASK], "chosen": good, "rejected": bad}
    texts = [pair, pair | {"chosen": [good], "rejected": [bad]}, pair | {"messages": [ASK, good]},
             {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "yes"},
              "rejected": {"from": "gpt", "value": "no"}}]  # fmt: skip
    for row in texts:
        made, _ = convert([row], "preference")
        batch, counts = pair_rows(made, chat(), **CHAT)
        told = [chat().decode(batch[side]["tokens"][0][batch[side]["mask"][0]]) for side in ("chosen", "rejected")]
        assert told == ["yes<|im_end|>", "no<|im_end|>"] and counts == {"rows": 1, "kept": 1}
    whole = {"messages": [ASK, good], "chosen": [ASK, good], "rejected": [ASK, bad]}  # UltraFeedback's binarized pairs
    ((row,), counts) = convert([whole], "preference")
    assert row["prompt"] == [ASK] and counts["unread"] == ["messages"]
    thumb = {"messages": [ASK, good], "label": "no"}
    assert convert([thumb], "unpaired")[0] == [{"prompt": [ASK], "completion": [good], "label": False}]
    assert learnt([thumb, thumb | {"label": "yes"}], chat())[1] == {"rows": 2, "kept": 1, "dropped_undesirable": 1}


# ---- what is learnt stands in the text


@pytest.mark.parametrize("turn", [
    said("assistant", TWO_AND_TWO), said("assistant", "four", reasoning_content="two and two"),
    said("assistant", [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "four"}]),
])  # fmt: skip
def test_a_thought_is_learnt_or_counted(turn):
    (text,), counts = learnt([{"messages": [ASK, turn]}], chat(OPENS))
    assert text == "two and two\n</think>\n\nfour<|im_end|>" and counts["kept"] == 1
    rows = [{"messages": [ASK, one]} for one in (turn, said("assistant", "four"))]
    _, counts = learnt(rows, chat(DROPS))
    assert counts["dropped_not_written"] == 1 and counts["kept"] == 1
    earlier = {"messages": [ASK, turn, ASK, said("assistant", "b")]}
    assert learnt([earlier], chat(DROPS))[1]["kept"] == 1  # of turns that are not learnt templates drop thoughts


def test_a_reply_that_ends_a_thought_which_the_prompt_opens():
    rows = [{"prompt": "2 + 2 ?", "completion": "two and two\n</think>\n\nfour"}]
    assert learnt(rows, chat(OPENS))[0] == ["two and two\n</think>\n\nfour<|im_end|>"]
    assert text_of(rows, chat(OPENS)).count("<think>") == text_of(rows, chat(OPENS)).count("</think>") == 1
    assert learnt(rows, chat())[0] == ["two and two\n</think>\n\nfour<|im_end|>"]  # as it is stored
    silent = {"messages": [ASK, said("assistant", "", reasoning_content="nothing to say")]}
    assert learnt([silent], chat(OPENS))[0] == ["nothing to say\n</think>\n\n<|im_end|>"]
    _, counts = learnt([silent, {"messages": [ASK, said("assistant", "a")]}], chat())
    assert counts == {"rows": 2, "kept": 1, "dropped_not_written": 1}  # of a template that writes no thoughts


ZEPHYR = (
    "{% for m in messages %}{% if m.role in ('system', 'user') %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '<|im_end|>\n' }}{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}" + ASKS
)


@pytest.mark.parametrize("row, what", [
    ({"messages": [said("developer", "in French"), ASK, said("assistant", "salut")]}, "developer"),
    ({"messages": [ASK, calls({"city": "Rome"}), said("tool", "sun"), said("assistant", "It is.")]}, "call|tool"),
    ({"messages": [ASK, calls({"city": "Rome"})]}, "call"),
    ({"messages": [ASK, said("assistant", "a")], "tools": [{"name": "f"}]}, "tools"),
    ({"messages": [ASK, said("tool", "hi"), said("assistant", "a")]}, "tool"),  # words that stand there by another turn
])  # fmt: skip
def test_turns_that_the_template_leaves_out_are_counted(row, what):
    good = {"messages": [ASK, said("assistant", "a")]}
    for train_on in ("completion", "assistant"):
        texts, counts = learnt([row, good], chat(ZEPHYR), train_on=train_on)
        assert texts == ["a<|im_end|>"] and counts == {"rows": 2, "kept": 1, "dropped_not_written": 1}
        assert any(word in counts.found["not_written"] for word in what.split("|"))
        assert learnt([row], chat(), train_on=train_on)[1]["kept"] == 1  # of a template that writes them all
    prompts, counts = prompt_rows(
        convert([row, good], "prompt_only")[0], chat(ZEPHYR), template="chat", max_prompt_length=99
    )
    assert counts["kept"] == 1 + (what == "call")  # the call is the reply


def test_a_template_without_an_end_says_that_earlier_turns_have_none():
    rows = [{"messages": [ASK, said("assistant", "yes"), ASK, said("assistant", "bye")]}]
    texts, counts = learnt(rows, chat(NO_END), train_on="assistant")
    assert texts == ["yesbye<|endoftext|>"] and counts["noted_turn_without_end"] == 1
    assert "noted_turn_without_end" not in learnt(rows, chat(NO_END))[1]
    assert "noted_turn_without_end" not in learnt(rows, chat(), train_on="assistant")[1]


def test_a_turn_ends_once_by_its_own_end():
    other = "'<|eom_id|>' if m.tool_calls else '<|im_end|>\n'"
    tokenizer = chat(HEAD + TURN.replace("END", other) + ASKS, tokens=("<|eom_id|>",))
    row = {"prompt": "hi", "completion": [calls({"a": 1}), said("tool", "2"), said("assistant", "b")]}
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|eom_id|>'
    assert learnt([row, {"messages": [ASK, calls({"a": 1})]}], tokenizer)[0] == [f"{call}b<|im_end|>", call]
    assert end_texts(tokenizer) == ("<|im_end|>", "<|eom_id|>", "<|endoftext|>")
    assert len(stop_ids(tokenizer, "chat")) == 3  # what ends a reply in training stops the sampler
    end = "('<|eom_id|>' if 'wait' in m.content else '<|im_end|>\n')"
    by_word = chat(CHATML.template.replace("'<|im_end|>\n'", end), tokens=("<|eom_id|>",))
    assert learnt([{"messages": [ASK, said("assistant", "wait")]}], by_word)[0] == ["wait<|eom_id|>"]


# ---- no text is a control token


@pytest.mark.parametrize("row", [
    {"messages": [ASK, calls({"<|im_end|>": 1})]},
    {"messages": [ASK, calls({"a": [{"b<|im_start|>": 1}]})]},
    {"messages": [ASK, calls('{"a": "\\u003c|im_end|>"}')]},
    {"messages": [ASK, calls({"a": 1}, name="<|im_end|>")]},
    {"messages": [ASK, said("assistant", "a")], "tools": [{"name": "f", "parameters": {"<|im_end|>": {}}}]},
    {"messages": [ASK, said("assistant", "a")], "tools": [{"<|endoftext|>": 1}]},
    {"messages": [ASK, said("assistant", "a")], "chat_template_kwargs": {"x": {"<|im_end|>": 1}}},
    {"messages": [said("user", [{"type": "text", "text": "<|im"}, "_end|>"]), said("assistant", "a")]},
])  # fmt: skip
def test_no_name_is_a_control_token(row):
    good = {"messages": [ASK, said("assistant", "a")]}
    assert learnt([row, good], chat())[1] == {"rows": 2, "kept": 1, "dropped_special_token": 1}
    with refuses(DataError, "special_token", "|", "clean"):
        learnt([row], chat())


def test_an_unknown_role_is_named():
    rows = [{"messages": [ASK, said(role, "a")]} for role in ("<|im_end|>", "bot", 3, None)]
    rows += [{"conversations": [{"from": "narrator", "value": "x"}, {"from": "gpt", "value": "a"}]}]
    for row, named in zip(rows, ("role '<", "role 'bot", "role 3", "without a role", "'narrator'"), strict=True):
        with refuses(DataError, "bad_message", named, "roles are"):
            learnt([row], chat())


@pytest.mark.parametrize("text", ["<tool_call>x</tool_call>", "\uff1ctool_call\uff1e"])
def test_an_added_token_that_a_text_spells_is_said(text):
    """By the tokenizer's own normalisation full-width signs become it."""
    for tokenizer in (chat(normalizer=normalizers.NFKC()), chat()):
        rows = [{"messages": [said("user", text), said("assistant", "no")]}]
        _, counts = learnt(rows, tokenizer)
        ids = tokenizer(text)["input_ids"]
        read = tokenizer.convert_tokens_to_ids("<tool_call>") in ids
        assert counts.get("noted_added_token", 0) == read and counts["kept"] == 1
    assert learnt([{"messages": [ASK, said("assistant", "no")]}], chat())[1] == {"rows": 1, "kept": 1}


@pytest.mark.parametrize("space", ["  ", "\n\n"])
def test_white_space_that_is_a_token_spells_nothing(space):
    """Pythia and Gemma have such tokens, and a normaliser that strips would make an empty word of one."""
    for normalizer in (None, normalizers.Strip()):
        tokenizer = chat(normalizer=normalizer)
        tokenizer.add_tokens([AddedToken(space, normalized=True)])
        rows = [{"messages": [ASK, said("assistant", f"no{space}no")]}]
        assert learnt(rows, tokenizer)[1] == {"rows": 1, "kept": 1}


def test_words_that_become_a_control_token_by_normalisation_are_refused():
    special = AddedToken("<end>", special=True, normalized=True)
    tokenizer = chat(normalizer=normalizers.Lowercase())
    tokenizer.add_special_tokens({"additional_special_tokens": [special]})
    rows = [{"messages": [said("user", word), said("assistant", "no")]} for word in ("<END>", "end")]
    assert tokenizer("<END>")["input_ids"] == [tokenizer.convert_tokens_to_ids("<end>")]
    assert learnt(rows, tokenizer)[1] == {"rows": 2, "kept": 1, "dropped_special_token": 1}


def test_a_control_token_in_the_vocabulary_is_no_word(words):
    """A tokenizer of whole words has its control tokens among them, whatever is told of special tokens."""
    rows = [{"prompt": word, "completion": "fine"} for word in ("<user>", "hi")]
    rows.append({"prompt": "hi", "completion": "you <bot>"})
    _, counts = demo_rows(rows, words, template="plain", max_length=9)
    assert counts == {"rows": 3, "kept": 1, "dropped_special_token": 2}


# ---- one meaning for one value


@pytest.mark.parametrize("up, down", [
    (True, False), (1, 0), (1, -1), ("true", "false"), ("True", "False"), ("1", "0"), ("1", "-1"), ("yes", "no"),
    (1.0, 0.0), ("up", "down"), ("1.0", "-1.0"),
])  # fmt: skip
def test_thumbs_mean_the_same_however_they_are_written(up, down):
    rows = [{"prompt": f"q{i}", "completion": f"c{i}", "label": (down, up)[i % 2]} for i in range(4)]
    texts, counts = learnt(rows, chat())
    assert texts == ["c1<|im_end|>", "c3<|im_end|>"] and counts == {"rows": 4, "kept": 2, "dropped_undesirable": 2}
    made, counts = convert(rows, "unpaired")
    batch, _ = unpaired_rows(made, chat(), counts=counts, **CHAT)
    assert batch["desirable"].tolist() == [False, True] * 2


def test_thumbs_of_a_table_of_text_mean_the_same(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion,label\np,a,yes\np,b,No\np,c,1\np,d,-1\n", encoding="utf-8")
    rows, counts = jsonl(path=str(tmp_path / "a.csv"))
    made, _ = convert(rows, "unpaired", counts)
    assert [row["label"] for row in made] == [True, False, True, False]


def test_what_is_no_thumb_is_counted_or_a_class():
    row = lambda label: {"prompt": "p", "completion": "c", "label": label}  # noqa: E731
    _, counts = convert([row(1), row(-1), row(0)], "unpaired")  # between up and down
    assert counts == {"rows": 3, "kept": 2, "dropped_no_thumb": 1}
    _, counts = convert([row("yes"), row("no"), row("who knows")], "unpaired")
    assert counts.found == {"no_thumb": "label 'who knows'"}
    for labels in ((0, 1, 2), ("0", "1", "2"), ("maths", "law"), (0.2, 0.7)):
        made, counts = convert([row(label) for label in labels], "prompt_completion")
        assert len(made) == len(labels) and counts["unread"] == ["label"]


def test_numbers_mean_the_same_as_text():
    row = {"prompt": "p", "completions": ["a", "b"], "scores": ["0.5", "10"]}
    assert convert([row], "ranked")[0] == [{"prompt": "p", "replies": ["b", "a"]}]
    rated = [{"prompt": "p", "completion": c, "ratings": {"x": x, "y": "N/A"}} for c, x in (("a", "9"), ("b", "10"))]
    ((pair,), _) = convert(rated, "preference")
    assert (pair["chosen"], pair["margin"]) == ("b", 1.0)
    assert convert(rated, "ratings")[0][0]["ratings"] == {"x": 9, "y": None}
    told = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": "2", "tie": "false"}
    assert convert([told], "preference")[0][0] == told | {"margin": 2, "tie": False}
    steps = {"prompt": "p", "steps": ["a", " b", " c"], "verdicts": ["+", "-1", "0.5"]}
    assert convert([steps], "stepwise")[0][0]["verdicts"] == [True, False, 0.5]
    with refuses(DataError, "no_rating", "0", "-1"):
        convert([steps | {"verdicts": [1, 0, -1]}], "stepwise")


def test_replies_are_compared_by_what_both_are_rated_by():
    rated = [
        {"prompt": "p", "completion": "partial", "ratings": {"help": 5}},
        {"prompt": "p", "completion": "full", "ratings": {"help": 5, "honesty": 4}},
    ]
    more = [{"prompt": "p", "completion": "best", "ratings": {"help": 6, "honesty": 1}}]
    with pytest.raises(DataError, match="equal_scores"):
        convert(rated, "preference")
    pairs, _ = convert([*rated, *more], "preference")
    assert {(one["chosen"], one["rejected"], one["margin"]) for one in pairs} == {
        ("best", "partial", 1.0), ("full", "best", 1.0),  # 4.5 against 3.5
    }  # fmt: skip
    assert convert([*rated, *more], "prompt_completion")[0][0]["completion"] == "best"


@pytest.mark.parametrize("told, meant", [
    ('{"a": 1}', {"a": 1}), ("{}", {}), (None, {}), ({"a": 1, "b": None}, {"a": 1}), ('{"a": 1, "b": null}', {"a": 1}),
    ({"a": {"b": None, "c": [None, {"d": None}]}}, {"a": {"c": [None, {}]}}),
])  # fmt: skip
def test_arguments_mean_the_same_as_text(told, meant):
    (text,), counts = learnt([{"messages": [ASK, calls(told)]}], chat())
    assert text == f"<tool_call>{json.dumps({'name': 'f', 'arguments': meant})}</tool_call><|im_end|>"
    assert counts.get("noted_nulls_left_out", 0) == ("null" in json.dumps(told) and told is not None)
    older = said("assistant", None, function_call={"name": "f", "arguments": told})
    bare = said("assistant", "", tool_calls=[{"name": "f", "arguments": told}])
    as_text = said("assistant", "", tool_calls=json.dumps(calls(told)["tool_calls"]))
    talk = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": told})}
    for turn in (older, bare, as_text, talk):
        assert learnt([{"messages": [ASK, turn]}], chat())[0] == [text]


@pytest.mark.parametrize("told", [
    '{"a": ', "call f", "[1]", '"x"', '{"a": NaN}', '{"a": 1e400}', '{"a": 1, "a": 2}', [1], 3, {"a": float("nan")},
])  # fmt: skip
def test_arguments_that_are_no_object_are_counted(told):
    good = {"messages": [ASK, said("assistant", "a")]}
    _, counts = learnt([{"messages": [ASK, calls(told)]}, good], chat())
    assert counts == {"rows": 2, "kept": 1, "dropped_bad_call": 1} and "arguments" in str(counts)


def test_nulls_of_a_table_are_no_keys(tmp_path):
    """A table has each key of any row in every row: what was null there cannot be told from what was absent."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "number"}}}}}
    other = {"type": "function", "function": {"name": "g", "parameters": {"properties": {"b": {"type": "number"}}}}}
    rows = [
        {"messages": [ASK, calls({"a": 1})], "tools": [tool]},
        {"messages": [ASK, calls({"b": 2}, name="g")], "tools": [other]},
        {"messages": [ASK, said("assistant", "a")], "tools": None},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    plain, padded = (learnt(jsonl(path=str(tmp_path / f"rows.{kind}"))[0], chat()) for kind in ("jsonl", "parquet"))
    assert plain[0] == padded[0] and len(plain[0]) == 3
    assert plain[1] == {"rows": 3, "kept": 3} and padded[1] == plain[1] | {"noted_nulls_left_out": 2}
    texts = [text_of(jsonl(path=str(tmp_path / f"rows.{kind}"))[0], chat()) for kind in ("jsonl", "parquet")]
    assert texts[0] == texts[1] and '"b"' not in texts[0]


# ---- a refusal says what was found


def test_a_refusal_says_what_was_found():
    good = {"prompt": "p", "completion": "c"}
    _, counts = learnt([good, {"prompt": "p", "completion": {"text": "c"}}], chat())
    assert "1 missing_field (found an object)" in str(counts)
    _, counts = learnt([good, {"prompt": "p", "completion": None}], chat())
    assert "1 missing_field (found prompt)" in str(counts)
    _, counts = convert([{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]},
                         {"prompt": "p", "completions": "ab", "scores": [1, 2], "id": 1}], "ranked")  # fmt: skip
    assert "(found completions, id, prompt, scores)" in str(counts)
