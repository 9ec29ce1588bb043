"""Rollouts from an outside engine, for the stage `online`: its weights, its replies, how far it is from the learner.

A producer like any other: `learn` knows nothing of it. The engine gets the policy's weights by a folder, replies over
HTTP, and what it replied is scored by the learner: their log-probabilities must agree where their weights do.
"""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignax import forward, host, lora, sharding
from alignax.bound import Bound, bound
from alignax.config import ConfigError, Reader
from alignax.interop.export import DTYPES, export
from alignax.ops.checks import Scalar
from alignax.ops.mismatch import mismatch
from alignax.sampling import reload
from alignax.sampling.endpoint import EngineError
from alignax.sampling.engine import Engine, checked, engine
from alignax.sampling.options import Options
from alignax.stages.folder import Stage, say
from alignax.stages.programs import Produce
from alignax.stages.roles import shared
from alignax.train import reading
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.moving import headless
from alignax.train.state import OnlineState
from alignax.types import Params, Rollout

MEAN = "sampling/sampling_logp_difference/mean"


def engine_of(r: Reader) -> Bound | None:
    """The engine of a config, to be called when it is needed; None where the policy is sampled here.

    Raises ConfigError for settings that cannot be, and for what an engine cannot give.
    """
    key = r.key("engine_args")
    if not r.engine:
        if r.engine_args:
            raise ConfigError(f"config.{key} is set, but config.{r.key('engine')} is empty: nothing reads it")
        return None
    r.require(r.opponent == "none", "opponent", "expected 'none' with an engine, which has the policy's weights alone")
    for name, off in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        r.require(
            getattr(r, name) == off, name, f"expected {off} with an engine, whose filter need not keep what ours keeps"
        )
    found = bound(engine, r.engine_args, key=r.key("engine"), args_key=key).given(url=r.engine)
    made: Engine = found()
    if made.dtype and made.dtype not in DTYPES:
        raise ConfigError(
            f"config.{key}.dtype = {made.dtype!r}: expected one of {', '.join(DTYPES)}, or '' for its own"
        )
    return found


def producer(stage: Stage, actors: Actors, frozen: dict, tokenizer: Any, mesh: Mesh) -> Produce:
    """Rollouts of the engine that the stage's plan names. Raises EngineError for one that does not fit."""
    plan = stage.plan
    algorithm, sampler = plan.algorithm, actors.sampler
    longest = plan.max_prompt_length + algorithm.max_new_tokens
    served = host.together(lambda: checked(plan.engine(), tokenizer, longest))
    fixed = {"capacity": sampler.capacity, "ends": sampler.ends, "pad": sampler.pad, "group": algorithm.group}
    fixed |= {"vocab_size": actors.policy.config.vocab_size, "options": Options(temperature=algorithm.temperature)}
    newer, judged = weights(stage, served, frozen), judge(algorithm, actors, frozen)
    compared: list[int] = []  # the steps at which the engine had the policy's weights

    def produce(state: OnlineState, prompts: dict) -> tuple[Rollout, dict]:
        step, begun = int(state.step), time.perf_counter()
        version = newer(state.policy.params, step)
        loaded = time.perf_counter()
        own = [host.own_rows(prompts[name]) for name in ("tokens", "valid")]
        found = host.together(lambda: served.reply(*own, **fixed))
        seconds = {"sampling/weights_s": loaded - begun, "sampling/engine_s": time.perf_counter() - loaded}
        marks = {"version": version, "source": 0}
        marks = {name: np.full(len(found.tokens), value, np.int32) for name, value in marks.items()}
        rollout = sharding.put_batch(found.replace(**marks), mesh)
        logp_BT, metrics = judged(state, rollout)
        if version == step and not compared:  # it says more than the difference alone
            check_temperature(served, algorithm.temperature, metrics, lambda: judged(state, rollout, 1.0)[1])
        if version == step:
            check_difference(served, float(metrics[MEAN]))
        if version == step and not compared:
            say(f"engine {served.endpoint.url}: {metrics[MEAN]:.2g} nats off the policy, in the mean over tokens")
            compared.append(step)
        if algorithm.correction:
            rollout = rollout.replace(old_logp=logp_BT, sampler_logp=rollout.old_logp)
        return rollout, metrics | seconds

    return produce


def weights(stage: Stage, served: Engine, frozen: dict) -> Callable[[Params, int], int]:
    """(policy, step) -> the step whose weights the engine has, which are the policy's own where they are due.

    At the first call too: nobody knows what an engine was started on, or has from a run that was interrupted.
    """
    if served.reload.function is reload.none:
        return lambda policy, step: 0
    folder = (Path(served.folder) / stage.workdir.name if served.folder else stage.workdir / "engine").resolve()
    has: dict[str, int] = {}
    gone = lambda step: shutil.rmtree(folder / f"step-{step}", ignore_errors=True)  # noqa: E731

    def newer(policy: Params, step: int) -> int:
        if not has or step - has["version"] >= served.every:
            out, params = folder / f"step-{step}", lora.merge(reading.whole(headless(policy), frozen, "policy"))
            host.in_first(lambda: gone(step))  # of a run that was interrupted
            export(stage.parents["policy"], out, dtype=served.dtype, params=params, untied=served.untied)
            host.in_first(lambda: served.reload(served.endpoint, str(out), timeout_s=served.timeout_s))
            host.in_first(lambda: gone(has["version"]) if has else None)
            has["version"] = step
        return has["version"]

    return newer


def judge(algorithm: Algorithm, actors: Actors, frozen: dict) -> Callable[..., tuple[jax.Array, dict]]:
    """(state, rollout[, temperature]) -> the learner's log-probabilities, and the metrics of their difference."""
    arrays, tree = shared({"base": frozen["base"]} if "base" in frozen else {})

    def judged(policy, arrays, rollout, temperature):
        of = partial(forward.token_statistics, actors.policy, reading.whole(policy, tree(arrays), "policy"))
        logp = lambda *given, **rows: of(*given, temperature=temperature, **rows).logp  # noqa: E731
        logp_BT = reading.by_length(algorithm, rollout, logp)
        return logp_BT, mismatch(logp_BT, rollout.old_logp, rollout.mask)

    program = jax.jit(judged)
    own = algorithm.temperature
    return lambda state, rollout, temperature=None: program(
        state.policy.params, arrays, rollout, jnp.float32(own if temperature is None else temperature)
    )


def check_temperature(served: Engine, temperature: Scalar, metrics: dict, untempered: Callable[[], dict]) -> None:
    """Raises EngineError where log-probabilities are those at temperature 1, whatever was sampled at."""
    # some rounding there is at any temperature; one that is left out makes far more
    if float(temperature) != 1.0 and float(untempered()[MEAN]) < float(metrics[MEAN]) / 4:
        raise EngineError(
            f"the engine {served.endpoint.url} gives log-probabilities at temperature 1, but samples at "
            f"{temperature:g}: expected those of the distribution that it samples from. Start vLLM with "
            "--logprobs-mode processed_logprobs (SGLang: without SGLANG_RETURN_ORIGINAL_LOGPROB)"
        )


def check_difference(served: Engine, off: float) -> None:
    """Raises EngineError where an engine with the policy's weights has not its log-probabilities."""
    if not off <= served.max_difference:
        raise EngineError(
            f"the engine {served.endpoint.url} is {off:.3g} nats off the policy's log-probabilities, in the mean over "
            f"tokens: expected at most {served.max_difference:g} (engine_args.max_difference) while it has the "
            "policy's weights. It serves others, or gives log-probabilities before temperature: start it on an export "
            "of this policy, let it reload (engine_args.reload), start vLLM with --logprobs-mode processed_logprobs, "
            "or allow for its precision"
        )
