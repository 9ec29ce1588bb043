"""The policy objectives in float64 NumPy: loops over replies and their tokens, from the papers' formulas.

Each takes the record's fields as arrays (see test_loss_oracles.py) and returns the reduced value and metrics. GRADIENTS
holds the gradient with respect to `logp` of the objectives that are defined by it.
"""

import math

import numpy as np


def replies(r, *names):
    """One list per reply with action tokens: a tuple of the named fields, and the ratio first, for each such token."""
    table = []
    for b in range(len(r["mask"])):
        at = [t for t in range(len(r["mask"][b])) if r["mask"][b][t]]
        if at:
            fields = [[math.exp(r["logp"][b, t]) / math.exp(r["old_logp"][b, t]) for t in at]]
            table.append(list(zip(*fields, *[[r[n][b, t] for t in at] for n in names])))
    return table


def common(r, *, ratio=True):
    """Metrics of every policy objective: means over tokens."""
    tokens = [token for reply in replies(r, "entropy") for token in reply]
    out = {
        "policy/approxkl_avg": np.mean([0.5 * math.log(rho) ** 2 for rho, _ in tokens]),
        "policy/entropy_avg": np.mean([entropy for _, entropy in tokens]),
    }
    return out | ({"val/ratio": np.mean([rho for rho, _ in tokens])} if ratio else {})


def clip_shares(pairs, low, high):
    """Shares of the (ratio, advantage) pairs that the clip stops."""
    below = [rho < 1 - low and a < 0 for rho, a in pairs]
    above = [rho > 1 + high and a > 0 for rho, a in pairs]
    return {
        "clip_ratio/low_mean": np.mean(below),
        "clip_ratio/high_mean": np.mean(above),
        "clip_ratio/region_mean": np.mean(below) + np.mean(above),
    }


def surrogate(rho, a, low, high):
    return min(rho * a, min(max(rho, 1 - low), 1 + high) * a)


def flat(table):
    return [token for reply in table for token in reply]


def reinforce(r, aggregation="token_mean"):
    table = replies(r, "logp", "advantage")
    sums = [sum(-a * logp for _, logp, a in reply) for reply in table]
    return sum(sums) / (len(flat(table)) if aggregation == "token_mean" else len(table)), common(r, ratio=False)


def ppo_clip(r, clip=0.2, clip_higher=0.0):
    tokens, high = flat(replies(r, "advantage")), clip + clip_higher
    metrics = common(r)
    metrics["policy/clipfrac_avg"] = clip_shares(tokens, clip, high)["clip_ratio/region_mean"]
    return -np.mean([surrogate(rho, a, clip, high) for rho, a in tokens]), metrics


def ppo_dual_clip(r, clip_low=0.2, clip_high=0.2, max_ratio=3.0):
    tokens = flat(replies(r, "advantage"))
    values, active = [], []
    for rho, a in tokens:
        best = surrogate(rho, a, clip_low, clip_high)
        values.append(-(max(best, max_ratio * a) if a < 0 else best))
        active.append(a < 0 and rho > max_ratio)
    lower = {"policy/clipfrac_lower": np.mean(active)}
    return np.mean(values), common(r) | clip_shares(tokens, clip_low, clip_high) | lower


def grpo(r, clip_low=0.2, clip_high=0.2):
    table = replies(r, "advantage")
    total = 0.0
    for reply in table:
        total += sum(surrogate(rho, a, clip_low, clip_high) for rho, a in reply) / len(reply)
    return -total / len(table), common(r) | clip_shares(flat(table), clip_low, clip_high)


def dr_grpo(r, max_tokens=512.0, clip_low=0.2, clip_high=0.2):
    table = replies(r, "advantage")
    total = 0.0
    for reply in table:
        total += sum(surrogate(rho, a, clip_low, clip_high) for rho, a in reply) / max_tokens
    return -total / len(table), common(r) | clip_shares(flat(table), clip_low, clip_high)


def dapo(r, clip_low=0.2, clip_high=0.28):
    tokens = flat(replies(r, "advantage"))
    value = -sum(surrogate(rho, a, clip_low, clip_high) for rho, a in tokens) / len(tokens)
    return value, common(r) | clip_shares(tokens, clip_low, clip_high)


def sequence_ratio(reply):
    """(pi(y) / pi_old(y))^(1 / |y|)."""
    product = 1.0
    for token in reply:
        product *= token[0]
    return product ** (1 / len(reply))


def gspo(r, clip_low=3e-4, clip_high=4e-4):
    pairs = [(sequence_ratio(reply), np.mean([a for _, a in reply])) for reply in replies(r, "advantage")]
    metrics = common(r) | clip_shares(pairs, clip_low, clip_high) | {"val/ratio": np.mean([s for s, _ in pairs])}
    return -np.mean([surrogate(s, a, clip_low, clip_high) for s, a in pairs]), metrics


def gspo_token(r, clip_low=3e-4, clip_high=4e-4):
    values, pairs = [], []
    for reply in replies(r, "advantage"):
        s = sequence_ratio(reply)
        values.append(-np.mean([surrogate(s, a, clip_low, clip_high) for _, a in reply]))
        pairs += [(s, a) for _, a in reply]
    metrics = common(r) | clip_shares(pairs, clip_low, clip_high) | {"val/ratio": np.mean([s for s, _ in pairs])}
    return np.mean(values), metrics


def gspo_token_gradient(r, clip_low=3e-4, clip_high=4e-4):
    """-s_i A_t / (|y_i| G) at each token whose s_i is not clipped (the paper's gradient with token advantages)."""
    out, lengths = np.zeros(r["mask"].shape), r["mask"].sum(1)
    for b, t in zip(*np.nonzero(r["mask"])):
        s = math.exp(sum((r["logp"] - r["old_logp"])[b, u] for u in range(len(out[b])) if r["mask"][b, u]) / lengths[b])
        a = r["advantage"][b, t]
        stopped = (s < 1 - clip_low and a < 0) or (s > 1 + clip_high and a > 0)
        out[b, t] = 0.0 if stopped else -s * a / lengths[b] / (lengths > 0).sum()
    return out


def luspo(r, clip_low=3e-4, clip_high=4e-4):
    table = replies(r, "advantage")
    values = [len(y) * surrogate(sequence_ratio(y), np.mean([a for _, a in y]), clip_low, clip_high) for y in table]
    return -np.mean(values), gspo(r, clip_low, clip_high)[1]


def gmpo(r, clip_low=0.4, clip_high=0.4):
    values, ratios, stopped = [], [], {"low": [], "high": []}
    for reply in replies(r, "advantage"):
        advantage, product = np.mean([a for _, a in reply]), 1.0
        for rho, _ in reply:
            product *= min(rho, math.exp(clip_high)) if advantage > 0 else max(rho, math.exp(-clip_low))
            stopped["low"].append(rho < math.exp(-clip_low) and advantage < 0)
            stopped["high"].append(rho > math.exp(clip_high) and advantage > 0)
        ratios.append(product ** (1 / len(reply)))
        values.append(-ratios[-1] * advantage)
    shares = {f"clip_ratio/{end}_mean": np.mean(x) for end, x in stopped.items()}
    shares["clip_ratio/region_mean"] = sum(shares.values())
    return np.mean(values), common(r) | shares | {"val/ratio": np.mean(ratios)}


def gamma(reply, a, k_pos=2.0, lambda_pos=3.0, k_neg=3.0, lambda_neg=2.0):
    """w^k e^(lambda (1 - w)) of a reply (its tokens' ratios first), for a token of advantage a."""
    w = math.prod(token[0] for token in reply)
    k, rate = (k_pos, lambda_pos) if a >= 0 else (k_neg, lambda_neg)
    return w**k * math.exp(rate * (1 - w))


def vespo(r, **shape):
    table = replies(r, "logp", "advantage")
    values = [-gamma(reply, a, **shape) * a * logp for reply in table for _, logp, a in reply]
    weights = [np.mean([gamma(reply, a, **shape) for _, _, a in reply]) for reply in table]
    ratios = [math.prod(token[0] for token in reply) for reply in table]
    return np.mean(values), common(r) | {"val/ratio": np.mean(ratios), "vespo/phi_seq_mean": np.mean(weights)}


def vespo_gradient(r, **shape):
    """-phi(w) A / (number of tokens): the weight is not differentiated."""
    out = np.zeros(r["mask"].shape)
    for b in range(len(out)):
        at = np.flatnonzero(r["mask"][b])
        reply = [(math.exp(r["logp"][b, t] - r["old_logp"][b, t]),) for t in at]
        for t in at:
            a = r["advantage"][b, t]
            out[b, t] = -gamma(reply, a, **shape) * a / r["mask"].sum()
    return out


def cispo(r, max_ratio=5.0):
    tokens = flat(replies(r, "logp", "advantage"))
    metrics = common(r) | {"cispo_clip_ratio": np.mean([rho > max_ratio and a > 0 for rho, _, a in tokens])}
    return -np.mean([min(rho, max_ratio) * a * logp for rho, logp, a in tokens]), metrics


def cispo_gradient(r, max_ratio=5.0):
    """-min(rho, max_ratio) A / (number of tokens): the weight is not differentiated."""
    out = np.zeros(r["mask"].shape)
    for b, t in zip(*np.nonzero(r["mask"])):
        rho = math.exp(r["logp"][b, t] - r["old_logp"][b, t])
        out[b, t] = -min(rho, max_ratio) * r["advantage"][b, t] / r["mask"].sum()
    return out


def sapo(r, tau_pos=1.0, tau_neg=1.05):
    values = []
    for reply in replies(r, "advantage"):
        gates = []
        for rho, a in reply:
            tau = tau_pos if a > 0 else tau_neg
            gates.append(4 / tau / (1 + math.exp(-tau * (rho - 1))) * a)
        values.append(-sum(gates) / len(gates))
    return np.mean(values), common(r)


def entropy(r):
    value = np.mean([e for _, e in flat(replies(r, "entropy"))])
    return -value, {"policy/entropy_avg": value}


def covariances(tokens):
    """(ratio, logp, advantage) -> the centred product of the last two, one per token."""
    mean_logp, mean_a = np.mean([t[1] for t in tokens]), np.mean([t[2] for t in tokens])
    return [(logp - mean_logp) * (a - mean_a) for _, logp, a in tokens]


def clip_cov(r, fraction=2e-4, cov_low=1.0, cov_high=5.0, clip_low=0.2, clip_high=0.2):
    """The expectation of `fraction N` draws among the n tokens of the band: each is silenced at that rate over n."""
    tokens = flat(replies(r, "logp", "advantage"))
    pairs, cov = [(rho, a) for rho, _, a in tokens], covariances(tokens)
    inside = []
    for (rho, a), c in zip(pairs, cov):
        stopped = (rho < 1 - clip_low and a < 0) or (rho > 1 + clip_high and a > 0)
        inside.append(cov_low < c < cov_high and not stopped)
    drawn = min(fraction * len(tokens) / max(sum(inside), 1), 1.0)
    values = [-surrogate(*p, clip_low, clip_high) * (1 - drawn if i else 1.0) for p, i in zip(pairs, inside)]
    metrics = {"policy/cov_avg": np.mean(cov), "policy/cov_fraction": np.mean(inside)}
    return np.mean(values), common(r) | clip_shares(pairs, clip_low, clip_high) | metrics


def kl_cov(r, fraction=2e-4, coef=1.0):
    tokens = flat(replies(r, "logp", "advantage"))
    cov = covariances(tokens)
    order = sorted(range(len(cov)), key=lambda i: -cov[i])
    picked = set(order[: math.ceil(fraction * len(cov))])
    values = [-rho * a + (coef * abs(math.log(rho)) if i in picked else 0) for i, (rho, _, a) in enumerate(tokens)]
    metrics = {"policy/cov_avg": np.mean(cov), "policy/cov_fraction": len(picked) / len(cov)}
    return np.mean(values), common(r) | metrics


def nash_md(r, tau=0.1):
    values, wins, ratios = [], [], []
    for reply in replies(r, "logp", "ref_logp", "advantage"):
        logp, log_ratio = sum(x[1] for x in reply), sum(x[1] - x[2] for x in reply)
        win = np.mean([x[3] for x in reply]) + 0.5
        values.append(-(win - 0.5) * logp + tau / 2 * log_ratio**2)
        wins.append(win)
        ratios.append(log_ratio)
    return np.mean(values), {"rewards/probabilities": np.mean(wins), "objective/kl": np.mean(ratios)}


def kl_gradient(r, estimator="k2"):
    """rho log(pi / ref) / N at each of the N action tokens, whichever the estimator."""
    del estimator
    out, count = np.zeros(r["logp"].shape), r["mask"].sum()
    for b, t in zip(*np.nonzero(r["mask"])):
        out[b, t] = math.exp(r["logp"][b, t] - r["old_logp"][b, t]) * (r["logp"][b, t] - r["ref_logp"][b, t]) / count
    return out


ORACLES = {
    "cispo": cispo,
    "clip_cov": clip_cov,
    "dapo": dapo,
    "dr_grpo": dr_grpo,
    "entropy": entropy,
    "grpo": grpo,
    "gmpo": gmpo,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "kl_cov": kl_cov,
    "luspo": luspo,
    "nash_md": nash_md,
    "ppo_clip": ppo_clip,
    "ppo_dual_clip": ppo_dual_clip,
    "reinforce": reinforce,
    "sapo": sapo,
    "vespo": vespo,
}
GRADIENTS = {"cispo": cispo_gradient, "gspo_token": gspo_token_gradient, "kl": kl_gradient, "vespo": vespo_gradient}
SETTINGS = [
    ("cispo", {"max_ratio": 1.1}),
    ("clip_cov", {"fraction": 0.2, "cov_low": 0.1, "cov_high": 2.0, "clip_low": 0.1, "clip_high": 0.3}),
    ("clip_cov", {"fraction": 0.9, "cov_low": 0.0}),
    ("dapo", {"clip_low": 0.1, "clip_high": 0.4}),
    ("dr_grpo", {"max_tokens": 5.0, "clip_low": 0.1, "clip_high": 0.3}),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.3}),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.2}),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.1}),
    ("gspo_token", {"clip_low": 0.05, "clip_high": 0.1}),
    ("kl_cov", {"fraction": 0.3, "coef": 0.5}),
    ("luspo", {"clip_low": 0.05, "clip_high": 0.1}),
    ("nash_md", {"tau": 0.4}),
    ("ppo_clip", {"clip": 0.1, "clip_higher": 0.15}),
    ("ppo_dual_clip", {"clip_low": 0.1, "clip_high": 0.15, "max_ratio": 1.2}),
    ("reinforce", {"aggregation": "sequence_sum"}),
    ("sapo", {"tau_pos": 2.0, "tau_neg": 0.5}),
    ("vespo", {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 0.5, "lambda_neg": 1.5}),
]
