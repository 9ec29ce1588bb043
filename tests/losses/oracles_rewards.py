"""Losses on scores, rankings, ratings, steps and teachers in float64 NumPy, as loops over the papers' formulas.

Each takes the record's fields as arrays, and returns the reduced loss and metrics. Probabilities are written as the
papers write them, with p = e^r, so that no stable form is shared with what they check.
"""

import itertools

import numpy as np


def mean(rows):
    """Means of the columns of a list of equally long tuples (or of numbers)."""
    return np.mean(np.array(rows, np.float64), axis=0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pairs_of(s, *names):
    return [tuple(s[n][b] for n in ("chosen", "rejected", *names)) for b in range(len(s["mask"])) if s["mask"][b]]


def pair_metrics(pairs, decided=None):
    decided = pairs if decided is None else decided
    return {
        "accuracy": mean([w > l for w, l in decided]),
        "margin": mean([w - l for w, l in decided]),
        "mean_reward": mean(pairs).mean(),
    }


def bradley_terry_margin(s, scale=1.0, centering=0.0):
    rows = pairs_of(s, "margin")
    value = mean([-np.log(sigmoid(w - l - scale * m)) + centering * (w + l) ** 2 for w, l, m in rows])
    return value, pair_metrics([row[:2] for row in rows])


def bradley_terry_noisy(s, flip_rate=0.1, form="conservative"):
    values = []
    for w, l in pairs_of(s):
        right, wrong = -np.log(np.exp(w) / (np.exp(w) + np.exp(l))), -np.log(np.exp(l) / (np.exp(w) + np.exp(l)))
        if form == "conservative":
            values.append((1 - flip_rate) * right + flip_rate * wrong)
        else:
            values.append(((1 - flip_rate) * right - flip_rate * wrong) / (1 - 2 * flip_rate))
    return mean(values), pair_metrics(pairs_of(s))


def with_ties(s, probabilities):
    """`probabilities(p_w, p_l)` gives P(w wins) and P(tie)."""
    values, ties, decided, pairs = [], [], [], []
    for w, l, tie in pairs_of(s, "tie"):
        win, same = probabilities(np.exp(w), np.exp(l))
        values.append(-np.log(same if tie else win))
        ties.append(same)
        pairs.append((w, l))
        if not tie:
            decided.append((w, l))
    return mean(values), pair_metrics(pairs, decided) | {"tie_probability": mean(ties)}


def rao_kupper(s, theta=3.0):
    def probabilities(p, q):
        win, lose = p / (p + theta * q), q / (q + theta * p)
        return win, 1 - win - lose

    return with_ties(s, probabilities)


def davidson(s, nu=2.0):
    def probabilities(p, q):
        total = p + q + nu * np.sqrt(p * q)
        return p / total, nu * np.sqrt(p * q) / total

    return with_ties(s, probabilities)


def rankings(r):
    """The scores that count of each prompt with two or more, in order."""
    rows = [[x for x, m in zip(score, mask) if m] for score, mask in zip(r["score"], r["mask"])]
    return [row for row in rows if len(row) > 1], [x for row in rows for x in row]


def ranking_metrics(r, top=0):
    rows, scores = rankings(r)
    table = []
    for row in rows:
        gaps = [row[i] - row[j] for i, j in itertools.combinations(range(len(row)), 2) if not top or i < top]
        table.append((mean([gap > 0 for gap in gaps]), mean(gaps)))
    accuracy, margin = mean(table)
    return {"accuracy": accuracy, "margin": margin, "mean_reward": mean(scores)}


def plackett_luce(r, top=0):
    values = []
    for row in rankings(r)[0]:
        left, total = list(row), 0.0
        for best in row[: top or None]:
            total -= np.log(np.exp(best) / sum(np.exp(x) for x in left))
            left.pop(0)
        values.append(total)
    return mean(values), ranking_metrics(r, top)


def ranked_pairs(r):
    values = []
    for row in rankings(r)[0]:
        pairs = list(itertools.combinations(row, 2))
        values.append(-sum(np.log(sigmoid(better - worse)) for better, worse in pairs) / len(pairs))
    return mean(values), ranking_metrics(r)


def ratings(r):
    return [(r["score"][b, a], r["target"][b, a]) for b, a in zip(*np.nonzero(r["mask"]))]


def regression(r):
    rows = ratings(r)
    metrics = {"absolute_error": mean([abs(s - t) for s, t in rows]), "mean_reward": mean([s for s, _ in rows])}
    return mean([(s - t) ** 2 for s, t in rows]), metrics


def ordinal(r, grades=5, spacing=1.0):
    cuts = [spacing * (k - (grades - 2) / 2) for k in range(grades - 1)]
    values, table = [], []
    for s, t in ratings(r):
        t = min(max(int(np.round(t)), 0), grades - 1)
        at_most = [0.0, *(sigmoid(cut - s) for cut in cuts), 1.0]  # P(grade <= k) for k = -1 .. grades - 1
        values.append(-np.log(at_most[t + 1] - at_most[t]))
        median = min(k for k in range(grades) if at_most[k + 1] >= 0.5)
        table.append((median == t, abs(median - t), s))
    return mean(values), dict(zip(("accuracy", "absolute_error", "mean_reward"), mean(table)))


def process(s):
    rows = [(s["logit"][b, t], s["target"][b, t]) for b, t in zip(*np.nonzero(s["mask"]))]
    value = mean([-t * np.log(sigmoid(z)) - (1 - t) * np.log(1 - sigmoid(z)) for z, t in rows])
    metrics = {"accuracy": mean([(z > 0) == (t > 0.5) for z, t in rows])}
    return value, metrics | {"step_probability": mean([sigmoid(z) for z, _ in rows])}


def predictions(d, temperature):
    """(teacher, student) probabilities of each token to learn."""
    out = []
    for b, t in zip(*np.nonzero(d["mask"])):
        both = (np.exp(d[name][b, t] / temperature) for name in ("teacher_logits", "logits"))
        out.append(tuple(p / p.sum() for p in both))
    return out


def kl(p, q):
    return sum(x * np.log(x / y) for x, y in zip(p, q))


def distilled(d, temperature, divergence):
    rows = predictions(d, temperature)
    entropy = lambda p: -sum(x * np.log(x) for x in p)  # noqa: E731
    table = [(np.argmax(p) == np.argmax(q), entropy(q), entropy(p)) for p, q in rows]
    metrics = dict(zip(("agreement", "entropy", "teacher_entropy"), mean(table)))
    return temperature**2 * mean([divergence(p, q) for p, q in rows]), metrics


def forward_kl(d, temperature=1.0):
    return distilled(d, temperature, kl)


def reverse_kl(d, temperature=1.0):
    return distilled(d, temperature, lambda p, q: kl(q, p))


def gkd(d, beta=0.5, temperature=1.0):
    def jsd(p, q):
        mixture = [beta * x + (1 - beta) * y for x, y in zip(p, q)]
        return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)

    return distilled(d, temperature, jsd)


ORACLES = {
    "bradley_terry_margin": bradley_terry_margin,
    "bradley_terry_noisy": bradley_terry_noisy,
    "davidson": davidson,
    "forward_kl": forward_kl,
    "gkd": gkd,
    "ordinal": ordinal,
    "plackett_luce": plackett_luce,
    "process": process,
    "ranked_pairs": ranked_pairs,
    "rao_kupper": rao_kupper,
    "regression": regression,
    "reverse_kl": reverse_kl,
}
SETTINGS = [
    ("bradley_terry_margin", {"scale": 3.0, "centering": 0.01}),
    ("bradley_terry_noisy", {"flip_rate": 0.3}),
    ("bradley_terry_noisy", {"flip_rate": 0.2, "form": "unbiased"}),
    ("rao_kupper", {"theta": 1.2}),
    ("davidson", {"nu": 0.3}),
    ("plackett_luce", {"top": 1}),
    ("plackett_luce", {"top": 3}),
    ("ordinal", {"grades": 4, "spacing": 2.0}),
    ("ordinal", {"grades": 2}),
    ("forward_kl", {"temperature": 2.0}),
    ("reverse_kl", {"temperature": 0.5}),
    ("gkd", {"beta": 0.1, "temperature": 3.0}),
    ("gkd", {"beta": 0.9}),
]
