"""What a run would do with records: train on them, cut them, skip them or refuse them. No host and no model is loaded.

The decisions are those of our data paths on the hosts, by the same functions: the checks of records,
`methods.overlong`, the weights of `methods.pair_rows` and the stage's `weigh`. As on LLaMA-Factory, a response that is
cut loses its end; OpenRLHF keeps the end token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from finepref.formats import records
from finepref.formats.problems import BadData, Problem
from finepref.formats.record_places import record_mark
from finepref.hosts.reading import Sourced
from finepref.hosts.rows import Rows
from finepref.losses.pooling import tokens_read
from finepref.methods import overlong, ranked_rows
from finepref.methods.checks import record_problems
from finepref.methods.draws import error_types_of, good_and_bad, partners, prompt_key
from finepref.methods.options import Options
from finepref.methods.pair_rows import (
    IGNORED,
    NO_RESPONSE,
    SIDES,
    PairRow,
    ResponseRow,
    facts,
    problem_of_record,
    selects,
    weigh_all,
    weigh_chosen,
    weights_and_scores,
)
from finepref.methods.ranked_rows import response_field, scored, without_end
from finepref.methods.stage import Stage
from finepref.synth.encoding import ChangedByTemplateError, Encode, RefusedByTemplateError, Tokens, encoding_problem
from finepref.synth.engines.checkpoint import ToolsRefusedError


class Verdict(NamedTuple):
    """What happens to a record.

    Attributes:
        cut: what is cut of it, see `methods.overlong.Fit`.
        skipped: the reason for which it is left out, "" if it is not.
        problems: what is wrong with it, with file and line; it is refused.
        dropped: name of a response that is left out of it -> the reason.
    """

    cut: str = ""
    skipped: str = ""
    problems: Sequence[Problem] = ()
    dropped: Mapping[str, str] = {}

    @property
    def trained(self) -> bool:
        """Whether it is trained on, as a whole or in part."""
        return not (self.skipped or self.problems)


class Forecast(NamedTuple):
    """What would happen to the records of a run.

    Attributes:
        rows: counts by reason, and the names of skipped records.
        verdicts: one per record.
        problems: what is wrong with the data as a whole, such as a single prompt where two are needed.
    """

    rows: Rows
    verdicts: list[Verdict]
    problems: list[Problem]


class Tokeniser(NamedTuple):
    """What makes the tokens of a run.

    Attributes:
        tokenizer: the model's.
        template: its name as the user knows it, for messages about score files.
        encode: by the template.
        longest: most tokens of a sequence.
        limit: the option that says so, as the user writes it.
        host_rule: how the host cuts, for the policy `host`.
    """

    tokenizer: Any
    template: str
    encode: Encode
    longest: int
    limit: str
    host_rule: overlong.HostRule


def forecast(found: Iterable[Sourced], stage: Stage, options: Options, tokeniser: Tokeniser) -> Forecast:
    """Decide about the records of a run, in their order.

    Args:
        found: the records, of formats that the stage trains on; feedback is joined already, see `join_feedback`,
            or single rows.
        stage, options: the method and its options; `finepref_overlong` is the policy.
        tokeniser: what makes the tokens.
    """
    decide = Decision(stage, options, tokeniser)
    rows, verdicts, kept = Rows(read=0, training=0), [], []
    for source in found:
        verdict = decide(source)
        verdicts.append(verdict)
        rows.read += source.rows
        if verdict.problems:
            rows.rejected[verdict.problems[0].code] += source.rows
        elif verdict.skipped:
            rows.skip(source.record.id, source.place, verdict.skipped, source.rows)
        else:
            kept.append(source.record)
            rows.training += source.rows
            rows.note_cut(verdict.cut, source.rows)
    return Forecast(rows, verdicts, _problems_of_data(kept, stage, options) if kept else [])


def _problems_of_data(kept: Sequence[records.Record], stage: Stage, options: Options) -> list[Problem]:
    """What is wrong with the records that are trained on, as a whole."""
    known: Collection[str] | int
    if stage.shape == "unpaired":
        try:
            partners([(prompt_key(record), record.id) for record in kept])
        except BadData as error:
            return list(error.problems)
        known = {name for record in kept for name in error_types_of(record)}
    elif stage.shape in ranked_rows.SHAPES:
        known = {scored(record)[2] for record in kept}
    else:
        known = sum(bool(getattr(record, "chosen_spans", ())) for record in kept)
    return stage.check_data(known, options) if stage.check_data else []


class Decision:
    """Decides about one record after another. The arguments are those of `forecast`."""

    def __init__(self, stage: Stage, options: Options, tokeniser: Tokeniser) -> None:
        self.stage, self.options, self.tokeniser = stage, options, tokeniser

    def __call__(self, source: Sourced) -> Verdict:
        """What happens to a record."""
        record = source.record
        if found := record_problems(record, self.stage, self.options):
            return Verdict(problems=source.places(found))
        of_shape: Mapping[str, Callable[[Any], Verdict]] = {
            "pair": self._pair,
            "single": self._single,
            "unpaired": self._unpaired,
            "ranked": self._ranked,
            "lists": self._list,
        }
        try:
            verdict = of_shape[self.stage.shape](record)
        except (RefusedByTemplateError, ChangedByTemplateError) as error:
            return Verdict(problems=[encoding_problem(error, file=source.file, line=source.line)])
        return verdict._replace(problems=source.places(verdict.problems))

    def _fit(self, record: records.Record, tokens: Mapping[str, Tokens]) -> tuple[overlong.Fit, list[Problem]]:
        """What is kept of a record, and FP203 if it is too long and must not be."""
        prompt, longest = len(next(iter(tokens.values())).prompt), self.tokeniser.longest
        lengths = [len(each.response) for each in tokens.values()]
        kept = overlong.fit(prompt, lengths, longest, policy=self.options.overlong, host_rule=self.tokeniser.host_rule)
        if not kept.refused:
            return kept, []
        text = overlong.told(prompt, lengths, longest, self.tokeniser.limit)
        return kept, [problem_of_record(record, "prompt", "FP203", text)]

    def _encoded(self, prompt: records.Prompt, texts: Mapping[str, str]) -> dict[str, Tokens]:
        found = {}
        for name, text in texts.items():
            try:
                found[name] = self.tokeniser.encode(prompt, text)
            except ToolsRefusedError as error:
                error.field = error.field or name
                raise
        return found

    def _weighed(self, record: Any, sides: tuple[str, ...]) -> tuple[overlong.Fit, dict[str, Any], list[Problem], str]:
        """What is kept of a record, its tokenised row, its problems, and the reason to skip it."""
        tokens = self._encoded(record.prompt, {side: getattr(record, side) for side in sides})
        kept, problems = self._fit(record, tokens)
        skipped = kept.skipped
        if len(sides) > 1 and not (skipped or problems):
            skipped = overlong.equal([each.response for each in tokens.values()], kept.response)
        prompt = tokens[sides[0]].prompt
        row = facts(record, self.tokeniser.tokenizer, prompt, self.tokeniser.template)
        row["cut"] = kept.cut
        before = kept.stop - kept.start
        for side, each in tokens.items():
            start, offsets = (each.start, each.offsets) if selects(record, side) else (0, [])
            weight, score = weights_and_scores(
                record,
                side,
                len(each.response),
                start,
                offsets,
                tokenizer=self.tokeniser.tokenizer,
                problems=problems,
            )
            row[f"{side}_labels"] = [IGNORED] * before + each.response[: kept.response]
            row[f"{side}_weight"] = [0.0] * before + weight[: kept.response]
            row[f"{side}_score"] = [math.nan] * before + score[: kept.response]
        return kept, row, problems, skipped

    def _pair(self, record: Any) -> Verdict:
        kept, row, problems, skipped = self._weighed(record, SIDES)
        if problems or skipped:
            return Verdict(skipped=skipped, problems=problems)
        try:
            (self.stage.weigh or weigh_all)(PairRow.of(row), self.options, 0)
        except BadData as error:
            return _of_cut(kept, error.problems, "FP214", overlong.NOTHING_SELECTED)
        return Verdict(kept.cut)

    def _single(self, record: Any) -> Verdict:
        kept, row, problems, skipped = self._weighed(record, ("chosen",))
        chosen = ResponseRow(*(row[f"chosen_{name}"] for name in ResponseRow._fields))
        weight: Sequence[float] = ()
        try:
            pair = PairRow(record.id, chosen, NO_RESPONSE, row["mapped"], row["other_prompt"])
            weight = (self.stage.weigh or weigh_chosen)(pair, self.options, 0)
        except BadData as error:
            problems = problems or list(error.problems)
        if problems or skipped:
            return Verdict(skipped=skipped, problems=problems)
        if any(label != IGNORED and w for label, w in zip(chosen.labels, weight, strict=True)):
            return Verdict(kept.cut)
        found = Problem(record_mark(record.id), 0, "chosen_spans", "FP214", "no span has a token with the weight 1")
        return _of_cut(kept, [found], "FP214", overlong.NOTHING_SELECTED)

    def _unpaired(self, record: records.Negatives | records.Feedback) -> Verdict:
        good, bad = good_and_bad(record)
        tokens = self._encoded(record.prompt, good | bad)
        kept, problems = self._fit(record, tokens)
        if problems or kept.skipped:
            return Verdict(skipped=kept.skipped, problems=problems)
        if isinstance(record, records.Feedback):
            return Verdict(kept.cut)
        dropped = {}
        for name in record.negatives:
            responses = [tokens[each].response for each in ("chosen", name)]
            if reason := overlong.equal(responses, kept.response):
                dropped[name] = reason
        if len(dropped) == len(record.negatives):
            return Verdict(skipped=max(dropped.values()))
        if dropped and self.stage.check_record:
            left = dict.fromkeys(sorted(record.negatives.keys() - dropped.keys()), "")
            if self.stage.check_record(records.Negatives(record.id, (), "", left), self.options):
                return Verdict(skipped=overlong.EQUAL_AFTER_CUT)
        return Verdict(kept.cut, dropped=dropped)

    def _list(self, record: records.Record) -> Verdict:
        return self._fitted_list(record)[0]

    def _ranked(self, record: records.Record) -> Verdict:
        verdict, kept, ids = self._fitted_list(record)
        if verdict.trained and self.options.pooling[1] == "eos":
            eos = self.tokeniser.tokenizer.eos_token_id
            ends = [tokens_read(each, eos, "eos") for each in ids]
            if any(end is None or end > kept.response for end in ends):
                return _of_cut(kept, [without_end(record.id, self.options)], "FP222", overlong.END_CUT)
        return verdict

    def _fitted_list(self, record: records.Record) -> tuple[Verdict, overlong.Fit, list[list[int]]]:
        """What happens to a scored list, wherever its rewards are read; what is kept of it; its responses."""
        responses, values, _ = scored(record)
        texts = {response_field(record, index): text for index, text in enumerate(responses)}
        tokens = self._encoded(record.prompt, texts)
        kept, problems = self._fit(record, tokens)
        ids = [each.response for each in tokens.values()]
        left = [each[: kept.response] for each in ids]
        skipped = kept.skipped or ("" if problems else overlong.same(values, ids, left))
        cut = "" if problems or skipped else kept.cut
        return Verdict(cut, skipped, problems), kept, ids


def _of_cut(kept: overlong.Fit, problems: Sequence[Problem], code: str, reason: str) -> Verdict:
    """A record with problems is skipped if only the cut of its responses is to blame, else refused."""
    if overlong.only_the_cut(kept.cut, (problem.code for problem in problems), code):
        return Verdict(skipped=reason)
    return Verdict(problems=problems)
