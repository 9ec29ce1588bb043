"""Stages whose texts are packed: the same steps on the same rows, over eight devices, as those of padded ones."""

import pytest
from stage_runs import metrics, read, tiny

from alignax.stages import offline, probe, reward, sft


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
}


@pytest.mark.parametrize("step", CASES)
def test_a_packed_run_is_the_padded_one(run, tmp_path, step):
    stage, packed = CASES[step]
    plain = stage.run(config(run, step), tmp_path / "off")
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
