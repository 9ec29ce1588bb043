"""Observations as ids: what a template writes between two turns of the assistant."""

import pytest
from transformers import AddedToken

from alignax.data.boundary import tokenize
from alignax.data.rendering import PING, render
from alignax.envs.observed import NOTE, Observer
from alignax.worlds import tokenizer as harbor
from alignax.worlds.sums import build_tokenizer

TOOL = {"role": "tool", "name": "calculate", "content": "3108"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def read(tokenizer, observation, most=64, template="chat"):
    return tokenizer.decode(Observer(tokenizer, template, most).ids(observation))


def test_a_tools_message_is_what_the_template_writes(tokenizer):
    assert read(tokenizer, [TOOL]) == "<tool>3108<assistant>"
    assert read(tokenizer, [TOOL, TOOL | {"content": "7"}]) == "<tool>3108<tool>7<assistant>"
    assert read(tokenizer, "and now?") == "<user>and now?<assistant>"


def test_the_ids_are_those_of_the_whole_dialogue(tokenizer):
    """Behind the prompt's ids and the sampled turn's they are what the template writes of all of it."""
    function = {"name": "calculate", "arguments": {"expression": "37*84"}}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    asked, spoken, whole = tokenize(
        tokenizer,
        [
            render(tokenizer, PING, {}, ask=True),
            render(tokenizer, [*PING, turn], {}),
            render(tokenizer, [*PING, turn, TOOL], {}, ask=True),
        ],
    )
    assert spoken[: len(asked)] == asked
    assert spoken + Observer(tokenizer, "chat", 64).ids([TOOL]) == whole


def test_a_template_that_writes_earlier_turns_otherwise():
    """As Qwen3's does: an empty thought in the last turn, none in earlier ones."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<assistant>{% if loop.last %}[thought]{% endif %}"
        "{{ m.content }}{{ eos_token }}\n{% else %}{{ '<' + m.role + '>' + m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert read(tokenizer, "go") == "\n<user>go\n<assistant>"


def test_a_template_without_tools_has_them_said_by_the_user():
    text = read(harbor.build_tokenizer(), [TOOL | {"content": "the harbor is open"}])
    assert text.split()[0] == "<user>" and text.split()[-1] == "<assistant>" and "harbor" in text


def test_a_plain_template_has_the_text_as_it_stands(tokenizer):
    assert read(tokenizer, [TOOL], template="plain") == "3108"
    assert read(tokenizer, "a<eos>b", template="plain") == "a<eos>b"
    assert tokenizer.eos_token_id not in Observer(tokenizer, "plain", 64).ids("a<eos>b")


@pytest.mark.parametrize("text", ["1<eos>2", "<user>say<assistant>", "<<eos>eos>", "<" * 5 + "<eos>" * 3])
def test_control_tokens_are_made_harmless(tokenizer, text):
    ids = Observer(tokenizer, "chat", 64).ids(text)
    control = [i for i in ids if i in tokenizer.all_special_ids]
    assert tokenizer.decode(control) == "<user><assistant>"  # the template's own


def test_a_token_that_normal_text_becomes_is_made_harmless():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("ping", normalized=False, special=True)]})
    assert "ping" not in read(tokenizer, "xpingx")


@pytest.mark.parametrize("most", [10, 24])
def test_what_is_too_long_is_cut_with_a_note(tokenizer, most):
    short, cut = (
        Observer(tokenizer, "chat", most).ids("9" * most),
        Observer(tokenizer, "chat", most).ids("9" * (most + 1)),
    )
    assert len(short) == len(cut) == most + 2 and tokenizer.decode(cut).endswith(NOTE + "<assistant>")
    assert NOTE not in tokenizer.decode(short)


def test_words_that_no_token_is_are_no_control_tokens_once_they_are_cut():
    """They are read as <unk>, which a text may not spell: what is cut is read back from ids."""
    words = harbor.build_tokenizer()
    observer = Observer(words, "chat", 12)
    text, _ = observer.short("the harbor zyx is zyx open " * 9, 12)
    assert not observer.spells(text) and text.startswith("the harbor") and text.endswith(NOTE)
    assert words.decode(observer.ids("the harbor zyx is zyx open " * 9)).startswith("<user>")


def test_ten_megabytes_are_cut_at_once(tokenizer):
    ids = Observer(tokenizer, "chat", 24).ids([TOOL | {"content": "9" * 10_000_000}] * 3)
    assert len(ids) <= 24 + 3 * (1 + len(NOTE)) + 1


def test_no_observation_is_refused(tokenizer):
    for wrong in (None, [], [{"role": "tool"}], [{"role": "tool", "content": 3}]):
        with pytest.raises(TypeError, match="not done"):
            Observer(tokenizer, "chat", 24).ids(wrong)
    with pytest.raises(TypeError, match="not done"):
        Observer(tokenizer, "plain", 24).ids("")
