"""Kills a pipeline with SIGKILL at random moments, runs it again, and compares with the run that nobody killed.

Command: python benchmarks/kill_resume.py --points 20 --seed 0
One point is about 20 s on 2 CPU cores, the uninterrupted run about 60 s. Compared bit for bit: summary.json but for its
wall time, every manifest (with the hashes of parameters, pairs and samples), metrics.jsonl but for its times, and the
last train state of every stage (optimizers, critic, KL coefficient, running moments, key). Exit status 1 if any differ.

This file is also the config of that pipeline, the quickstart made tiny: alignax run --config=benchmarks/kill_resume.py
"""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
KINDS = ("sft", "ppo", "save", "any")  # where the kills fall, in turn
TRIES = 5  # of one point, where the run is over before the moment has come


def get_config(size="whole"):
    """The quickstart made tiny; with size "short" only SFT and PPO, rewarded by the gold program; "pending" is the same
    with rollouts in flight, learnt from two steps after they were sampled, "carried" with replies that go on in the
    next steps."""
    from configs import quickstart

    c = quickstart.get_config()
    c.sft.model_args = dict(dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64)
    c.sft.data.count, c.sft.data.heldout, c.sft.batch_size = 512, 16, 32
    c.sft.optimizer_args = dict(learning_rate=5e-3)
    c.collect.data.count = 64
    for name in ("reward", "ppo", "dpo"):
        c[name].batch_size, c[name].total_steps, c[name].eval_every_steps, c[name].save_every_steps = 16, 4, 2, 1
    c.sft.total_steps, c.sft.eval_every_steps, c.sft.save_every_steps = 40, 20, 4
    c.ppo.data.count, c.ppo.total_steps = 64, 6
    c.ppo.kl_controller, c.ppo.kl_controller_args = "adaptive_kl", dict(target=0.01, horizon=100.0)
    c.ppo.update_args = dict(epochs=2, minibatches=2)
    for probe in (c.ppo.probe, c.dpo.probe, c.evaluate.probe):
        probe.data.count = probe.batch_size = 16
        probe.max_new_tokens = 24
    c.collect.max_new_tokens = c.ppo.max_new_tokens = 24
    c.collect.batch_size = 32
    if size != "whole":
        c.steps = ("sft", "ppo")
        c.ppo.reward_from, c.ppo.reward, c.ppo.critic_init = "", "alignax.worlds.gold:gold", "policy"
        del c.collect, c.reward, c.dpo, c.evaluate
    if size == "pending":
        c.ppo.steps_off_policy, c.ppo.correction = 2, "truncated_weights"
    if size == "carried":
        c.ppo.partial_rollouts, c.ppo.correction = 1, "truncated_weights"
    return c


def launch(workdir: Path, size: str, cache: Path) -> subprocess.Popen:
    """The pipeline as a process of its own; the cache of compiled programs changes no bit, only the time."""
    command = [sys.executable, "-m", "alignax.main", "run", f"--config={HERE}:{size}", f"--workdir={workdir}"]
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=log, stderr=log)


def finish(workdir: Path, size: str, cache: Path) -> float:
    """Runs to the end; returns the seconds that it took."""
    begun = time.perf_counter()
    status = launch(workdir, size, cache).wait()
    if status:
        raise SystemExit(f"the run in {workdir} ended with status {status}:\n{tail(workdir)}")
    return time.perf_counter() - begun


def tail(workdir: Path) -> str:
    """The end of a run's output."""
    return workdir.with_suffix(".log").read_text()[-3000:]


def moment(kind: str, rng: random.Random, workdir: Path, size: str, seconds: float):
    """A function that says whether the moment to kill has come."""
    if kind == "any":
        end = time.perf_counter() + rng.uniform(0.3, 1.0) * seconds
        return lambda: time.perf_counter() > end
    if kind == "save":
        stage = rng.choice(["sft", "ppo"])
        number, seen = rng.randint(1, 5), set()

        def saving() -> bool:
            seen.update(path.name for path in (workdir / stage / "steps").glob("*.orbax-checkpoint-tmp"))
            return len(seen) >= number

        return saving
    step = rng.randint(0, {"sft": 39, "ppo": 5}[kind])
    return lambda: last_step(workdir / kind) >= step


def last_step(stage: Path) -> int:
    """The last logged step of a stage, -1 before the first row."""
    path = stage / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return json.loads(lines[-1])["step"] if lines else -1


def kill(workdir: Path, size: str, cache: Path, kind: str, rng: random.Random, seconds: float) -> bool:
    """Starts the run and kills it at a random moment of a kind. False if the run was over before."""
    process = launch(workdir, size, cache)
    due = moment(kind, rng, workdir, size, seconds)
    while process.poll() is None and not due():
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.004 if kind == "save" else 0.05))
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def where(workdir: Path) -> str:
    """The stage and step at which a killed run stopped, from what it left."""
    for stage in sorted(workdir.glob("*/started.json"), key=lambda path: path.stat().st_mtime):
        folder = stage.parent
        if not (folder / "manifest.json").is_file():
            half = any(folder.rglob("*.orbax-checkpoint-tmp"))
            return f"{folder.name} step {max(last_step(folder), 0)}{', in a save' if half else ''}"
    return "between stages" if any(workdir.glob("*/manifest.json")) else "before the first stage"


def facts(workdir: Path) -> dict:
    """Everything that has to be equal."""
    from alignax.checkpoint import content_hash, load_params
    from alignax.log import read_metrics

    logging.getLogger("absl").setLevel(logging.ERROR)  # the train states are read without Orbax's own manager
    summary = json.loads((workdir / "summary.json").read_text())
    found = {"summary": {name: value for name, value in summary.items() if name != "wall_seconds"}}
    for path in sorted(workdir.glob("*/manifest.json")):
        stage = path.parent
        found[f"{stage.name} manifest"] = json.loads(path.read_text())
        if (stage / "metrics.jsonl").is_file():
            rows = read_metrics(stage / "metrics.jsonl")
            found[f"{stage.name} metrics"] = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows]
            last = max((stage / "steps").iterdir(), key=lambda folder: int(folder.name))
            found[f"{stage.name} state"] = last.name, content_hash(load_params(last / "default"))
    return found


def compare(points: int, seed: int, size: str, folder: Path) -> int:
    """Prints a line per point; returns how many points differ."""
    cache, rng = folder / "cache", random.Random(seed)
    finish(folder / "whole", size, cache)
    expected = facts(folder / "whole")
    seconds = finish(folder / "again", size, cache)  # with every program compiled, as the runs below
    wrong = differences(expected, facts(folder / "again"))
    print(f"uninterrupted, twice: {verdict(wrong)} ({seconds:.0f} s)", flush=True)
    failed = int(bool(wrong))
    print("| point | aimed at | killed at | then |\n|--:|---|---|---|", flush=True)
    for point in range(points):
        kind = KINDS[point % len(KINDS)]
        for attempt in range(TRIES):
            workdir = folder / f"point-{point}-{attempt}"
            if kill(workdir, size, cache, kind, rng, seconds):
                break
        else:
            raise SystemExit(f"point {point}: {TRIES} runs were over before the moment ({kind}) had come")
        place = where(workdir)
        finish(workdir, size, cache)
        wrong = differences(expected, facts(workdir))
        failed += bool(wrong)
        print(f"| {point} | {kind} | {place} | {verdict(wrong)} |", flush=True)
    return failed


def differences(expected: dict, found: dict) -> list[str]:
    """The names of what differs."""
    return [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]


def verdict(wrong: list[str]) -> str:
    """For the table."""
    return f"DIFFERENT: {', '.join(wrong)}" if wrong else "equal"


def main() -> int:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--points", type=int, default=20)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--size", choices=("whole", "short", "pending", "carried"), default="whole")
    arguments.add_argument("--workdir", type=Path, help="folder to keep the runs in (default: a temporary one)")
    args = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        failed = compare(args.points, args.seed, args.size, args.workdir or Path(temporary))
    print(f"{args.points} points, {failed} differences")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
