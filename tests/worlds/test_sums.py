"""The world of sums: right answers, disjoint splits, and a call of a few tokens."""

import json

import pytest

from alignax.config import plain
from alignax.data.encode import demo_rows, encode_prompt
from alignax.envs import calls
from alignax.envs.calculator import Calculator
from alignax.envs.tools import Tools
from alignax.main import load_config
from alignax.rewards.answers import exact_answer
from alignax.stages.pipeline import planned
from alignax.worlds import sums


@pytest.fixture(scope="module")
def tokenizer():
    return sums.build_tokenizer()


def test_answers_are_right_and_splits_disjoint():
    drawn = {name: sums.prompts(split="train", count=500, world_split=name)[0] for name in sums.SPLITS}
    for rows in drawn.values():
        for row in rows:
            a, b = map(int, row["prompt"].split("*"))
            assert int(row["answer"]) == a * b
            assert (
                exact_answer(row, row["answer"], finished=True)
                == 1
                == exact_answer(row, f"it is {a * b}", finished=True)
            )
    factors = [{tuple(sorted(row["prompt"].split("*"))) for row in rows} for rows in drawn.values()]
    assert all(not one & two for i, one in enumerate(factors) for two in factors[:i])
    assert sums.prompts(split="train", count=9, seed=1)[0] != sums.prompts(split="train", count=9)[0]


def test_prompts_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="ask for fewer"):
        sums.prompts(split="train", count=10**6)
    with pytest.raises(ValueError, match="sft, online, eval"):
        sums.prompts(split="train", count=1, world_split="ood")
    with pytest.raises(ValueError, match="world_split"):
        sums.prompts(split="heldout", count=1)


def test_demonstrations_call_now_and_then(tokenizer):
    rows, _ = sums.demonstrations(split="train", count=2000)
    shown = [row for row in rows if "tools" in row]
    called = [row for row in shown if len(row["completion"]) == 3]
    assert 0.45 < len(shown) / 2000 < 0.55 and 0.25 < len(called) / len(shown) < 0.35
    assert all(len(row["completion"]) == 1 for row in rows if "tools" not in row)
    assert all(row["completion"][-1]["content"] == row["answer"] for row in rows)
    arrays, counts = demo_rows(rows[:64], tokenizer, template="chat", max_length=48, train_on="assistant")
    assert counts["kept"] == 64
    i = next(i for i, row in enumerate(rows[:64]) if row in called)
    text = tokenizer.decode(arrays["tokens"][i][arrays["mask"][i]])
    assert text.count("<eos>") == 2 and "<tool>" not in text  # what the tool says is not learnt
    (call,) = calls.parse(text, "hermes")
    assert call.arguments == {"expression": rows[i]["prompt"]}


def test_the_prompt_is_what_the_stage_shows(tokenizer):
    """Of the demonstration and of the calculator's own schema, token for token."""
    env = Tools(Calculator())
    ours, theirs = (encode_prompt(tokenizer, "37*84", "chat", tools=tools) for tools in ([sums.TOOL], env.tools))
    assert ours == theirs and tokenizer.decode(ours) == "<bos><tools>calculate<user>37*84<assistant>"


def test_a_call_is_a_few_tokens_and_reads_as_it_was_written(tokenizer):
    call = json.dumps({"name": "calculate", "arguments": {"expression": "37*84"}})
    ids = tokenizer(f"<tool_call>{call}</tool_call>", add_special_tokens=False)["input_ids"]
    assert (
        len(ids) == 9
        and tokenizer.unk_token_id not in ids
        and tokenizer.decode(ids) == f"<tool_call>{call}</tool_call>"
    )
    text = "Error: 'x' is no sum\n{~}"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_config_is_planned():
    config = load_config("configs/world/tools.py", ["--config.seed=3"])
    steps = planned(plain(config))
    assert list(steps) == list(config.steps)
    assert config.grpo_tool.env and not config.grpo.env and config.sft.data.seed == config.grpo.data.seed == 3
