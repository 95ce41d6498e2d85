"""SimPO (arXiv 2405.14734) on weighted tokens: a stage of another package than finepref.

Formula: L = -log sigmoid(u_w - u_l - gamma), u = beta * mean over the response's tokens of log pi_theta(y_t), each
token weighed by the spans of the data (a response without spans counts as a whole).
"""

from dataclasses import dataclass

from finepref.losses.ops import LossOut, weighted_mean
from finepref.methods.batches import Pairs, pair_loss
from finepref.methods.options import PairOptions, option
from finepref.methods.stage import Stage
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass
class WsimpoOptions(PairOptions):
    wsimpo_beta: float = option(2.0, "Scale of the mean log-probability.", above=0)
    wsimpo_gamma: float = option(0.5, "Margin by which chosen must lead rejected.", at_least=0)


def losses(pairs: Pairs, options: WsimpoOptions) -> tuple[LossOut, dict[str, Tensor]]:
    means = [weighted_mean(side.logps, side.weight) for side in (pairs.chosen, pairs.rejected)]
    u_w, u_l = (options.wsimpo_beta * mean for mean in means)
    out = pair_loss(-logsigmoid(u_w - u_l - options.wsimpo_gamma), valid=pairs.valid, rewards=(u_w, u_l))
    return out, {"logps/chosen": means[0], "logps/rejected": means[1]}


STAGE = Stage(
    name="wsimpo",
    title="SimPO on weighted tokens",
    paper="arXiv 2405.14734",
    shape="pair",
    formats=("pair", "span_pair"),
    options=WsimpoOptions,
    losses=losses,
    metrics=("logps/chosen", "logps/rejected"),
    recipe="recipe.yaml",
    demo_dataset="tdpo_demo",
)
