"""Stages whose texts are packed: the same steps on the same rows, over eight devices, as those of padded ones."""

import numpy as np
import pytest
from stage_runs import metrics, read, tiny, write_rows

from alignax.stages import fitting, folder, offline, probe, reward, sft
from tests.marks import quick


def config(run, step, **values):
    c = tiny()[step]
    if step != "sft":
        c.init_from, c.data.path = str(run / "sft"), str(run / "collect")
    if "probe" in c:
        c.probe = probe.get_config()
    c.total_steps, c.eval_every_steps, c.save_every_steps = 2, 0, 2
    for name, value in values.items():
        c[name] = value
    return c


CASES = {
    "sft": (sft, dict(packing="packed")),
    "reward": (reward, dict(packing="shared", microbatches=2)),
    "dpo": (offline, dict(packing="shared", reference="cached")),
    "kto": (offline, dict(packing="bucketed", reference="cached", loss="kto", loss_args={})),
}
SAME = ("loss", "loss_args")  # settings of a case that its padded run has too


@pytest.mark.parametrize("step", quick([*CASES], "dpo"))
def test_a_packed_run_is_the_padded_one(run, tmp_path, step):
    stage, packed = CASES[step]
    own_loss, step = {k: v for k, v in packed.items() if k in SAME}, "dpo" if step == "kto" else step
    plain = stage.run(config(run, step, **own_loss), tmp_path / "off")
    other = stage.run(config(run, step, **packed), tmp_path / "on")
    told = [read(folder / "manifest.json") for folder in (plain, other)]
    assert told[0]["data"] == told[1]["data"]  # the rows, their order and their identity are the same
    # at the first step all margins are 0 but for rounding, whose sign is what rewards/accuracies counts
    left_out = ("split", "rewards/accuracies")
    own = lambda row: {k: x for k, x in row.items() if k not in left_out and k[:5] != "time/"}  # noqa: E731
    for one, two in zip(metrics(plain), metrics(other), strict=True):
        assert own(two) == pytest.approx(own(one), rel=2e-3, abs=1e-5)
    # the report of the whole held-out set, filled up to whole batches at its end
    same = [k for k, x in told[0]["metrics"].items() if isinstance(x, float) and ("loss" in k or "nll" in k)]
    assert same and {k: told[1]["metrics"][k] for k in same} == pytest.approx(
        {k: told[0]["metrics"][k] for k in same}, rel=1e-3
    )


@pytest.mark.slow  # stopped runs of every stage: test_kill_resume
def test_a_packed_run_that_was_stopped_goes_on_bit_for_bit(run, tmp_path, monkeypatch):
    settings = dict(packing="shared", total_steps=3, save_every_steps=1)
    offline.run(config(run, "dpo", **settings), tmp_path / "whole")
    fit = fitting.fit
    monkeypatch.setattr(fitting, "fit", lambda *args, total_steps, **options: fit(*args, total_steps=1, **options))
    monkeypatch.setattr(folder, "finish", _killed)
    with pytest.raises(KeyboardInterrupt):
        offline.run(config(run, "dpo", **settings), tmp_path / "parted")
    monkeypatch.undo()
    offline.run(config(run, "dpo", **settings), tmp_path / "parted")
    told = [read(tmp_path / name / "manifest.json")["content_hash"] for name in ("whole", "parted")]
    assert told[0] == told[1] and [row["step"] for row in metrics(tmp_path / "parted")] == [1, 2, 3]


def _killed(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_verdicts_on_steps_are_read_from_batches_of_several_lengths(run, tmp_path):
    """The report joins what was found in all held-out batches."""
    rng = np.random.default_rng(0)
    words = ["mara", "asks", "jar", "open", "the", "."]
    text = lambda n: " ".join(rng.choice(words, n))  # noqa: E731
    rows = [
        {"prompt": text(3), "steps": [text(int(n)), " " + text(2)], "verdicts": [True, bool(n % 2)]}
        for n in rng.integers(2, 30, 80)
    ]
    values = dict(loss="process", loss_args={}, packing="bucketed", source="jsonl")
    c = config(run, "reward", **values)
    c.data = dict(path=str(write_rows(tmp_path / "steps.jsonl", rows)), heldout_percent=50.0)
    c.batch_size, c.lora_args = 8, {"rank": 2}
    metrics_of = read(reward.run(c, tmp_path / "reward") / "manifest.json")["metrics"]
    assert all(np.isfinite(x) for x in metrics_of.values() if isinstance(x, float))
