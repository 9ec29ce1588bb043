"""GRPO on GSM8K with a reward for the answer and one for the form: an adapter on an instruct model of 135M.

Commands: alignax import HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm2
alignax run --config=configs/gsm8k/grpo.py --config.init_from=runs/smollm2 --workdir=runs/gsm8k
From files: a folder in place of the name of the model, --config.data.path=gsm8k.jsonl.gz. The probe is on held-out
problems, whose gold reward is the answer alone. CPU: see experiments/LOG.md.
"""

from alignax.stages import online

ANSWER = "alignax.rewards.answers:exact_answer"
# a worked solution of GSM8K ends so, and exact_answer reads what stands behind it
FORM = r".*####[ ]*-?[$]?[\d,.]+[.]?"


def get_config():
    c = online.get_config()
    c.source = "gsm8k"
    c.data = dict(path="openai/gsm8k", heldout_percent=10.0)
    c.max_prompt_length, c.max_new_tokens = 192, 128
    c.rewards = dict(
        answer=dict(function=ANSWER, weight=1.0),
        form=dict(function="alignax.rewards.forms:pattern", expression=FORM, weight=0.2),
    )
    c.samples_per_prompt, c.batch_size, c.total_steps = 8, 8, 40
    c.lora_args = dict(rank=16)
    c.critic_init, c.advantage, c.advantage_args = "none", "group_baseline", dict(baseline="standardise")
    c.scoring_args = dict(normalize=False, clip=0.0, missing_eos_penalty=0.0)
    c.loss, c.kl_coef, c.kl_placement, c.kl_estimator = "grpo", 0.01, "loss", "k3"
    c.update_args = dict(epochs=1, minibatches=1, microbatches=2)
    c.optimizer_args = dict(learning_rate=1e-4, warmup_percent=5.0)
    c.eval_every_steps, c.save_every_steps = 0, 10
    return c
