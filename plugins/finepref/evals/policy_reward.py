"""A policy's log-probabilities as rewards, so that `apo score` scores with a policy as with a reward model.

    mean   (1/|y|) sum_t log pi(y_t)                    the order that SimPO and SePO train
    sum    sum_t log pi(y_t)
    with a reference   beta times sum_t log pi(y_t)/pi_ref(y_t), or times its mean: DPO's implicit reward

The tokens of a response include what the template writes after it, its end token among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from finepref.evals.model_folder import Target
from finepref.formats.records import Prompt
from finepref.formats.scores import fingerprint
from finepref.synth.apo.reward_model import Sequences
from finepref.synth.encoding import TOKENIZERS_OWN, Template
from finepref.synth.engines.checkpoint import context_of, load_tokenizer
from finepref.synth.scorers.hf import HfScorer
from finepref.synth.scorers.protocol import Item

MEASURES = ("mean", "sum")


class PolicyRow(NamedTuple):
    """Token ids of a prompt with a response, and where the response starts."""

    ids: list[int]
    start: int
    cut: bool = False


class PolicyReward:
    """See the module's docstring; used by `synth.apo.score.score` in place of a `RewardModel`.

    Args:
        target: the policy.
        reference: the reference model, None for none.
        measure: one of `MEASURES`.
        beta: factor of the reward.
        template: what writes prompts and responses.
    """

    pooling = overlong = ""

    def __init__(
        self,
        target: Target,
        *,
        reference: str | None = None,
        measure: str = "mean",
        beta: float = 1.0,
        template: Template = TOKENIZERS_OWN,
    ) -> None:
        self.folder, self.measure, self.beta = Path(target.model), measure, beta
        self.scorers = [HfScorer(target.model, adapter=target.adapter)]
        if reference is not None:
            self.scorers.append(HfScorer(reference))
        self.batch_tokens = self.scorers[0].batch_tokens
        self.cutoff_len = min(context_of(scorer.name) for scorer in self.scorers)
        tokenizer = load_tokenizer(target.tokenizer, chat_template=template is TOKENIZERS_OWN)
        self.encode = template.encoder(tokenizer)
        names = ["policy", *(scorer.model for scorer in self.scorers), measure, f"{beta:g}"]
        self.model = ":".join(names)
        self.tokens = f"{fingerprint(tokenizer.backend_tokenizer.to_str())}-{template.name}"

    def sequences(self, prompt: Prompt, responses: Sequence[str]) -> Sequences:
        """The token ids of responses to one prompt; records without room in the context are left out, not cut.

        Raises:
            RefusedByTemplateError, ChangedByTemplateError: see `synth.encoding`.
        """
        rows = []
        for response in responses:
            tokens = self.encode(prompt, response)
            rows.append(PolicyRow([*tokens.prompt, *tokens.response], len(tokens.prompt)))
        if any(len(row.ids) > self.cutoff_len for row in rows):
            return Sequences([], skipped=f"longer than the model's context of {self.cutoff_len} tokens")
        return Sequences(rows)  # type: ignore[arg-type]

    def rewards(self, items: Mapping[str, PolicyRow], *, done: Collection[str] = ()) -> Iterator[dict[str, float]]:
        """The rewards of sequences by name, those of a record together.

        Args:
            items: RECORD/NUMBER -> its sequence.
            done: names that need no reward.
        """
        by_record: dict[str, dict[str, PolicyRow]] = {}
        for name, row in items.items():
            by_record.setdefault(name.rpartition("/")[0], {})[name] = row
        finished = {*done}
        names = [record for record, rows in by_record.items() if finished >= rows.keys()]
        made = [
            Item(record, first.ids[: first.start], {name: row.ids[row.start :] for name, row in rows.items()})
            for record, rows in by_record.items()
            for first in [next(iter(rows.values()))]
        ]
        readers = [scorer.logps(made, done=names) for scorer in self.scorers]
        for policy, *reference in zip(*readers, strict=True):
            found: dict[str, float] = {}
            before = dict(reference[0]) if reference else {}
            for record, logps in policy:
                for name, values in logps.items():
                    ratio = values.double() - before[record][name].double() if before else values.double()
                    found[name] = self.beta * float(ratio.mean() if self.measure == "mean" else ratio.sum())
            yield found

    @cached_property
    def described(self) -> dict[str, object]:
        """What the rewards are, for the settings of a task."""
        reference = self.scorers[1].model if len(self.scorers) > 1 else None
        return {"reward": self.measure, "reference": reference, "beta": self.beta, "tokens": self.tokens}
