"""SFT on dialogues, end to end: what `train_on` names is learnt, and a sampler stops where training ended turns."""

import numpy as np
import pytest
from errors import refuses
from stage_runs import ROOT, metrics, read, write_rows

from alignax.config import ConfigError
from alignax.main import load_config
from alignax.stages import playground, sft
from alignax.stages.preview import preview
from alignax.worlds.tokenizer import build_tokenizer

DIALOGUES = [
    {
        "prompt": [
            {"role": "user", "content": f"{name} asks : {thing} ."},
            {"role": "assistant", "content": f"hello {name} ."},
            {"role": "user", "content": "cake ."},
        ],
        "completion": [{"role": "assistant", "content": "use a knife ."}],
    }
    for name in ("mara", "luis", "greta", "viktor")
    for thing in ("tea", "music", "juice", "cider")
]
BAD = [DIALOGUES[0] | {"completion": " ", "prompt": f"tea {letter}"} for letter in "abcdefgh"]


def config(path, **values):
    c = load_config(f"{ROOT / 'tests/stages/text_sft.py'}:{path}", [])
    c.template, c.total_steps, c.save_every_steps, c.max_length = "chat", 2, 2, 48
    for name, value in values.items():
        c[name] = value
    return c


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("chat") / "dialogues.jsonl", DIALOGUES + BAD)


def ending_turns_by_itself():
    """The harbour's tokenizer, whose turns end with a token that is not its end of sequence."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<end>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("' ' + eos_token", "' <end>'")
    return tokenizer


def test_dialogues_are_learnt_as_train_on_says(rows, tmp_path):
    prints, masked = {}, set()
    for train_on in ("completion", "assistant", "all"):
        folder = sft.run(config(rows, train_on=train_on), tmp_path / train_on)
        first, second = metrics(folder)
        assert np.isfinite(first["loss"]) and first["grad_norm"] > 0 and first["loss"] != second["loss"]
        data = read(folder / "manifest.json")["data"]
        prints[train_on] = data["fingerprint"]
        (section,) = preview(config(rows, train_on=train_on), rows=1)
        masked.add(dict(section["facts"])["tokens in the mask"])
        for split, counts in data["counts"].items():  # what the preview says is what the stage does
            told = f"{counts['rows']} rows, kept {counts['kept']}, dropped {counts['dropped_empty_reply']} empty_reply"
            assert section["counts"][split] == told
    assert len(set(prints.values())) == len(masked) == 3  # the same tokens, other masks


def test_the_sampler_stops_where_training_ended_turns(rows, tmp_path, monkeypatch):
    c = config(rows, train_on="assistant", tokenizer=f"{__name__}:ending_turns_by_itself")
    folder = sft.run(c, tmp_path / "sft")
    seen, make = [], playground.sampler

    def record(*args):
        seen.append(make(*args))
        return seen[0]

    monkeypatch.setattr(playground, "sampler", record)
    playground.complete(folder, ["tea ."], max_new_tokens=2)
    tokenizer = ending_turns_by_itself()
    assert list(seen[0].ends) == sorted(tokenizer.convert_tokens_to_ids(["<eos>", "<end>"]))


@pytest.mark.parametrize(
    "values, key, word",
    [
        ({"train_on": "reply"}, "config.train_on = 'reply'", "'completion', 'assistant', 'all'"),
        ({"train_on": "assistant", "template": "plain"}, "config.train_on = 'assistant'", "'plain'"),
    ],
)
def test_what_train_on_may_be(values, key, word, rows, tmp_path):
    with refuses(ConfigError, key, word):
        sft.run(config(rows, **values), tmp_path / "sft")
