"""Runs TRL's own loss code on random arrays and keeps values, gradients and metrics, for tests without TRL.

    pip install 'torch==2.13.0' 'trl==1.16.0' && python tests/parity/trl_losses.py current
    pip install 'torch==2.13.0' 'trl==1.5.1' requests joblib scikit-learn && python tests/parity/trl_losses.py retired

each in an environment of its own. The first writes tests/goldens/trl_current.npz; the second, for trainers that later
versions dropped (BCO, XPO, GSPO-token, Nash-MD), tests/goldens/trl_retired.npz. Nothing of TRL is written anew: a
trainer is made without its __init__, given the few attributes that its loss reads, and fed by a stand-in for the model
that hands out our log-probabilities. tests/losses/test_trl_goldens.py compares them with this package.

A case names the terms that equal TRL's loss: [(coefficient, loss of this package, arguments), ...]. Those on pairs and
on single replies are here, those on rollouts, scores and logits in trl_rollouts.py.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trl
import trl_rollouts
from trl_stand_ins import Accelerator, B, StandIn, T, bare, one

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
LEAVES = ("logp", "entropy", "chosen", "rejected", "logits")  # what a gradient is taken by, without mismatched/logp


def inputs():
    """{record: {field: array}}, from one seed. Position 0 is a prompt, so TRL's shift drops nothing that counts."""
    rng = np.random.default_rng(20241120)

    def side(stop=None):
        logp = (-0.05 - rng.exponential(size=(B, T))).astype(np.float32)
        stop = rng.integers(2, T + 1, (B, 1)) if stop is None else stop
        return {
            "logp": logp,
            "ref_logp": (logp + rng.normal(size=(B, T))).astype(np.float32),
            "collision": (-0.05 - rng.exponential(size=(B, T))).astype(np.float32),
            "mask": (np.arange(T) >= 1) & (np.arange(T) < stop),
        }

    def pair(chosen, rejected, **more):
        sides = {"chosen": chosen, "rejected": rejected}
        return {f"{name}/{key}": array for name, one in sides.items() for key, array in one.items()} | more

    reference_is_chosen = np.arange(B) % 3 == 1
    records = {
        "pair": pair(side(), side(), reference_is_chosen=reference_is_chosen),
        "equal": pair(side(np.full((B, 1), T)), side()),  # equally long chosen replies, a prompt of one token
        "unpaired": {
            **{f"side/{key}": array for key, array in side().items()},
            **{f"mismatched/{key}": array for key, array in side().items()},
            "desirable": np.arange(B) % 3 != 1,
        },
        **trl_rollouts.inputs(rng),  # drawn last
    }
    return records | {"balanced": records["unpaired"] | {"desirable": np.arange(B) % 2 == 0}}


def fused(logp, mask, log_sum_sq=None):
    """What TRL's fused head returns for all but the first position; zeros where labels are ignored."""
    zeros = torch.zeros_like(logp[:, 1:])
    per_token = torch.where(mask[:, 1:], logp[:, 1:], zeros)
    extra = {} if log_sum_sq is None else {"log_sum_sq_probs": log_sum_sq[:, 1:]}
    return SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=mask[:, 1:], **extra)


def stack(x, name):
    return torch.cat([x[f"chosen/{name}"], x[f"rejected/{name}"]])


def dpo(x, loss_type, *, beta, label_smoothing=0.0, divergence="reverse_kl", coef=0.5, ld_alpha=None, weighting=False):
    from trl import DPOTrainer

    logp, ref, mask, collision = (stack(x, name) for name in ("logp", "ref_logp", "mask", "collision"))
    model = StandIn(lambda **_: fused(logp, mask, collision))
    trainer = bare(
        DPOTrainer, model=model, ref_model=StandIn(lambda **_: fused(ref, mask)), precompute_ref_logps=False,
        loss_types=[loss_type], loss_weights=[1.0], beta=beta, label_smoothing=label_smoothing, ld_alpha=ld_alpha,
        f_divergence_type=divergence, f_alpha_divergence_coef=coef, use_weighting=weighting,
        args=SimpleNamespace(discopop_tau=0.3, gradient_checkpointing_kwargs=None, max_length=None),
    )  # fmt: skip
    tokens = torch.ones(mask.shape, dtype=torch.long)
    return trainer.compute_loss(model, {"input_ids": tokens, "attention_mask": tokens, "completion_mask": mask.long()})


def kto(x, loss_type, **settings):
    from trl import KTOTrainer

    def outputs(name):  # the mismatched replies are known by their tokens
        return lambda input_ids, **_: fused(
            *(x[f"{'mismatched' if input_ids[0, 0] else 'side'}/{key}"] for key in (name, "mask"))
        )

    zeros, ones = torch.zeros((B, T), dtype=torch.long), torch.ones((B, T), dtype=torch.long)
    batch = {
        "input_ids": zeros, "attention_mask": ones, "completion_mask": x["side/mask"].long(), "KL_input_ids": ones,
        "KL_attention_mask": ones, "KL_completion_mask": x["mismatched/mask"].long(), "label": x["desirable"],
    }  # fmt: skip
    model = StandIn(outputs("logp"))
    trainer = bare(
        KTOTrainer, model=model, ref_model=StandIn(outputs("ref_logp")), precompute_ref_logps=False,
        calculate_KL=loss_type == "kto", loss_type=loss_type,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, max_length=None), **settings,
    )  # fmt: skip
    return trainer.compute_loss(model, batch)


def two_words(logp, mask):
    """Logits over two words, of which word 0 has our log-probability; they are normalised for every `logp`."""
    del mask
    logits = torch.stack([logp, torch.log(-torch.expm1(logp))], dim=-1)
    ahead = torch.cat([logits[:, 1:], torch.zeros_like(logits[:, :1])], dim=1)  # position t - 1 predicts token t
    return SimpleNamespace(logits=ahead)


def reference_free(trainer, x, **settings):
    """CPO or ORPO by its whole path from logits to loss."""
    logp, mask = stack(x, "logp"), stack(x, "mask")
    model = StandIn(lambda *_, **__: two_words(logp, mask))
    batch = {}
    for side in ("chosen", "rejected"):
        kept = x[f"{side}/mask"]
        batch[f"{side}_input_ids"] = torch.zeros((B, T), dtype=torch.long)
        batch[f"{side}_attention_mask"] = torch.cat([torch.ones((B, 1)), kept[:, 1:]], dim=1).long()
        batch[f"{side}_labels"] = torch.where(kept, 0, -100)
    return bare(trainer, padding_value=0, pad_token_id=0, **settings).get_batch_loss_metrics(model, batch)[0]


def cpo(x, loss_type, *, beta, cpo_alpha=0.0, alpha=0.0, gamma=0.0):
    from trl.experimental.cpo import CPOTrainer

    settings = dict(loss_type=loss_type, beta=beta, cpo_alpha=cpo_alpha, alpha=alpha, simpo_gamma=gamma)
    return reference_free(CPOTrainer, x, label_smoothing=0.0, **settings)


def orpo(x, *, beta):
    from trl.experimental.orpo import ORPOTrainer

    return reference_free(ORPOTrainer, x, beta=beta)


def bco(x, *, beta):
    from trl.experimental.bco.bco_trainer import BCOTrainer, RunningMoments

    logp, ref = (torch.where(x["side/mask"], x[f"side/{name}"], 0.0).sum(1) for name in ("logp", "ref_logp"))
    up = x["desirable"]
    running = RunningMoments(Accelerator())  # its first batch: the running mean is the mean of the batch
    trainer = bare(BCOTrainer, beta=beta, running=running, embedding_func=None, embedding_tokenizer=None)
    return trainer.bco_loss(logp[up], logp[~up], ref[up], ref[~up], None, None)[0].mean()


def xpo(x, *, beta, alpha):
    from trl.experimental.xpo.xpo_trainer import XPOTrainer

    kept = {name: torch.where(stack(x, "mask"), stack(x, name), 0.0).chunk(2) for name in ("logp", "ref_logp")}
    from_reference = x["reference_is_chosen"][:, None]
    (w, l), (ref_w, ref_l) = kept["logp"], kept["ref_logp"]
    by_reference, by_policy = torch.where(from_reference, w, l), torch.where(from_reference, l, w)
    ref_by_reference, ref_by_policy = (
        torch.where(from_reference, ref_w, ref_l), torch.where(from_reference, ref_l, ref_w),
    )  # fmt: skip
    args = SimpleNamespace(loss_type="sigmoid", beta=beta)
    trainer = bare(XPOTrainer, args=args, _beta=beta, _alpha=alpha)
    chosen_mask = ~x["reference_is_chosen"]
    return trainer._compute_losses(by_policy, by_reference, ref_by_reference, ref_by_policy, chosen_mask)[0]


# case: (record, TRL's call, the terms of this package that equal it)
CURRENT = {
    "sigmoid": ("pair", lambda x: dpo(x, "sigmoid", beta=0.3), one("dpo", beta=0.3)),
    "hinge": ("pair", lambda x: dpo(x, "hinge", beta=1.5), one("hinge", beta=1.5)),
    "ipo": ("pair", lambda x: dpo(x, "ipo", beta=0.3), one("ipo", beta=0.3, aggregation="mean")),
    "exo_pair": (
        "pair", lambda x: dpo(x, "exo_pair", beta=0.3, label_smoothing=0.01),
        one("exo", beta=0.3, label_smoothing=0.01),
    ),
    "nca_pair": ("pair", lambda x: dpo(x, "nca_pair", beta=0.3), one("nca", beta=0.3)),
    "robust": (
        "pair", lambda x: dpo(x, "robust", beta=0.3, label_smoothing=0.2),
        one("robust_dpo", beta=0.3, label_smoothing=0.2),
    ),
    "bco_pair": ("pair", lambda x: dpo(x, "bco_pair", beta=0.3), one("bco_pair", beta=0.3)),
    "sppo_hard": ("pair", lambda x: dpo(x, "sppo_hard", beta=0.3), one("sppo_hard", beta=0.3)),
    "aot": ("pair", lambda x: dpo(x, "aot", beta=0.3), one("aot", beta=0.3)),
    "aot_unpaired": ("pair", lambda x: dpo(x, "aot_unpaired", beta=0.3), one("aot_unpaired", beta=0.3)),
    "apo_zero": ("pair", lambda x: dpo(x, "apo_zero", beta=0.3), one("apo_zero", beta=0.3)),
    "apo_down": ("pair", lambda x: dpo(x, "apo_down", beta=0.3), one("apo_down", beta=0.3)),
    "discopop": ("pair", lambda x: dpo(x, "discopop", beta=0.3), one("discopop", beta=0.3, tau=0.3)),
    "sft": ("pair", lambda x: dpo(x, "sft", beta=0.3), one("chosen_nll")),
    "sigmoid_norm": ("pair", lambda x: dpo(x, "sigmoid_norm", beta=0.8), one("dpo_norm", beta=0.8)),
    "forward_kl": (
        "pair", lambda x: dpo(x, "sigmoid", beta=0.3, divergence="forward_kl"),
        one("f_dpo", beta=0.3, divergence="forward_kl"),
    ),
    "js_divergence": (
        "pair", lambda x: dpo(x, "sigmoid", beta=0.3, divergence="js_divergence"),
        one("f_dpo", beta=0.3, divergence="js"),
    ),
    "alpha_divergence": (  # TRL's coefficient is 1 - alpha
        "pair", lambda x: dpo(x, "sigmoid", beta=0.3, divergence="alpha_divergence", coef=0.7),
        one("f_dpo", beta=0.3, divergence="alpha", alpha=0.3),
    ),
    "ld_alpha": ("pair", lambda x: dpo(x, "sigmoid", beta=0.3, ld_alpha=0.4), one("ld_dpo", beta=0.3, alpha=0.4)),
    "use_weighting": ("pair", lambda x: dpo(x, "sigmoid", beta=0.3, weighting=True), one("wpo", beta=0.3)),
    "kto": (
        "unpaired", lambda x: kto(x, "kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7),
        one("kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7),
    ),
    "apo_zero_unpaired": (
        "unpaired", lambda x: kto(x, "apo_zero_unpaired", beta=0.3, desirable_weight=1.0, undesirable_weight=1.0),
        one("apo_zero_unpaired", beta=0.3),
    ),
    "cpo": (  # TRL's NLL is a mean over all chosen tokens
        "pair", lambda x: cpo(x, "sigmoid", beta=0.3, cpo_alpha=0.6),
        [(1.0, "cpo", {"beta": 0.3, "alpha": 0.0}), (0.6, "chosen_nll", {})],
    ),
    "cpo_equal": (
        "equal", lambda x: cpo(x, "sigmoid", beta=0.3, cpo_alpha=0.6), one("cpo", beta=0.3, alpha=0.6),
    ),
    "simpo": ("pair", lambda x: cpo(x, "simpo", beta=1.5, gamma=0.4), one("simpo", beta=1.5, gamma=0.4)),
    "alphapo": (
        "pair", lambda x: cpo(x, "simpo", beta=1.5, gamma=0.4, alpha=0.3),
        one("alphapo", beta=1.5, gamma=0.4, alpha=0.3),
    ),
    "orpo_equal": ("equal", lambda x: orpo(x, beta=0.3), one("orpo", beta=0.3)),
    **trl_rollouts.CURRENT,
}  # fmt: skip
RETIRED = {
    # as many rows of each label: TRL's shift is the mean of all rewards, ours that of the labels' means
    "bco": ("balanced", lambda x: bco(x, beta=0.3), one("bco", beta=0.3)),
    "xpo": ("pair", lambda x: xpo(x, beta=0.3, alpha=0.2), one("xpo", beta=0.3, alpha=0.2)),
    **trl_rollouts.RETIRED,
}


def run(call, arrays):
    """TRL's value, its gradients by the leaves that it depends on, and the metrics that it logs."""
    x = {field: torch.tensor(array) for field, array in arrays.items()}
    named = (field for field in x if field.split("/")[-1] in LEAVES and not field.startswith("mismatched"))
    leaves = {field: x[field].requires_grad_() for field in named}
    made = call(x)
    value, metrics = made if isinstance(made, tuple) else (made, {})
    value.backward()
    return value.item(), {f: leaf.grad.numpy() for f, leaf in leaves.items() if leaf.grad is not None}, metrics


def main(which):
    cases, records = {"current": CURRENT, "retired": RETIRED}[which], inputs()
    used = sorted({record for record, _, _ in cases.values()})
    settings = {case: {"record": record, "terms": terms} for case, (record, _, terms) in cases.items()}
    for case in set(trl_rollouts.GRADIENT_ONLY) & set(settings):
        settings[case]["gradient_only"] = True
    versions = {"trl": trl.__version__, "torch": torch.__version__}
    arrays = {"settings": np.array(json.dumps(settings)), "versions": np.array(json.dumps(versions))}
    arrays |= {f"in/{record}/{field}": array for record in used for field, array in records[record].items()}
    for case, (record, call, _) in cases.items():
        value, grads, metrics = run(call, records[record])
        arrays[f"out/{case}"] = np.float32(value)
        arrays |= {f"grad/{case}/{field}": grad for field, grad in grads.items()}
        arrays |= {f"metric/{case}/{name}": np.float32(metric) for name, metric in metrics.items()}
        print(f"{case:20s} {value:.6f}")
    if which == "current":
        values = arrays["in/rewards/values"] = records["rewards"]["values"]
        arrays["advantages"] = np.array(json.dumps(trl_rollouts.ADVANTAGES))
        for case, given in trl_rollouts.ADVANTAGES.items():
            arrays[f"advantage/{case}"] = trl_rollouts.advantages(values, **given)
            print(f"{case:20s} {arrays[f'advantage/{case}']}")
    np.savez_compressed(GOLDENS / f"trl_{which}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
