"""The pictures of a report: inline SVG whose ink is the page's text colour, so that they read on light and on dark."""

import html
import io
import itertools
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignax.report.folder import Run, Stage, is_finite, is_number, label

INK = "#010203"  # stands for the page's text colour while matplotlib draws
COLOURS = {"sft": "#8a8a8a", "ppo": "#2f86c9", "dpo": "#d9662b"}  # apart for colour-blind readers, light and dark
SPARE = ("#1a9e77", "#b05cc6", "#a88300", "#c94a6d")
MARKERS = {"sft": "D", "ppo": "o", "dpo": "s"}
STAGE_COLOUR = {"sft": COLOURS["sft"], "online": COLOURS["ppo"], "offline": COLOURS["dpo"], "reward": SPARE[0]}
POINTS = 300  # more points than this are averaged in bins: a screen shows no more

# title, keys drawn as train lines, further keys that only evaluations log; a train key's own eval values join it
PANELS: dict[str, tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = {
    "sft": (
        ("loss (nats per token)", ("loss",), ()),
        ("token accuracy", ("mean_token_accuracy",), ()),
        ("entropy (nats)", ("entropy",), ()),
        ("gradient norm", ("grad_norm",), ()),
        ("learning rate", ("learning_rate",), ()),
    ),
    "reward": (
        ("loss (nats per pair)", ("loss",), ()),
        ("accuracy", ("accuracy",), ()),
        ("margin (nats)", ("margin",), ()),
    ),
    "online": (
        ("gold reward", (), ("eval/gold_reward",)),
        ("reward model's score", ("objective/scores",), ("eval/proxy_reward",)),
        ("KL from the reference (nats)", ("objective/kl",), ("eval/kl",)),
        ("KL coefficient", ("objective/kl_coef",), ()),
        ("clipped fraction", ("policy/clipfrac_avg",), ()),
        ("approximate KL of an update", ("policy/approxkl_avg",), ()),
        ("value loss", ("loss/value_avg",), ()),
        ("reply length (tokens)", ("completions/mean_length",), ()),
        ("correlation of score and length", ("rewards/length_correlation",), ()),
        ("different pairs of tokens", ("completions/distinct", "completions/distinct_in_group"), ()),
        ("repeated runs of three tokens", ("completions/repeated",), ()),
        ("self-BLEU of the replies", (), ("eval/self_bleu",)),
    ),
    "offline": (
        ("gold reward", (), ("eval/gold_reward",)),
        ("KL from the reference (nats)", (), ("eval/kl",)),
        ("loss (nats per pair)", ("loss",), ()),
        ("implicit reward margin", ("rewards/margins",), ()),
        ("implicit reward accuracy", ("rewards/accuracies",), ()),
        ("log-probability of the replies (nats)", ("logps/chosen", "logps/rejected"), ()),
    ),
    "distill": (
        ("gold reward", (), ("eval/gold_reward",)),
        ("KL from the start (nats)", (), ("eval/kl",)),
        ("loss (nats per token)", ("loss",), ()),
        ("agreement with the teacher", ("agreement",), ()),
        ("entropy of student and teacher (nats)", ("entropy", "teacher_entropy"), ()),
        ("length of own samples (tokens)", ("completions/mean_length",), ()),
    ),
}


def colours(policies) -> dict[str, str]:
    """One colour per policy: fixed for SFT, PPO and DPO, so that pages compare."""
    spare = itertools.cycle(SPARE)
    return {name: COLOURS.get(name) or next(spare) for name in policies}


def learning_curves(stage: Stage) -> list[str]:
    """One small picture per metric of the stage that was logged: train as a line, evaluations as points over it."""
    panels = [_panel(stage, *panel) for panel in PANELS.get(stage.kind, ())]
    drawn = [picture for picture in panels if picture]
    if drawn:
        return drawn
    known = dict.fromkeys(key for row in stage.metrics for key, item in row.items() if is_number(item))
    plain = [key for key in known if key != "step" and not key.startswith("time/")][:6]
    return [picture for key in plain if (picture := _panel(stage, key, (key,), ()))]


def _panel(stage: Stage, title: str, train: tuple[str, ...], evals: tuple[str, ...]) -> str | None:
    figure, axes = _canvas(3.7, 2.3, constrained=False)
    figure.subplots_adjust(left=0.18, right=0.97, bottom=0.2, top=0.88)  # the same for all: the axes line up
    axes.locator_params(nbins=5)
    colour = STAGE_COLOUR.get(stage.kind, SPARE[1])
    empty = True
    for i, key in enumerate(train):
        step, value = series(stage, key, "train")
        line = {"color": colour, "lw": 1.3, "ls": ("-", (0, (4, 2)))[i % 2], "label": key.split("/")[-1]}
        if len(value):
            axes.plot(step, value, marker="." if len(value) == 1 else None, **line)
            empty = False
    for key in (*train, *evals):
        step, value = series(stage, key, "eval")
        if len(value):
            axes.plot(step, value, ls="" if train else "-", lw=0.8, marker="o", ms=4, color=colour, mfc=INK, mec=colour)
            empty = False
    if empty:
        return None
    axes.set_title(_plain(title), fontsize=10, loc="left", color=INK)
    axes.set_xlabel("step")
    if len(train) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return _svg(figure, f"{stage.name}: {title} over the steps of the stage")


def series(stage: Stage, key: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric in one split, thinned. An eval row may say `loss` or `eval/loss`."""
    names = (key, f"{split}/{key}")
    rows = [row for row in stage.metrics if row.get("split", "train") == split and is_number(row.get("step"))]
    found = [(row["step"], row[name]) for row in rows for name in names if is_number(row.get(name))]
    points = np.array(found, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) > POINTS:
        points = np.stack([part.mean(axis=0) for part in np.array_split(points, POINTS)])
    return points[:, 0], points[:, 1]


def reward_against_kl(run: Run) -> str | None:
    """Gold and proxy reward above SFT's against KL from SFT: every evaluation on the way, then the final one.

    The horizontal axis is spaced by sqrt(KL), the distance in which over-optimisation curves are near quadratic
    (Gao, Schulman, Hilton 2022, 2210.10760), and labelled in nats.
    """
    figure, axes = _canvas(5.0, 4.2)
    paths = {stage.policy: trajectory(stage) for stage in run.stages if stage.kind in ("online", "offline", "distill")}
    names = [name for name in dict.fromkeys([*paths, *run.policies]) if name != "sft"]
    palette, furthest = colours(names), 0.0
    for name in names:
        for reward, dashed in (("gold", False), ("proxy", True)):
            kl = _draw_path(axes, name, reward, paths.get(name, []), run, palette[name], dashed)
            furthest = max(furthest, kl)
    if not axes.lines:
        return None
    axes.plot(0, 0, marker="D", ms=7, ls="", color=COLOURS["sft"], label="SFT", zorder=5)
    _sqrt_ticks(axes, furthest)
    axes.margins(x=0.09)
    axes.axhline(0, color=INK, lw=0.8, alpha=0.5)
    axes.set_xlabel("KL from SFT (nats, spaced by square root)")
    axes.set_ylabel("reward above SFT's")
    figure.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="outside upper left", ncols=3)
    return _svg(figure, "Gold and proxy reward above SFT's, against KL from SFT")


def trajectory(stage: Stage) -> list[dict[str, float]]:
    """The evaluations on the way, with step, kl and the rewards, where both KL and a reward are finite."""
    rows = [row for row in stage.metrics if row.get("split") == "eval" and is_number(row.get("eval/kl"))]
    keys = {"kl": "eval/kl", "gold": "eval/gold_reward", "proxy": "eval/proxy_reward", "step": "step"}
    points = [{name: float(row[key]) for name, key in keys.items() if is_finite(row.get(key))} for row in rows]
    return [point for point in points if "kl" in point and ("gold" in point or "proxy" in point)]


def _draw_path(
    axes: Axes, name: str, reward: str, path: list[dict[str, float]], run: Run, colour: str, dashed: bool
) -> float:
    """One policy's trajectory and its final evaluation; returns the largest KL drawn."""
    key, sft, final = f"{reward}_reward", run.policies.get("sft", {}), run.policies.get(name, {})
    text, points = _plain(f"{label(name)}, {reward}"), [point for point in path if reward in point]
    style: dict[str, Any] = {"color": colour, "marker": MARKERS.get(name, "^"), "mfc": "none" if dashed else colour}
    # the same prompts before any step are the paired base; the final evaluation's SFT may have seen others
    base = points[0][reward] if points and points[0].get("step") == 0 else sft.get(key)
    kl = [max(point["kl"], 0.0) for point in points]  # an estimate may fall below 0
    if points and is_number(base):
        above = [point[reward] - base for point in points]
        axes.plot(np.sqrt(kl), above, lw=1.4, ms=4, ls="--" if dashed else "-", label=text, **style)
        if not dashed:
            _label_steps(axes, points, kl, base, colour)
    if all(is_finite(item) for item in (final.get("kl"), final.get(key), sft.get(key))):
        kl.append(max(final["kl"], 0.0))
        ends = np.array(final.get(f"{key}_ci95") or [final[key], final[key]], float)
        bars = np.abs(ends - final[key])[:, None]
        text = None if points else text
        axes.errorbar(np.sqrt(kl[-1]), final[key] - sft[key], yerr=bars, ms=9, capsize=4, lw=1.6, label=text, **style)
    return max(kl, default=0.0)


def _label_steps(axes: Axes, points: list[dict[str, float]], kl: list[float], base: float, colour: str) -> None:
    """Writes the step at up to three points inside a trajectory, spread evenly, and at its last one."""
    for i in sorted({round(i) for i in np.linspace(1, len(points) - 1, 4)}) if len(points) > 1 else []:
        xy, step = (np.sqrt(kl[i]), points[i]["gold"] - base), f"{points[i].get('step', 0):.0f}"
        where: dict[str, Any] = (
            {"xytext": (11, -3), "ha": "left"} if i == len(points) - 1 else {"xytext": (0, -13), "ha": "center"}
        )
        axes.annotate(step, xy, textcoords="offset points", fontsize=8, color=colour, **where)


def _sqrt_ticks(axes: Axes, furthest: float) -> None:
    """Ticks at round KL values (1, 2, 5 times a power of ten), at least a tenth of the axis apart."""
    kept = [0.0]
    for kl in (lead * 10.0**power for power in range(-3, 5) for lead in (1, 2, 5)):
        if kl <= furthest and np.sqrt(kl) - np.sqrt(kept[-1]) >= 0.1 * np.sqrt(furthest):
            kept.append(kl)
    axes.set_xticks(np.sqrt(kept), [f"{kl:g}" for kl in kept])


def calibration(reward_model: dict[str, Any]) -> str | None:
    """Reliability diagram: how often the preferred reply was the predicted one, per bin, with Wilson 95% intervals."""
    bins = [row for row in reward_model.get("calibration") or [] if row.get("count") and is_finite(row.get("observed"))]
    if not bins:
        return None
    predicted, observed, count = (
        np.array([row[key] for row in bins], float) for key in ("predicted", "observed", "count")
    )
    low, high = wilson(observed, count)
    figure = Figure(figsize=(5.0, 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _style(top)
    _style(bottom)
    top.plot([0, 1], [0, 1], color=INK, lw=1, ls=":", label="perfect calibration")
    error = np.maximum([observed - low, high - observed], 0)
    line = {"color": STAGE_COLOUR["reward"], "lw": 1.2, "marker": "o", "ms": 5}
    top.errorbar(predicted, observed, yerr=error, capsize=2, label="reward model", **line)
    top.set(ylabel="observed frequency", xlim=(0, 1), ylim=(0, 1))
    top.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="upper left")
    bottom.bar(predicted, count, width=0.07, color=STAGE_COLOUR["reward"])
    bottom.set(xlabel="predicted probability of the preference", ylabel="pairs")
    return _svg(figure, "Reward model: predicted probability against observed frequency")


def wilson(frequency: np.ndarray, count: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's score interval of a binomial proportion: (f + z^2/2n -+ z sqrt(f(1-f)/n + z^2/4n^2)) / (1 + z^2/n)."""
    centre, spread = frequency + z**2 / (2 * count), frequency * (1 - frequency) / count + z**2 / (4 * count**2)
    half = z * np.sqrt(spread)
    return (centre - half) / (1 + z**2 / count), (centre + half) / (1 + z**2 / count)


def bars(policies: dict[str, dict[str, Any]], key: str, description: str) -> str | None:
    """Gold reward by part (`gold_parts`) or by prompt family (`families`): one group per name, one bar per policy."""
    names = list(dict.fromkeys(name for policy in policies.values() for name in policy.get(key) or {}))
    if not names:
        return None
    figure, axes = _canvas(5.0, 3.2)
    palette, width = colours(policies), 0.8 / len(policies)
    for i, (policy, record) in enumerate(policies.items()):
        heights = [float(item) if is_finite(item := (record.get(key) or {}).get(name)) else np.nan for name in names]
        at = np.arange(len(names)) + (i - (len(policies) - 1) / 2) * width
        axes.bar(at, heights, width * 0.92, color=palette[policy], label=_plain(label(policy)))
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_xticks(range(len(names)), map(_plain, names), rotation=0 if len(names) < 7 else 25)
    axes.set_ylabel("gold reward")
    figure.legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=min(len(policies), 4), loc="outside upper left")
    return _svg(figure, description)


def _plain(name: str) -> str:
    """The name for matplotlib, to which a dollar would begin a formula."""
    return name.replace("$", r"\$")


def _canvas(width: float, height: float, constrained: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained" if constrained else None)
    axes = figure.subplots()
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.margins(y=0.12)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an SVG element: no header, no metadata, ids of its own, text as text, the page's ink."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.S
    )
    prefix = re.sub(r"\W+", "-", description)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", text)
    text = text.replace(INK, "currentColor").replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1
    )
    return re.sub(r"\n\s*", "\n", text)
