"""One epoch of a stage on LLaMA-Factory, its own or ours, through its own entry `run_exp`: the arm's settings as JSON.

Stage `plain_tdpo2` is the algorithm of TDPO2 as the paper states it, in the host's DPO trainer: all logits of both
models, their log-softmax, and the KL over the vocabulary at every position.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import meter

OPTIONS_TO_COME = ("finepref_reference_cache", "finepref_prefix_sharing", "finepref_batch_tokens")
"""Options of finepref that an arm needs; where the installed finepref lacks one, the arm is skipped."""


def main() -> None:
    """Run the arm. With `fill` the run is a whole one, and nothing is measured."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    fill = settings.pop("fill", False)
    from finepref import stages

    row = stages.find(settings["stage"])
    known = row.options.described("llamafactory") if row else {}
    if missing := [name for name in OPTIONS_TO_COME if name in settings and name not in known]:
        meter.skipped(f"finepref has no option {missing[0]} in stage {settings['stage']}")
    callbacks = [] if fill else [meter.watch_trainer()]
    from llamafactory.train.tuner import run_exp

    if settings["stage"] == "plain_tdpo2":
        settings |= {"stage": "dpo", "pref_loss": "sigmoid"}
        use_plain_tdpo2(alpha=0.5)
    try:
        run_exp(settings, callbacks=callbacks)
    except meter.Measured as measured:
        meter.told(measured)
    print(json.dumps({}))


def use_plain_tdpo2(alpha: float) -> None:
    """Let the host's DPO trainer compute the loss of TDPO2 (arXiv 2404.11999, equations 12 to 17)."""
    import torch
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from torch.nn.functional import logsigmoid

    def get_batch_loss_metrics(self: Any, model: Any, batch: dict[str, Any], train_eval: str = "train") -> Any:
        labels = batch["labels"][:, 1:]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        mask, targets = labels != -100, labels.clamp(min=0).unsqueeze(-1)
        policy = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
        with torch.no_grad(), self.accelerator.unwrap_model(model).disable_adapter():
            reference = model(**inputs, use_cache=False).logits[:, :-1].log_softmax(-1)
        kl = (reference.exp() * (reference - policy)).sum(-1)  # [2B, T]
        ratio = (policy.gather(-1, targets) - reference.gather(-1, targets)).squeeze(-1)
        (chosen, rejected), (kl_chosen, kl_rejected) = ((each * mask).sum(-1).chunk(2) for each in (ratio, kl))
        logit = chosen - rejected - alpha * (kl_rejected - kl_chosen.detach())
        return -logsigmoid(self.beta * logit).mean(), {}

    CustomDPOTrainer.get_batch_loss_metrics = get_batch_loss_metrics


if __name__ == "__main__":
    main()
