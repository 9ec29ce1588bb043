"""GRPO on GSM8K with a reward for the answer and one for the form: an adapter on an instruct model of 135M.

Commands: alignax import HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm2
alignax run --config=configs/gsm8k/grpo.py --config.grpo.init_from=runs/smollm2 --workdir=runs/gsm8k
From files: a folder in place of the name of the model, --config.grpo.data.path=gsm8k.jsonl.gz. Then both policies
answer held-out problems. CPU of 2 cores: see experiments/LOG.md.
"""

from ml_collections import ConfigDict, FieldReference

from alignax.rewards.answers import exact_answer
from alignax.rewards.forms import pattern
from alignax.stages import evaluate, online

# a line as a worked solution of GSM8K ends with: exact_answer reads what stands behind the mark
FORM = r"####[ ]*-?[$]?[\d,.]+[ ]*(\n|$)"
ASK = (
    "Question: Tom has 3 boxes of 4 pens. He gives 2 pens away. How many pens are left?\n"
    "Answer: There are 3 * 4 = 12 pens. 12 - 2 = 10 are left.\n#### 10\n\nQuestion: {question}\nAnswer:"
)
WEIGHT = 0.2  # of the form


def graded(row: dict, completion: str, *, finished: bool) -> dict[str, float]:
    """What GRPO is rewarded by, with its parts."""
    answer = exact_answer(row, completion, finished=finished)
    form = pattern(row, completion, finished=finished, expression=FORM, whole=False)
    return {"total": answer + WEIGHT * form, "answer": answer, "form": form}


def get_config():
    c = ConfigDict()
    path, base = FieldReference("openai/gsm8k"), FieldReference("runs/smollm2")
    c.steps = ("grpo", "measured")
    c.grpo, c.measured = grpo(base), measured(base)
    for data in (c.grpo.data, c.measured.probe.data):
        data.path, data.heldout_percent, data.ask = path, 10.0, ASK
    return c


def grpo(base):
    c = online.get_config()
    c.init_from, c.source = base, "gsm8k"
    c.max_prompt_length, c.max_new_tokens, c.temperature = 160, 64, 0.7  # short problems, short solutions
    c.rewards = dict(
        answer=dict(function=exact_answer, weight=1.0),
        form=dict(function=pattern, expression=FORM, whole=False, weight=WEIGHT),
    )
    c.samples_per_prompt, c.batch_size, c.total_steps = 8, 8, 24
    c.share_prompts = True
    c.lora_args = dict(rank=16)
    c.critic_init, c.advantage, c.advantage_args = "none", "group_baseline", dict(baseline="standardise")
    c.scoring_args = dict(normalize=False, clip=0.0, missing_eos_penalty=0.0)
    c.loss, c.kl_coef, c.kl_placement, c.kl_estimator = "grpo", 0.01, "loss", "k3"
    c.update_args = dict(epochs=1, minibatches=1, microbatches=4)
    c.optimizer_args = dict(learning_rate=3e-4, warmup_percent=5.0)
    c.eval_every_steps, c.save_every_steps = 0, 8
    return c


def measured(base):
    """The same reward on held-out problems, before and after."""
    c = evaluate.get_config()
    c.init_from, c.policies = base, dict(before=base, after="@grpo")
    p = c.probe
    p.source, p.split, p.reward = "gsm8k", "heldout", "configs.gsm8k.grpo:graded"
    p.max_prompt_length, p.max_new_tokens, p.temperature, p.batch_size = 160, 64, 0.7, 32
    p.repeats = 0
    return c
