"""The world of things: games that keep to the facts, and two policies that can read each other."""

from collections import Counter

import pytest

from alignax.config import plain
from alignax.data.encode import demo_rows, encode_prompt
from alignax.envs.questions import guesses
from alignax.main import load_config
from alignax.stages.pipeline import planned
from alignax.worlds import things


@pytest.fixture(scope="module")
def tokenizer():
    return things.build_tokenizer()


def test_things_differ_and_no_fact_names_one():
    assert len({frozenset(facts.split()) for facts in things.THINGS.values()}) == len(things.THINGS) == 32
    assert all(guesses(f"is it a {name} ?", name) for name in things.THINGS)
    assert not any(guesses(f"is it {fact} ?", name) for fact in things.FACTS for name in things.THINGS)


def test_games_keep_to_the_facts(tokenizer):
    rows, counts = things.games(split="train", count=500)
    assert counts["kept"] == len(rows) == 500
    won = 0
    for row in rows:
        asked = [turn["content"].split()[2:-1] for turn in row["completion"][::2]]
        said = [turn["content"] for turn in row["completion"][1::2]]
        assert len(asked) == len(said) + 1 <= things.TURNS and asked[-1][0] == "a"  # the last is a guess
        for words, answer in zip(asked, said):
            true = words[-1] == row["answer"] if words[0] == "a" else words[0] in row["facts"]
            assert answer == ("yes" if true else "no")
        won += asked[-1][-1] == row["answer"]
    assert 0.2 < won / 500 < 0.9  # a player without a plan
    arrays, counts = demo_rows(rows[:64], tokenizer, template="chat", max_length=96, train_on="assistant")
    assert counts["kept"] == 64 and not (arrays["tokens"] == tokenizer.unk_token_id).any()
    assert things.games(split="heldout", count=9, heldout=5)[0] == things.games(split="heldout", count=7, heldout=5)[0]


def test_answers_are_true(tokenizer):
    rows, _ = things.answers(split="train", count=500)
    for row in rows:
        name, _, asked = row["prompt"].partition(" : is it ")
        words = asked.split()[:-1]
        assert row["completion"] == ("yes" if words[-1] == name or words[0] in things.THINGS[name].split() else "no")
        assert len(encode_prompt(tokenizer, row["prompt"], "chat")) <= 16
    assert len({row["completion"] for row in rows}) == 2


def test_prompts_are_of_all_things():
    rows, _ = things.prompts(split="train", count=64)
    assert set(Counter(row["answer"] for row in rows).values()) == {2} and {row["prompt"] for row in rows} == {"guess"}
    with pytest.raises(ValueError, match="heldout"):
        things.prompts(split="heldout", count=1)


def test_the_config_is_planned_and_its_texts_fit(tokenizer):
    made = planned(plain(load_config("configs/world/questions.py", [])))
    p = made["grpo"]
    assert p.env.partner and made["played"].probe.env.partner
    assert len(encode_prompt(tokenizer, things.PROMPT, "chat")) <= p.max_prompt_length
    # a game of as many questions as there are, with the turns of the template between them
    longest = max(
        len(tokenizer.apply_chat_template([{"role": "user", "content": "guess"}, *row["completion"]])["input_ids"])
        for row in things.games(split="train", count=200)[0]
    )
    assert longest <= p.algorithm.max_new_tokens + p.max_prompt_length
