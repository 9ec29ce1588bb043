"""alignax's part of benchmarks/iterations.py: the iteration of the stage `online`, as one program."""

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import timed

from alignax import __version__
from alignax.config import plain
from alignax.data.arrays import pad
from alignax.sampling.sampler import Sampler
from alignax.stages import online
from alignax.train import online as loop
from alignax.train import waiting
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.state import OnlineState
from benchmarks.policies import load

METHODS = {
    "grpo": {"advantage": "group_baseline", "critic_init": "none", "kl_placement": "loss", "kl_estimator": "k3"},
    "ppo": {"critic_init": "policy"},
}
METHODS["grpo-partial"] = METHODS["grpo"] | {"partial_rollouts": 1}
BUCKETS = 8  # programs for short replies


def brief(row: dict, completion: str, *, finished: bool) -> float:
    """Names a reward for the plan; the benchmark's own is on the device."""
    del row, completion, finished
    return 0.0


def main() -> None:
    """The command line."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, loaded = load(asked["folder"])
    policy = jax.tree.map(jnp.asarray, jax.device_get(loaded))  # on no mesh, as a step's result: else it compiles twice
    c = plain(online.get_config()) | METHODS[asked["method"]]
    c |= {"init_from": "policy", "reward": brief, "data": {"path": "prompts.jsonl"}}  # names: nothing is read here
    c |= {"max_new_tokens": asked["cap"], "batch_size": len(asked["prompts"]), "total_steps": asked["steps"]}
    c |= {"samples_per_prompt": asked["samples"], "kl_coef": 0.04, "optimizer_args": {"learning_rate": 1e-6}}
    micro = len(asked["prompts"]) if asked["ends"] else asked["micro"]  # each is cut to its replies
    c |= {"update_args": {"epochs": 1, "microbatches": micro}, "share_prompts": True}
    c |= {"length_buckets": BUCKETS if asked["ends"] else 1}
    algorithm = online.plan(c).algorithm
    critic = None
    if algorithm.value:
        critic = jax.tree.map(lambda x: x + 0, policy) | {"scalar": model.init_scalar(jax.random.key(1))}
    end = asked["end"] if asked["ends"] else model.config.padded_vocab  # which no token is
    actors = Actors(Sampler(model, asked["cap"], (end,), 0), model if critic else None)
    even = lambda frozen, r: {"reward": jnp.mean(r.tokens % 2 == 0, axis=1, where=r.mask)}  # noqa: E731
    frozen = {"reference": jax.tree.map(lambda x: x + 0, policy)}
    step = jax.jit(lambda s, f, b: loop.iteration(algorithm, actors, even, s, f, b), donate_argnums=0)
    tokens, valid = pad(asked["prompts"], max(map(len, asked["prompts"])), 0, left=True)
    batch = {"tokens": jnp.asarray(tokens), "valid": jnp.asarray(valid), "row": jnp.arange(len(tokens))}
    state, seconds, lengths = loop.start(algorithm, policy, critic, 0), [], []
    if algorithm.carried:
        state = state.replace(pending=(jax.tree.map(jnp.copy, waiting.begun(algorithm, state, batch, 0)),))
    for _ in range(asked["steps"]):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, frozen, batch))
        seconds.append(time.perf_counter() - start)
        lengths.append(float(metrics["completions/mean_length"]))
        print(seconds[-1], lengths[-1], float(metrics["objective/scores"]), flush=True)
    peak = timed.peak_mb()
    made = {"parts": micro, "seconds": seconds, "lengths": lengths, "peak_mb": peak, "version": __version__}
    made |= {"compiles": step._cache_size()}
    if not algorithm.carried:  # whose sampling depends on what waits
        made["sampling_s"] = sampling(algorithm, actors, frozen, state, batch)
        made["rest_s"] = statistics.median(seconds[1:]) - made["sampling_s"]
    Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")


def sampling(algorithm: Algorithm, actors: Actors, frozen: dict, state: OnlineState, batch: dict) -> float:
    """Seconds of the sampler alone, a program of its own: the median of three rollouts after the one that compiles."""
    key = jax.random.wrap_key_data(state.key)
    draw = jax.jit(lambda params, step: loop.produce(algorithm, actors, frozen, params, batch, key, step).mask.sum())
    seconds = []
    for number in range(4):
        start = time.perf_counter()
        jax.block_until_ready(draw(state.policy.params, jnp.int32(number)))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
