"""The same losses in PyTorch, written the way its users write them: the other side of the parity tests and goldens.

Inputs are NumPy arrays made from a seed, so that both sides can make them. Each function returns (value, gradients).
"""

import numpy as np
import torch
import torch.nn.functional as F


def _run(fn, arrays, differentiable):
    tensors = {k: torch.tensor(v).requires_grad_(k in differentiable) for k, v in arrays.items()}
    value = fn(**tensors)
    value.backward()
    return value.item(), {k: tensors[k].grad.numpy() for k in differentiable}


def token_stats(hidden, kernel, targets, temperature):
    """Per-token log-probability and entropy, and the gradients of the sum of logp + entropy."""
    kept = {}

    def fn(hidden, kernel, targets):
        dist = torch.distributions.Categorical(logits=hidden @ kernel / temperature)
        kept["logp"] = torch.log_softmax(hidden @ kernel / temperature, -1).gather(-1, targets[..., None])[..., 0]
        kept["entropy"] = dist.entropy()
        return (kept["logp"] + kept["entropy"]).sum()

    _, grads = _run(fn, {"hidden": hidden, "kernel": kernel, "targets": targets}, ("hidden", "kernel"))
    return {k: v.detach().numpy() for k, v in kept.items()}, grads


def bradley_terry(chosen, rejected):
    return _run(
        lambda chosen, rejected: -F.logsigmoid(chosen - rejected).mean(),
        {"chosen": chosen, "rejected": rejected},
        ("chosen", "rejected"),
    )


def dpo(arrays, beta, label_smoothing):
    def fn(chosen, chosen_ref, chosen_mask, rejected, rejected_ref, rejected_mask):
        ratio = ((chosen - chosen_ref) * chosen_mask).sum(-1) - ((rejected - rejected_ref) * rejected_mask).sum(-1)
        kept, flipped = F.logsigmoid(beta * ratio), F.logsigmoid(-beta * ratio)
        return (-kept * (1 - label_smoothing) - flipped * label_smoothing).mean()

    return _run(fn, arrays, ("chosen", "rejected"))


def ppo_clip(arrays, clip):
    def fn(logp, old_logp, advantage, mask):
        ratio = torch.exp(logp - old_logp)
        losses = torch.max(-advantage * ratio, -advantage * torch.clamp(ratio, 1 - clip, 1 + clip))
        return losses[mask].mean()

    return _run(fn, arrays, ("logp",))


def inputs():
    """All arrays, float32, from one seed; unequal lengths."""
    rng = np.random.default_rng(20240607)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    mask = lambda: (np.arange(6) >= 1) & (np.arange(6) < rng.integers(2, 7, size=(4, 1)))  # noqa: E731
    old = -np.abs(normal(4, 6))
    return {
        "token_stats": {
            "hidden": normal(4, 6, 8),
            "kernel": normal(8, 33),
            "targets": rng.integers(0, 33, size=(4, 6)),
        },
        "bradley_terry": {"chosen": normal(4), "rejected": normal(4)},
        "dpo": {
            "chosen": -np.abs(normal(4, 6)),
            "chosen_ref": -np.abs(normal(4, 6)),
            "chosen_mask": mask(),
            "rejected": -np.abs(normal(4, 6)),
            "rejected_ref": -np.abs(normal(4, 6)),
            "rejected_mask": mask(),
        },
        "ppo_clip": {"logp": old + 0.3 * normal(4, 6), "old_logp": old, "advantage": normal(4, 6), "mask": mask()},
    }


SETTINGS = {
    "token_stats": {"temperature": 0.7},
    "bradley_terry": {},
    "dpo": {"beta": 0.3, "label_smoothing": 0.1},
    "ppo_clip": {"clip": 0.2},
}


def references():
    """{loss: (value, gradients)} for `inputs()` under `SETTINGS`."""
    data = inputs()
    return {
        "token_stats": token_stats(**data["token_stats"], **SETTINGS["token_stats"]),
        "bradley_terry": bradley_terry(**data["bradley_terry"]),
        "dpo": dpo(data["dpo"], **SETTINGS["dpo"]),
        "ppo_clip": ppo_clip(data["ppo_clip"], **SETTINGS["ppo_clip"]),
    }
