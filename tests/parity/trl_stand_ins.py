"""How TRL's code is called without a model, a dataset or a configuration: what both lists of cases share."""

from collections import defaultdict
from types import SimpleNamespace

import torch

B, T = 6, 8


class Accelerator:
    device = torch.device("cpu")
    use_distributed = False
    num_processes = 1
    process_index = 0
    gather = gather_for_metrics = staticmethod(lambda x: x)
    reduce = staticmethod(lambda x, reduction: x)


def bare(trainer, **attributes):
    """A trainer without its __init__."""
    made = object.__new__(trainer)
    made.__dict__.update(accelerator=Accelerator(), aux_loss_enabled=False, is_encoder_decoder=False)
    made.__dict__.update(_metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1)
    made.__dict__.update(attributes)
    return made


class StandIn:
    """Where TRL calls a model: `outputs(**inputs)`."""

    training, is_gradient_checkpointing, config = True, False, SimpleNamespace(is_encoder_decoder=False)
    _modules = {}  # which accelerate looks into where peft is installed

    def __init__(self, outputs):
        self.outputs = outputs

    def __call__(self, *args, **kwargs):
        return self.outputs(*args, **kwargs)


def one(loss, **args):
    """The terms of a case that equals one loss of this package."""
    return [(1.0, loss, args)]
