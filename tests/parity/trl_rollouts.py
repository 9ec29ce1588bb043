"""TRL's losses on rollouts, scores and logits, called for trl_losses.py: GRPO's family, RLOO, rewards, distillation.

And the advantages that GRPOTrainer makes of several rewards. Left out, since TRL has them only inside a training loop:
PPO's policy loss (here by GRPOTrainer, which takes advantages per token) and value loss, and online DPO. Left out,
since no loss here is their counterpart: GRPOTrainer's masks of tokens and replies, its importance weights, and A2PO.
"""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import torch
from trl_stand_ins import B, StandIn, T, bare, one

CLIP = dict(clip_low=0.2, clip_high=0.28)  # unequal, and token ratios leave them on both sides
NARROW = dict(clip_low=0.05, clip_high=0.08)  # for the ratio of whole replies, which stays closer to 1
WIDE = dict(clip_low=0.4, clip_high=0.3)  # of log-ratios
WEIGHTED = {"estimator": "k3"}
K3 = WEIGHTED | {"importance_weighted": False}
METRICS = {  # TRL's name: ours, which may be two
    "entropy": ["policy/entropy_avg"],
    "clip_ratio/region_mean": ["clip_ratio/region_mean", "policy/clipfrac_avg"],
    **{name: [name] for name in ("clip_ratio/low_mean", "clip_ratio/high_mean", "cispo_clip_ratio", "kl")},
    **{name: [name] for name in ("accuracy", "margin", "mean_reward", "vespo/phi_seq_mean")},
}


def inputs(rng):
    """{record: {field: array}}. Position 0 is a prompt; advantages have both signs, and so do the clipped ratios."""

    def completion(stop):
        return (np.arange(T) >= 1) & (np.arange(T) < stop)

    def rollout(stop, advantage):
        old_logp = -0.05 - rng.exponential(size=(B, T))
        logp = old_logp + rng.normal(scale=0.7, size=(B, T))
        floats = {
            "old_logp": old_logp,
            "logp": logp,
            "ref_logp": logp + rng.normal(scale=0.5, size=(B, T)),
            "entropy": rng.exponential(size=(B, T)),
            "advantage": np.broadcast_to(advantage, (B, T)),
        }
        return {name: array.astype(np.float32) for name, array in floats.items()} | {"mask": completion(stop)}

    def per_reply():
        return rng.normal(size=(B, 1))

    stop = rng.integers(2, T + 1, (B, 1))
    logits = rng.normal(scale=1.5, size=(2, B, T, 5)).astype(np.float32)
    scores = rng.normal(size=(3, B)).astype(np.float32)
    return {
        "replies": rollout(stop, per_reply()),
        "tokens": rollout(rng.integers(4, T + 1, (B, 1)), rng.normal(size=(B, T))),
        "level": rollout(np.full((B, 1), T), per_reply()),  # equally long replies
        "single": rollout(np.full((B, 1), 2), per_reply()),  # replies of one token
        "scored": {"chosen": scores[0], "rejected": scores[1], "margin": np.abs(scores[2]), "mask": np.ones(B, bool)},
        "distill": {"logits": logits[0], "teacher_logits": logits[1], "mask": completion(stop)},
        "masked": rollout(np.where(np.arange(B)[:, None] == 2, 1, stop), per_reply()),  # row 2 has no action token
        "rewards": {"values": rng.normal(size=(3, B)).astype(np.float32)},  # of three kinds
    }


def logged(trainer, loss):
    """A loss, with what TRL logged next to it under our names."""
    theirs = trainer._metrics["train"]
    return loss, {ours: theirs[name][-1] for name, names in METRICS.items() if name in theirs for ours in names}


def grpo(
    x, loss_type, *, trainer=None, level="token", clip_low=0.2, clip_high=0.2, beta=0.0, delta=None, max_tokens=0,
    entropy=0.0, per_token=False, on_policy=False, corrected=False, outputs=3,
):  # fmt: skip
    from trl import GRPOTrainer

    args = SimpleNamespace(
        delta=delta, use_bias_correction_kl=corrected, steps_per_generation=1, sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
    )  # fmt: skip
    made = bare(
        trainer or GRPOTrainer, model=StandIn(None), args=args, loss_type=loss_type, importance_sampling_level=level,
        epsilon_low=clip_low, epsilon_high=clip_high, beta=beta, max_completion_length=max_tokens, use_vllm=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=entropy != 0.0, entropy_coef=entropy, use_adaptive_entropy=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (x["logp"], x["entropy"], None)[:outputs],
    )  # fmt: skip
    made.accelerator.sync_gradients = True
    batch = rollout_batch(x) | {
        "old_per_token_logps": None if on_policy else x["old_logp"],
        "ref_per_token_logps": x["ref_logp"],
        "advantages": x["advantage"] if per_token else x["advantage"][:, 0],
        "num_items_in_batch": x["mask"].sum(),
    }
    return logged(made, made._compute_loss(made.model, batch))


def rollout_batch(x):
    """Prompts of no token, and completions of which the mask is all that the loss reads."""
    none, tokens = torch.zeros((B, 0), dtype=torch.long), torch.zeros((B, T), dtype=torch.long)
    return {
        "prompt_ids": none, "prompt_mask": none, "completion_ids": tokens, "completion_mask": x["mask"].long(),
    }  # fmt: skip


def gspo_token(x, **settings):
    from trl.experimental.gspo_token import GRPOTrainer

    return grpo(x, "grpo", trainer=GRPOTrainer, level="sequence_token", outputs=2, **settings)


def gmpo(x, **settings):
    from trl.experimental.gmpo import GMPOTrainer

    return grpo(x, None, trainer=GMPOTrainer, **settings)


def advantages(values, *, aggregation, weights, group):
    """GRPOTrainer's advantages of rewards [K B]: the whole of its method, around a sampler that wrote one token."""
    from trl import GRPOTrainer

    args = SimpleNamespace(
        per_device_train_batch_size=B, steps_per_generation=1, gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
    )  # fmt: skip
    ones, names = [[1]] * B, [str(k) for k in range(len(values))]
    made = bare(
        GRPOTrainer, model=StandIn(None), args=args, environment_factories=None, environments=None, tools=None,
        pad_to_multiple_of=None, mask_truncated_completions=False, num_iterations=1, use_vllm=False, beta=0.0,
        num_generations=group, multi_objective_aggregation=aggregation, scale_rewards="group", reward_funcs=names,
        reward_func_names=names, reward_weights=torch.tensor(weights), _is_vlm=False, _pending_extra_logs={},
        _pending_metrics={}, _tokenizer=SimpleNamespace(pad_token_id=0), log_multimodal=False,
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _generate=lambda prompts: (ones, ones, None, [""] * B, None, {}, None, None),
        _calculate_rewards=lambda *_: torch.tensor(values.T),
    )  # fmt: skip
    return made._generate_and_score_completions([{"prompt": ""}] * B)["advantages"].numpy()


def rloo(x):
    """At the sampling policy."""
    from trl import RLOOTrainer

    made = bare(
        RLOOTrainer, model=StandIn(None), epsilon_low=0.2, epsilon_high=0.2,
        _get_per_token_logps_and_entropies=lambda *_, **__: (x["logp"], x["entropy"], None),
    )  # fmt: skip
    old_logps = (x["logp"].detach() * x["mask"]).sum(1)
    batch = rollout_batch(x) | {"old_logps": old_logps, "advantages": x["advantage"][:, 0]}
    return made._compute_loss(made.model, batch)


def nash_md(x, *, tau):
    from trl.experimental.nash_md.nash_md_trainer import NashMDTrainer

    logp, ref_logp = (torch.where(x["mask"], x[name], 0.0) for name in ("logp", "ref_logp"))
    return bare(NashMDTrainer, _beta=tau)._compute_losses(logp, ref_logp, x["advantage"][:, 0] + 0.5)[0]


def reward(x, *, centering=None, margin=False):
    from trl import RewardTrainer

    logits = torch.cat([x["chosen"], x["rejected"]])[:, None]
    model = StandIn(lambda **_: SimpleNamespace(logits=logits))
    made = bare(RewardTrainer, model=model, args=SimpleNamespace(center_rewards_coefficient=centering))
    batch = {"attention_mask": torch.ones((2 * B, T))} | ({"margin": x["margin"]} if margin else {})
    return logged(made, made.compute_loss(model, batch))


def jsd(x, *, beta, temperature=1.0):
    from trl.experimental.gkd import GKDTrainer

    labels = torch.where(x["mask"], 0, -100)
    return GKDTrainer.generalized_jsd_loss(
        x["logits"], x["teacher_logits"], labels=labels, beta=beta, temperature=temperature
    )


# case: (record, TRL's call, the terms of this package that equal it)
CURRENT = {
    "grpo": ("replies", lambda x: grpo(x, "grpo", **CLIP), one("grpo", **CLIP)),
    "grpo_kl": (  # TRL's KL is inside the sequence mean: ours for replies of one length
        "level", lambda x: grpo(x, "grpo", beta=0.3, **CLIP), [(1.0, "grpo", CLIP), (0.3, "kl", K3)],
    ),
    "dapo_kl": (
        "replies", lambda x: grpo(x, "dapo", beta=0.3, **CLIP), [(1.0, "dapo", CLIP), (0.3, "kl", K3)],
    ),
    "dapo_kl_corrected": (  # TRL differentiates the weight as well, and comes to the same
        "replies", lambda x: grpo(x, "dapo", beta=0.3, corrected=True, **CLIP),
        [(1.0, "dapo", CLIP), (0.3, "kl", WEIGHTED)],
    ),
    "bnpo_entropy": (
        "replies", lambda x: grpo(x, "bnpo", entropy=0.2, **CLIP), [(1.0, "dapo", CLIP), (0.2, "entropy", {})],
    ),
    "ppo_clip": (
        "tokens", lambda x: grpo(x, "bnpo", per_token=True, **CLIP), one("ppo_clip", clip=0.2, clip_higher=0.08),
    ),
    "delta": (
        "tokens", lambda x: grpo(x, "bnpo", per_token=True, delta=1.4, **CLIP),
        one("ppo_dual_clip", max_ratio=1.4, **CLIP),
    ),
    "dr_grpo": (
        "replies", lambda x: grpo(x, "dr_grpo", max_tokens=10, **CLIP), one("dr_grpo", max_tokens=10.0, **CLIP),
    ),
    "dr_grpo_kl": (  # TRL divides the KL by max_tokens too, where ours is a mean over the T - 1 tokens
        "level", lambda x: grpo(x, "dr_grpo", max_tokens=10, beta=0.3, **CLIP),
        [(1.0, "dr_grpo", {"max_tokens": 10.0, **CLIP}), (0.3 * (T - 1) / 10, "kl", K3)],
    ),
    "cispo_kl": (
        "replies", lambda x: grpo(x, "cispo", clip_high=1.3, beta=0.3),
        [(1.0, "cispo", {"max_ratio": 1.3}), (0.3, "kl", K3)],
    ),
    "sapo": ("replies", lambda x: grpo(x, "sapo"), one("sapo", tau_pos=1.0, tau_neg=1.05)),
    "gspo": ("replies", lambda x: grpo(x, "grpo", level="sequence", **NARROW), one("gspo", **NARROW)),
    "gspo_as_token": (  # one advantage per reply: GSPO-token is GSPO, but counts clips by token
        "replies", lambda x: grpo(x, "grpo", level="sequence", **NARROW)[0], one("gspo_token", **NARROW),
    ),
    **{  # a row without action tokens is absent here, and counts in TRL's means over rows
        f"{name}_masked": ("masked", call, [((B - 1) / B, name, args)])
        for name, call, args in (
            ("grpo", lambda x: grpo(x, "grpo", **CLIP)[0], CLIP),
            ("dr_grpo", lambda x: grpo(x, "dr_grpo", max_tokens=10, **CLIP)[0], {"max_tokens": 10.0, **CLIP}),
            ("sapo", lambda x: grpo(x, "sapo")[0], {}),
            ("gspo", lambda x: grpo(x, "grpo", level="sequence", **NARROW)[0], NARROW),
            ("luspo", lambda x: grpo(x, "luspo", level="sequence", **NARROW)[0], NARROW),
            ("gmpo", lambda x: gmpo(x, **WIDE)[0], WIDE),
        )
    },
    "luspo": ("replies", lambda x: grpo(x, "luspo", level="sequence", **NARROW), one("luspo", **NARROW)),
    "gmpo": ("replies", lambda x: gmpo(x, **WIDE), one("gmpo", **WIDE)),
    "vespo": ("replies", lambda x: grpo(x, "vespo"), one("vespo")),
    "vespo_masked": ("masked", lambda x: grpo(x, "vespo")[0], one("vespo")),
    "reinforce": (  # at ratio 1 no bound holds, and CISPO is REINFORCE
        "tokens", lambda x: grpo(x, "cispo", clip_high=5.0, per_token=True, on_policy=True), one("reinforce"),
    ),
    "rloo": ("replies", rloo, one("reinforce", aggregation="sequence_sum")),
    "reward": ("scored", reward, one("bradley_terry")),
    "reward_centered": ("scored", lambda x: reward(x, centering=0.2), one("bradley_terry", centering=0.2)),
    "reward_margin": (
        "scored", lambda x: reward(x, centering=0.2, margin=True), one("bradley_terry_margin", centering=0.2),
    ),
    "gkd": ("distill", lambda x: jsd(x, beta=0.3), one("gkd", beta=0.3)),
    "gkd_warm": (  # Hinton's factor temperature^2 is ours alone, here and below
        "distill", lambda x: jsd(x, beta=0.3, temperature=2.0), [(0.25, "gkd", {"beta": 0.3, "temperature": 2.0})],
    ),
    "gkd_0": ("distill", lambda x: jsd(x, beta=0, temperature=2.0), [(0.25, "forward_kl", {"temperature": 2.0})]),
    "gkd_1": ("distill", lambda x: jsd(x, beta=1, temperature=2.0), [(0.25, "reverse_kl", {"temperature": 2.0})]),
}  # fmt: skip
RETIRED = {
    "gspo_token": ("replies", lambda x: gspo_token(x, **NARROW), one("gspo_token", **NARROW)),
    "nash_md_score": ("replies", lambda x: nash_md(x, tau=0.0), one("nash_md", tau=0.0)),
    "nash_md": ("single", lambda x: nash_md(x, tau=0.3), one("nash_md", tau=0.3)),
}
# Advantages of the record "rewards": {case: settings of TRL's}
ADVANTAGES = {
    "gdpo": dict(aggregation="normalize_then_sum", weights=[1.0, 0.5, -0.3], group=3),
    "grpo_sum": dict(aggregation="sum_then_normalize", weights=[1.0, 0.5, -0.3], group=3),
}
# The values are other functions with the same slope: the mean of A and not of A log pi, a held log-ratio times log pi
# where ours is half a square, and a geometric mean of no ratio, which is 1 and weighs the advantage of row 2.
GRADIENT_ONLY = ("rloo", "nash_md", "gmpo_masked")
