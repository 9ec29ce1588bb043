"""Rows of messages: token-exact goldens per template family, ends, boundaries, bad dialogues (traps 8, 13, 30, 31)."""

import numpy as np
import pytest
from errors import refuses
from families import ASK, DIALOGUE, FAMILIES, QWEN3, SYSTEM, TURN, spelled, tokenizer_of

from alignax.data.counts import REASONS, DataError, meaning
from alignax.data.encode import demo_rows, encode_completion, encode_prompt, pair_rows, prompt_rows
from alignax.data.forms import form_of
from alignax.data.judged import ranking_rows, rating_rows, step_rows
from alignax.data.rendering import end_of_turn, render
from alignax.data.templates import stop_ids
from alignax.data.thumbs import unpaired_rows

CHAT = {"template": "chat", "max_length": 256}
PAGES = pytest.mark.parametrize("name", FAMILIES)
CHATML = FAMILIES["chatml"]


def dialogue(family):
    return [SYSTEM, *DIALOGUE] if family.system else DIALOGUE


def row_of(batch, i=0):
    """Ids and mask of a row, without its padding."""
    valid = batch["valid"][i]
    return batch["tokens"][i][valid].tolist(), batch["mask"][i][valid].tolist()


@PAGES
def test_every_assistant_turn_and_nothing_else(name):
    family = FAMILIES[name]
    batch, counts = demo_rows([{"messages": dialogue(family)}], tokenizer_of(family), train_on="assistant", **CHAT)
    assert row_of(batch) == spelled(family.golden, family)
    assert counts == {"rows": 1, "kept": 1}


@PAGES
def test_the_last_turn_alone_and_all_of_it(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(FAMILIES[name])
    opening, _, last = family.golden.rpartition("[[")
    prompt, reply = opening.replace("[[", "").replace("]]", ""), "[[" + last
    rows = [{"messages": dialogue(family)}, {"prompt": dialogue(family)[:-1], "completion": "so"}]
    batch, _ = demo_rows(rows, tokenizer, **CHAT)
    assert row_of(batch, 0) == row_of(batch, 1) == spelled(prompt + reply, family)
    ids, _ = row_of(demo_rows(rows, tokenizer, train_on="all", **CHAT)[0])
    assert (ids, [False] + [True] * (len(ids) - 1)) == row_of(demo_rows(rows, tokenizer, train_on="all", **CHAT)[0])
    # what the sampler is given, and what it would have to say after it, once
    told = encode_prompt(tokenizer, dialogue(family)[:-1], "chat")
    assert told == spelled(prompt, family)[0]
    assert encode_completion(tokenizer, dialogue(family)[:-1], "so", "chat") == spelled(reply, family)[0]
    held, _ = prompt_rows([{"prompt": dialogue(family)[:-1]}], tokenizer, template="chat", max_prompt_length=256)
    assert held["tokens"][0][held["valid"][0]].tolist() == told


@PAGES
def test_sampler_and_training_agree_on_the_end(name):
    family, tokenizer = FAMILIES[name], tokenizer_of(FAMILIES[name])
    end, eos = (tokenizer.convert_tokens_to_ids(token) for token in (family.end, tokenizer.eos_token))
    assert end_of_turn(tokenizer) == family.end and stop_ids(tokenizer, "chat") == {end, eos}
    assert stop_ids(tokenizer, "plain") == {eos}
    ids, mask = row_of(demo_rows([{"messages": dialogue(family)}], tokenizer, train_on="assistant", **CHAT)[0])
    said = [token for token, kept in zip(ids, mask) if kept]
    assert said.count(end) == 2 and said[-1] == end and (eos == end or eos not in ids)
    assert ids.count(tokenizer.bos_token_id) == {"llama2": 2, "llama3": 1, "mistral": 1, "gemma": 1, "gemma3": 1}.get(
        name, 0
    )


def test_a_beginning_of_sequence_comes_once_in_a_plain_text():
    tokenizer = tokenizer_of(FAMILIES["gemma"])
    ids = encode_prompt(tokenizer, "hi", "plain") + encode_completion(tokenizer, "hi", "yes", "plain")
    assert ids == spelled("<bos>hiyes<eos>", FAMILIES["gemma"])[0]


def marked(content):
    """ChatML that marks the assistant's words; `content` is what stands within the mark and behind it."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        + content
        + "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


@pytest.mark.parametrize(
    "content",
    [
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
        "{%- generation -%}{{ m.content + '<|im_end|>\n' }}{%- endgeneration -%}",  # more than the sampler would say
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",  # less: it would never stop
    ],
)
def test_a_marker_in_the_template_gives_the_same_mask(content):
    family = CHATML._replace(template=marked(content))
    batch, _ = demo_rows([{"messages": [SYSTEM, *DIALOGUE]}], tokenizer_of(family), train_on="assistant", **CHAT)
    assert row_of(batch) == spelled(CHATML.golden, CHATML)


def test_a_marker_that_leaves_turns_out():
    """The stretch that is marked would begin where the prompt ends, and hold the tool turn."""
    told = "{{ m.content or 'call' }}{{ '<|im_end|>' }}"
    some = f"{{% if m.tool_calls %}}{told}{{% else %}}{{% generation %}}{told}{{% endgeneration %}}{{% endif %}}"
    tokenizer = tokenizer_of(CHATML._replace(template=marked(some + "{{ '\n' }}")))
    tool = {"role": "tool", "content": "2"}
    rows = [{"prompt": "hi", "completion": reply} for reply in ([CALL, tool, TURN], [TURN, tool, TURN], "yes")]
    batch, counts = demo_rows(rows, tokenizer, **CHAT)
    assert counts == {"rows": 3, "kept": 2, "dropped_unmarked_turns": 1} and batch["row"].tolist() == [1, 2]
    start = "<|im_start|>assistant\n"
    asked, answered = "<|im_start|>user\nhi<|im_end|>\n", "<|im_start|>tool\n2<|im_end|>\n"
    golden = f"{asked}{start}[[yes<|im_end|>]]\n{answered}{start}[[yes<|im_end|>]]"
    assert row_of(batch) == spelled(golden, CHATML)
    last = "{% if loop.last %}{% generation %}TOLD{% endgeneration %}{% else %}TOLD{% endif %}".replace("TOLD", told)
    with refuses(DataError, "train_on = 'assistant'", "mark"):
        demo_rows(rows, tokenizer_of(CHATML._replace(template=marked(last))), train_on="assistant", **CHAT)


def test_null_keys_are_no_keys():
    """What a file of mixed rows has in every message: a template that asks whether a key is there must not find it."""
    for content in (
        "{{ m.content + '<|im_end|>' }}",
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}",
    ):
        template = marked(content + "{{ 'called ' + m.tool_calls | tojson if m.tool_calls is defined }}{{ '\n' }}")
        said = [message | {"tool_calls": None} for message in [SYSTEM, *DIALOGUE]]
        family = CHATML._replace(template=template)
        batch, _ = demo_rows([{"messages": said}], tokenizer_of(family), train_on="assistant", **CHAT)
        assert row_of(batch) == spelled(CHATML.golden, CHATML)


def test_the_longest_token_is_the_end():
    family = CHATML._replace(tokens=(*CHATML.tokens, "<|im", "<|"))
    assert end_of_turn(tokenizer_of(family)) == "<|im_end|>"


# drops what an earlier turn says before the bar, as templates of reasoning models drop thoughts
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}BEGIN"
    "{{ m.content if loop.last else m.content.split('|')[-1] }}{{ '<|im_end|>' }}END{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = FORGETFUL.replace("BEGIN", "{% if m.role == 'assistant' %}{% generation %}").replace(
    "END", "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns():
    family = CHATML._replace(template=FORGETFUL.replace("BEGIN", "").replace("END", ""))
    thought = [ASK, TURN | {"content": "hm|yes"}, *DIALOGUE[2:]]
    rows = [{"messages": thought}, {"messages": DIALOGUE}]
    batch, counts = demo_rows(rows, tokenizer_of(family), train_on="assistant", **CHAT)
    assert counts == {"rows": 2, "kept": 1, "dropped_rewritten_turns": 1} and batch["row"].tolist() == [1]
    batch, _ = demo_rows(rows, tokenizer_of(family), **CHAT)  # the last turn is no earlier one
    assert len(batch["row"]) == 2
    family = CHATML._replace(template=FORGETFUL.replace("BEGIN", "{{ '..' if loop.last else '' }}").replace("END", ""))
    with refuses(DataError, "assistant marker", "assistant"):
        demo_rows(rows, tokenizer_of(family), train_on="assistant", **CHAT)
    family = CHATML._replace(template=MARKED)
    batch, counts = demo_rows(rows, tokenizer_of(family), train_on="assistant", **CHAT)
    assert counts["dropped_not_written"] == 1 and batch["row"].tolist() == [1]  # a part of what would be learnt
    assert row_of(batch) == spelled(CHATML.golden.partition("<|im_end|>\n")[2], CHATML)  # without the system turn


def test_thoughts_are_learnt_in_the_last_turn_alone():
    """As Qwen 3: turns that later ones rewrite are counted, and with thinking off the empty thought is the prompt's."""
    tokenizer = tokenizer_of(QWEN3)
    thought = [SYSTEM, ASK, TURN | {"content": "<think>\nah\n</think>\n\nyes"}, DIALOGUE[2]]
    thought.append(TURN | {"content": "<think>\nhm\n</think>\n\nso"})
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    batch, _ = demo_rows([{"messages": thought}, {"messages": thought[:-1] + DIALOGUE[-1:]} | off], tokenizer, **CHAT)
    assert row_of(batch) == spelled(QWEN3.golden, QWEN3)
    no_thought = QWEN3.golden.replace("[[<think>\nhm\n</think>\n\n", "<think>\n\n</think>\n\n[[")
    assert row_of(batch, 1) == spelled(no_thought, QWEN3)
    with refuses(DataError, "assistant turn", "begins"):
        demo_rows([{"messages": thought}], tokenizer, train_on="assistant", **CHAT)


CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name }}"
    "{{ call.function.arguments | tojson + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + (opening or '') }}{% endif %}"
)


def test_tool_turns_within_a_reply_are_seen_and_not_learnt():
    family = CHATML._replace(template=TOOLS)
    reply = [CALL | {"content": None}, {"role": "tool", "name": "add", "content": "2"}, TURN]
    row = {"prompt": "hi", "completion": reply, "tools": '[{"name": "add"}]'}
    golden = (
        '<|im_start|>system\n[{"name": "add"}]<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'
        '[[<tool_call>add{"a": 1}</tool_call><|im_end|>]]\n'
        "<|im_start|>tool\n2<|im_end|>\n"
        "<|im_start|>assistant\n[[yes<|im_end|>]]"
    )
    batch, _ = demo_rows([row], tokenizer_of(family), **CHAT)
    assert row_of(batch) == spelled(golden, family)
    pair = {"prompt": "hi", "chosen": reply, "rejected": "no", "tools": [{"name": "add"}]}
    batch, _ = pair_rows([pair], tokenizer_of(family), **CHAT)
    assert row_of(batch["chosen"]) == spelled(golden, family)
    assert row_of(batch["rejected"])[1].count(True) == 3


def test_a_reply_of_several_turns_under_a_template_that_rewrites_them():
    """As Qwen 3's: only the last turn shows its thoughts, so what a call looked like when it was made is not there."""
    reply = [TURN | {"content": "hm|call"}, {"role": "tool", "content": "2"}, TURN | {"content": "ah|yes"}]
    told = FORGETFUL.replace("BEGIN", "").replace("END", "")
    _, counts = pair_rows([{"prompt": "hi", "chosen": reply, "rejected": "no"}, {"prompt": "hi", "chosen": "yes",
                            "rejected": "no"}], tokenizer_of(CHATML._replace(template=told)), **CHAT)  # fmt: skip
    assert counts == {"rows": 2, "kept": 1, "dropped_rewritten_turns": 1}
    reply[0] = TURN | {"content": "call"}
    batch, _ = demo_rows([{"prompt": [ASK, TURN | {"content": "hm|yes"}, ASK], "completion": reply}],
                         tokenizer_of(CHATML._replace(template=MARKED)), **CHAT)  # fmt: skip
    golden = (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n[[call<|im_end|>]]\n<|im_start|>tool\n2<|im_end|>\n"
        "<|im_start|>assistant\n[[ah|yes<|im_end|>]]"
    )
    assert row_of(batch) == spelled(golden, CHATML)


def test_arguments_of_the_template():
    tokenizer = tokenizer_of(CHATML._replace(template=TOOLS))
    batch, _ = prompt_rows(
        [{"prompt": "hi", "chat_template_kwargs": {"opening": "o", "other": None}}, {"prompt": [ASK]}],
        tokenizer, template="chat", max_prompt_length=64,
    )  # fmt: skip
    asked = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    rows = [batch["tokens"][i][batch["valid"][i]].tolist() for i in (0, 1)]
    assert rows == [spelled(text, CHATML)[0] for text in (asked + "o", asked)]
    wrong = [("tools", "{"), ("tools", 3), ("tools", ["get_weather"]), ("tools", '["get_weather"]')]
    wrong += [("chat_template_kwargs", {key: True}) for key in ("tokenize", "return_assistant_tokens_mask", "messages")]
    for name, value in wrong:
        with refuses(DataError, f"'{name}' = ", "'hi'", "expected"):
            prompt_rows([{"prompt": "hi", name: value}], tokenizer, template="chat", max_prompt_length=64)


def test_text_and_messages_are_one(words):
    row = {"prompt": "hi there", "chosen": "fine", "rejected": "how are"}
    talk = {"prompt": [{"role": "user", "content": row["prompt"]}]}
    talk |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    first, second = (pair_rows([one], words, **CHAT)[0] for one in (row, talk))
    assert all((first[side][key] == second[side][key]).all() for side in ("chosen", "rejected") for key in first[side])


def test_a_token_over_the_boundary_is_refused():
    """ChatML's header ends with a line break: a reply that begins with another would share a token with it."""
    tokenizer = tokenizer_of(CHATML, [("Ċ", "Ċ")])
    assert tokenizer("\n\n")["input_ids"] == [256]
    rows = [{"messages": [ASK, TURN | {"content": text}, *DIALOGUE[2:]]} for text in ("\nyes", "yes", "yes\n\n")]
    batch, counts = demo_rows(rows, tokenizer, train_on="assistant", **CHAT)
    assert counts == {"rows": 3, "kept": 2, "dropped_not_prefix": 1} and batch["row"].tolist() == [1, 2]
    said = [tokenizer.decode(batch["tokens"][i][batch["mask"][i]]) for i in (0, 1)]
    assert said == ["yes<|im_end|>so<|im_end|>", "yes\n\n<|im_end|>so<|im_end|>"]


BAD = {
    "bad_message": [[{"content": "hi"}], [ASK | {"role": "bot"}], ["hi"], [{"role": "user"}], [ASK | {"content": 3}]],
    "bad_turns": [[ASK, TURN]],
    "empty_prompt": [],
    "missing_field": [5, {"content": "hi"}],
    "special_token": [[ASK | {"content": "x<|im_end|>"}], [ASK | {"name": "<|im_start|>"}]],
}


@pytest.mark.parametrize("reason", [name for name in BAD if BAD[name]])
def test_each_bad_prompt_is_counted(reason):
    rows = [{"prompt": said, "completion": "yes"} for said in [*BAD[reason], [ASK]]]
    for train_on in ("completion", "assistant"):
        if (reason, train_on) == ("bad_turns", "assistant"):
            continue  # two turns of the assistant in a row are a dialogue like others
        batch, counts = demo_rows(rows, tokenizer_of(CHATML), train_on=train_on, **CHAT)
        assert counts == {"rows": len(rows), "kept": 1, f"dropped_{reason}": len(rows) - 1}
        assert batch["row"].tolist() == [len(rows) - 1]
        with pytest.raises(DataError) as error:
            demo_rows(rows[:1], tokenizer_of(CHATML), train_on=train_on, **CHAT)
        assert REASONS[reason][1] in str(error.value)


@pytest.mark.parametrize(
    "reply, reason",
    [
        ([], "empty_reply"),
        ([TURN | {"content": " \n"}], "empty_reply"),
        ([ASK, TURN], "bad_turns"),
        ([TURN, ASK], "bad_turns"),
        ([TURN | {"role": "bot"}], "bad_message"),
        ([TURN | {"content": "yes<|im_end|>"}], "special_token"),
    ],
)
def test_each_bad_reply_is_counted(reply, reason):
    rows = [{"prompt": "hi", "chosen": "no", "rejected": said} for said in (reply, [TURN])]
    _, counts = pair_rows(rows, tokenizer_of(CHATML), **CHAT)
    assert counts == {"rows": 2, "kept": 1, f"dropped_{reason}": 1}


def test_dialogues_that_are_none():
    rows = [{"messages": said} for said in (DIALOGUE, DIALOGUE[:-1], [], "hi", [SYSTEM], [TURN])]
    lost = {
        "completion": {"dropped_missing_field": 1, "dropped_empty_prompt": 3, "dropped_bad_turns": 1},
        "assistant": {"dropped_missing_field": 1, "dropped_empty_reply": 1, "dropped_bad_turns": 3},
    }
    for train_on, reasons in lost.items():
        _, counts = demo_rows(rows, tokenizer_of(CHATML), train_on=train_on, **CHAT)
        assert counts == {"rows": 6, "kept": 1} | reasons
    with refuses(DataError, "'messages'", "'hi'", "expected"):
        demo_rows([{"messages": "hi"}, {"messages": "yes"}], tokenizer_of(CHATML), **CHAT)
    # where the assistant opens a dialogue, only a marker shows where its words begin
    mark = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    batch, _ = demo_rows(rows[-1:], tokenizer_of(CHATML._replace(template=marked(mark))), train_on="assistant", **CHAT)
    assert row_of(batch) == spelled("<|im_start|>assistant\n[[yes<|im_end|>]]", CHATML)


def test_turns_that_the_template_refuses():
    rows = [{"messages": said} for said in ([SYSTEM, ASK, TURN], [ASK, ASK, TURN], DIALOGUE)]
    _, counts = demo_rows(rows, tokenizer_of(FAMILIES["gemma"]), **CHAT)
    assert counts == {"rows": 3, "kept": 1, "dropped_template_refused": 2}
    with refuses(DataError, "fails on", "roles must"):
        broken = FAMILIES["gemma"].template.replace("== 0", "== 1")
        encode_prompt(tokenizer_of(FAMILIES["gemma"]._replace(template=broken)), "hi", "chat")


def test_messages_need_a_chat_template():
    demo = {"prompt": "hi", "completion": "yes"}
    more = [{"prompt": [ASK]}, {"tools": [{"name": "add"}]}, {"chat_template_kwargs": {"opening": "o"}}, {"tools": []}]
    _, counts = demo_rows([demo | one for one in more], tokenizer_of(CHATML), template="plain", max_length=64)
    assert counts == {"rows": 4, "kept": 1, "dropped_needs_chat": 3}


def test_other_columns_beside_a_dialogue():
    """What `form_of` takes for a dialogue, the encoder does."""
    tokenizer, talk = tokenizer_of(CHATML), {"messages": DIALOGUE}
    whole, _ = demo_rows([talk], tokenizer, **CHAT)
    for other in ({"prompt": "hi", "prompt_id": "1"}, {"text": "hi yes"}, {"prompt": "hi", "text": "hi yes"}):
        assert form_of([talk | other]) == "language_modelling"
        assert row_of(demo_rows([talk | other], tokenizer, **CHAT)[0]) == row_of(whole)
    demo = {"prompt": DIALOGUE[:-1], "completion": "so"}
    rows = [demo | {"messages": [ASK, TURN], "text": "x"}, talk | {"prompt": "hi"}]  # each by its own columns
    batch, _ = demo_rows(rows, tokenizer, **CHAT)
    assert row_of(batch, 0) == row_of(batch, 1) == row_of(whole)
    text = {"prompt": "hi", "text": "hi yes"}
    assert form_of([text]) == "language_modelling"
    batch, _ = demo_rows([text], tokenizer, template="plain", max_length=64, train_on="all")
    assert row_of(batch)[0] == spelled("hi yes<|endoftext|>", CHATML)[0]


def test_rows_of_text(words):
    batch, counts = demo_rows(
        [{"text": "hi there"}, {"text": " "}], words, template="plain", max_length=8, train_on="all"
    )
    assert row_of(batch) == ([2, 6, 7, 3], [False, True, True, True])
    assert counts == {"rows": 2, "kept": 1, "dropped_empty_reply": 1}
    with refuses(DataError, "train_on = 'completion'", "template 'plain'"):
        demo_rows([{"text": "hi there"}], words, template="plain", max_length=8)


def test_what_train_on_may_be(words):
    rows = [{"prompt": "hi", "completion": "fine"}]
    with refuses(DataError, "train_on = 'assistant'", "'plain'", "'chat'"):
        demo_rows(rows, words, template="plain", max_length=8, train_on="assistant")
    with refuses(DataError, "train_on = 'reply'", "completion, assistant, all"):
        demo_rows(rows, words, template="plain", max_length=8, train_on="reply")


def test_judgements_and_thumbs_on_messages(words):
    """The same arrays as of text, whatever the judgement."""
    talk = [{"role": "user", "content": "hi there"}]
    say = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    kinds = [
        (ranking_rows, {"replies": ["fine", "you"]}, {"replies": [say("fine"), say("you")]}),
        (rating_rows, {"completion": "fine", "ratings": {"a": 1}}, {"completion": say("fine"), "ratings": {"a": 1}}),
        (step_rows, {"steps": ["how", " are"], "verdicts": [1, 0]}, {"steps": ["how", " are"], "verdicts": [1, 0]}),
    ]
    for encode, text, messages in kinds:
        first, _ = encode([{"prompt": "hi there"} | text], words, **CHAT)
        second, _ = encode([{"prompt": talk} | messages], words, **CHAT)
        for name in ("replies", "reply"):
            assert all((first[name][key] == second[name][key]).all() for key in first.get(name, {}))
    rows = [
        {"prompt": talk, "completion": say("fine"), "label": True},
        {"prompt": "how", "completion": "you", "label": False},
    ]
    batch, _ = unpaired_rows(rows, words, **CHAT)
    assert [words.decode(t[m]) for t, m in zip(batch["mismatched"]["tokens"], batch["mismatched"]["mask"])] == [
        "you [EOS]", "fine [EOS]",
    ]  # fmt: skip
    assert np.array_equal(batch["desirable"], [True, False])


DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)


def test_a_template_that_prints_the_date_prints_the_same_on_every_day():
    tokenizer = tokenizer_of(CHATML)
    tokenizer.chat_template = DATED + tokenizer.chat_template
    assert render(tokenizer, [ASK], {}).startswith("26 Jul 2024")
    assert render(tokenizer, [ASK], {"date_string": "1 May 2026"}).startswith("1 May 2026")


def test_the_day_is_the_same_where_the_template_marks_the_turns():
    mark = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    tokenizer = tokenizer_of(CHATML._replace(template=DATED + marked(mark)))
    golden = "26 Jul 2024" + CHATML.golden.partition("<|im_end|>\n")[2]
    batch, _ = demo_rows([{"messages": DIALOGUE}], tokenizer, train_on="assistant", **CHAT)
    assert row_of(batch) == spelled(golden, CHATML)
    reply = [TURN, *DIALOGUE[2:]]  # of several turns: the prompt's text is how the row's begins
    batch, counts = demo_rows([{"prompt": "hi", "completion": reply}], tokenizer, **CHAT)
    assert counts["kept"] == 1 and row_of(batch) == spelled(golden, CHATML)
    day = {"chat_template_kwargs": {"date_string": "1 May 2026"}}
    batch, _ = demo_rows([{"prompt": "hi", "completion": reply} | day], tokenizer, **CHAT)
    assert row_of(batch) == spelled(golden.replace("26 Jul 2024", "1 May 2026"), CHATML)


@pytest.mark.parametrize(
    "failure", ["1 // (messages[0].content | length - 3)", "messages[0].content + 1", "strftime_now(3)"]
)
def test_whatever_a_template_fails_by_is_counted(failure):
    mark = "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    fails = f"{{% if messages[0].content == 'bad' %}}{{{{ {failure} }}}}{{% endif %}}"
    for template in (fails + CHATML.template, fails + marked(mark)):
        tokenizer, bad = tokenizer_of(CHATML._replace(template=template)), ASK | {"content": "bad"}
        rows = [{"messages": [bad, TURN]}, {"messages": DIALOGUE}]
        for train_on in ("completion", "assistant"):
            _, counts = demo_rows(rows, tokenizer, train_on=train_on, **CHAT)
            assert counts == {"rows": 2, "kept": 1, "dropped_template_refused": 1}


def test_the_template_s_own_words_are_told():
    tokenizer, bad = tokenizer_of(FAMILIES["gemma"]), [SYSTEM, ASK, TURN]
    for rows, words in (
        ([{"messages": bad}], "System role not supported"),
        ([{"messages": [ASK, ASK, TURN]}, {"messages": bad}], "roles must alternate"),  # the first row's
        ([{"prompt": "hi", "completion": [TURN, TURN]}], "roles must alternate"),
    ):
        with refuses(DataError, "template_refused", f"({words})", "change"):
            demo_rows(rows, tokenizer, **CHAT)
    with refuses(DataError, "template_refused", "(System role not supported)"):
        encode_prompt(tokenizer, [SYSTEM, ASK], "chat")
    _, counts = demo_rows([{"messages": bad}, {"messages": DIALOGUE}], tokenizer, **CHAT)
    assert meaning("template_refused", counts.found["template_refused"]).endswith("(System role not supported)")
    assert counts == {"rows": 2, "kept": 1, "dropped_template_refused": 1}
