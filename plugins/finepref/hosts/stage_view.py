"""Records with the tokens that a stage would train on, by the code that trains.

No host and no model is loaded, only a tokenizer; without one a response is looked at by characters. What needs a host
is its template: `commands.sequence_options.template_of` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from finepref.formats.problems import BadData
from finepref.hosts.forecast import Decision, Tokeniser, Verdict
from finepref.hosts.reading import Sourced
from finepref.hosts.token_view import (
    SEED,
    SIGNS,
    TOKENS,
    Entry,
    Response,
    by_characters,
    of_data,
    token_texts,
    weighed,
)
from finepref.losses.pooling import tokens_read
from finepref.methods.draws import good_and_bad
from finepref.methods.options import Options
from finepref.methods.pair_rows import IGNORED, NO_RESPONSE, SIDES, PairRow, ResponseRow, weigh_chosen
from finepref.methods.ranked_rows import response_field, scored
from finepref.methods.stage import Stage
from finepref.synth.encoding import ChangedByTemplateError
from finepref.synth.engines.checkpoint import RefusedByTemplateError


class StageView:
    """Entries with the weight that a stage gives to each token.

    Args:
        stage, options: the stage and its options.
        tokeniser: what makes the tokens; None: characters, which only stages on pairs have.
        seed: of the run, for random selections.
    """

    def __init__(self, stage: Stage, options: Options, tokeniser: Tokeniser | None, seed: int = SEED) -> None:
        self.stage, self.options, self.seed = stage, options, seed
        self.tokeniser = tokeniser
        if tokeniser is None and stage.shape != "pair":
            raise ValueError(f"what stage {stage.name} trains on depends on tokens: give the model with --model")
        self.decide = None if tokeniser is None else _Tokens(stage, options, tokeniser)

    def entry(self, source: Sourced) -> Entry:
        """A record with its weights; if it cannot be trained on, its texts and why."""
        if self.decide is None:
            return self._characters(source)
        verdict = self.decide(source)
        notes = _told(verdict)
        try:
            responses = self.decide.responses(source.record, self.seed)
        except BadData:  # which the verdict tells
            responses = []
        except (RefusedByTemplateError, ChangedByTemplateError):
            responses = []
        plain = of_data(source, notes, verdict.problems)
        return plain._replace(responses=responses) if responses else plain

    def _characters(self, source: Sourced) -> Entry:
        row, texts = by_characters(source.record)
        plain = of_data(source)
        try:
            weights = weighed(row, self.stage, self.options, self.seed)
        except BadData as error:
            return plain._replace(problems=source.places(error.problems))
        made = []
        for response, weight in zip(plain.responses, weights, strict=True):
            side = response.name
            values = {"weight": weight, **_data_values(row, side)}
            if row[f"{side}_scored"]:
                made.append(response._replace(texts=texts[side], values=values, unit=TOKENS))
            else:
                made.append(_runs(response._replace(texts=texts[side], values=values)))
        return plain._replace(responses=made)


def _told(verdict: Verdict) -> list[str]:
    """What happens to a record, beside its problems."""
    notes = [f"skipped: {verdict.skipped}"] if verdict.skipped else []
    notes += [f"cut to fit cutoff_len: the {part}" for part in verdict.cut.split(",") if part]
    return notes + [f"{name} is left out: {reason}" for name, reason in verdict.dropped.items()]


def _data_values(row: Mapping[str, Any], side: str) -> dict[str, list[float]]:
    """What the data gives to each token of a response, prompt included."""
    values = {"span": row[f"{side}_weight"]} if row[f"{side}_annotated"] else {}
    if row[f"{side}_scored"]:
        values["contrast" if row["contrast"] else "reward"] = row[f"{side}_score"]
    return values


def _runs(response: Response) -> Response:
    """A response by characters with equal neighbours as one piece."""
    texts: list[str] = []
    values: dict[str, list[float]] = {name: [] for name in response.values}
    before: tuple[float, ...] | None = None
    for i, text in enumerate(response.texts):
        here = tuple(each[i] for each in response.values.values())
        if here == before:
            texts[-1] += text
            continue
        texts.append(text)
        for name, value in zip(values, here, strict=True):
            values[name].append(value)
        before = here
    return response._replace(texts=texts, values=values)


class _Tokens(Decision):
    """The decision about a record, with the tokens that it is made on."""

    def responses(self, record: Any, seed: int) -> list[Response]:
        """The responses as they are trained on, [] if the record is left out.

        Raises:
            BadData: the stage cannot train on it.
            RefusedByTemplateError, ChangedByTemplateError: the template cannot write it.
        """
        if self.stage.shape in ("pair", "single"):
            return self._weights(record, seed)
        return self._whole(record)

    def _weights(self, record: Any, seed: int) -> list[Response]:
        single = self.stage.shape == "single"
        sides = SIDES[:1] if single else SIDES
        kept, row, _, skipped = self._weighed(record, sides)
        if skipped or kept.refused:
            return []
        weights: Sequence[Sequence[float]]
        try:
            if single:
                chosen = ResponseRow(*(row[f"chosen_{name}"] for name in ResponseRow._fields))
                pair = PairRow(record.id, chosen, NO_RESPONSE, row["mapped"], row["other_prompt"])
                weights = [(self.stage.weigh or weigh_chosen)(pair, self.options, seed)]
            else:
                weights = weighed(row, self.stage, self.options, seed)
        except BadData:
            weights = []
        made = []
        for number, side in enumerate(sides):
            ids, labels = row[f"{side}_labels"], row[f"{side}_labels"]
            values = ({"weight": weights[number]} if weights else {}) | _data_values(row, side)
            first = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
            texts = token_texts(self.tokeniser.tokenizer, ids[first:])
            cut = {name: list(each)[first:] for name, each in values.items()}
            made.append(Response(side, "", SIGNS[side], TOKENS, texts, cut))
        return made

    def _whole(self, record: Any) -> list[Response]:
        """Responses of which every token counts, or the one at which a reward is read."""
        if self.stage.shape == "unpaired":
            good, bad = good_and_bad(record)
            drawn = [name for name in bad if self.options.error_types is None or name in self.options.error_types]
            about = {name: _NEVER if name not in drawn else _DRAWN if len(drawn) > 1 else "" for name in bad}
            named = {name: (text, about.get(name, "")) for name, text in (good | bad).items()}
            signs = {name: 1 if name in good else -1 for name in named}
        else:
            texts, values, _ = scored(record)
            named = {
                response_field(record, i): (text, f"score {value:g}")
                for i, (text, value) in enumerate(zip(texts, values, strict=True))
            }
            signs = dict.fromkeys(named, 0)
        tokens = self._encoded(record.prompt, {name: text for name, (text, _) in named.items()})
        kept, _ = self._fit(record, tokens)
        if kept.skipped or kept.refused:
            return []
        made = []
        for name, each in tokens.items():
            ids = each.response[: kept.response]
            said = named[name][1]
            weight = [0.0 if said == _NEVER else 1.0] * len(ids)
            how = self.options.pooling[1] if self.stage.shape == "ranked" else ""
            if how in ("last", "eos"):
                read = tokens_read(each.response, self.tokeniser.tokenizer.eos_token_id, how)
                at = -1 if read is None else min(read, kept.response) - 1
                weight = [float(i == at) for i in range(len(ids))]
                said += f"; the reward is read at the {'end token' if how == 'eos' else 'last token of the text'}"
            texts = token_texts(self.tokeniser.tokenizer, ids)
            made.append(Response(name, said, signs[name], TOKENS, texts, {"weight": weight}))
        return made


_DRAWN = "one of these is drawn in each epoch"
_NEVER = "of a type that the options leave out"


def looked_at(sources: Iterable[Sourced | Entry], view: StageView) -> Iterator[Entry]:
    """Entries of records by a stage; what is an entry already stays as it is."""
    return (source if isinstance(source, Entry) else view.entry(source) for source in sources)
