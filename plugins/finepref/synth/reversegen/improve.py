"""`finepref reversegen improve`: training records for the target, from the instructions that it failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from finepref.formats.bad_rows import BadRows
from finepref.formats.choices import options_of
from finepref.formats.files import write_json
from finepref.formats.jsonl import write_jsonl
from finepref.synth.data_sources.job_rows import Rows, rows_of
from finepref.synth.dedup import normalised
from finepref.synth.judges.letters import letter_of
from finepref.synth.left_out import Ledger, Written
from finepref.synth.reversegen.given_answers import given_answer
from finepref.synth.reversegen.instructions import INSTRUCTIONS, Row, read_instructions, read_judged
from finepref.synth.reversegen.templates import check_template, filled


def improve(
    paths: Sequence[Path],
    output: Path,
    *,
    answers: Sequence[Path] = (),
    exclude: Rows | None = None,
    ask: str = "{prompt}",
    template: str = "{answer}",
    solved_template: str = "",
    bad_rows: BadRows | None = None,
) -> Written:
    """Write training records {id, prompt, response} for the target, and a report with the rows left out, by reason.

    Args:
        paths: judged proposals, one file per round.
        output: the JSON Lines file to write; the report is `<stem>.report.json`.
        answers: judged rows of a better model; a response is a good answer if its label is true.
        exclude: rows of any layout whose prompts must not be in the training data.
        ask, template, solved_template: see `improvements`.
        bad_rows: see `read_judged`; one collector for all files.

    Raises:
        BadData: a row is not a judged proposal, or not an answer.
        ValueError: a template has unknown fields, or an id occurs twice.
    """
    check_template(ask, "prompt")
    for text in filter(None, (template, solved_template)):
        check_template(text, optional=("answer", "letter", "majority"))
    judged = [row for path in paths for row in read_judged(path, ("id", "prompt"), bad_rows=bad_rows)]
    if repeated := [name for name, count in Counter(str(row["id"]) for row in judged).items() if count > 1]:
        raise ValueError(f"the id {repeated[0]} occurs twice: each round needs its own seed")
    found = [row for path in answers for row in read_judged(path, ("id", "response"), bad_rows=bad_rows)]
    good = {str(row["id"]): str(row["response"]) for row in found if row["label"] is True}
    held_out = [] if exclude is None else read_instructions(rows_of(exclude, INSTRUCTIONS), bad_rows=bad_rows)
    barred = [each.prompt[-1].content for each in held_out]
    made = [*improvements(judged, good, exclude=barred, ask=ask, template=template, solved_template=solved_template)]
    left_out = Ledger()
    for reason, row in made:
        if reason:
            left_out.add(row, reason)
    write_json(
        output.with_suffix(".report.json"),
        {"job": "reversegen improve", "judged": len(judged), "left_out": dict(left_out.counts)},
    )
    return Written(write_jsonl(output, (row for reason, row in made if not reason)), left_out)


def improvements(
    judged: Iterable[Row],
    answers: Mapping[str, str],
    *,
    exclude: Iterable[str] = (),
    ask: str = "{prompt}",
    template: str = "{answer}",
    solved_template: str = "",
) -> Iterator[tuple[str, dict[str, object]]]:
    """For each judged proposal, "" and its training record for the target, or a reason and the row that is left out.

    With the judge `entropy` a label says that the target was certain. Where it is known whether it was also right (the
    row has an `answer`), only a certain and right answer counts as solved: R-Tuning's wording (arXiv 2311.09677) is
    then `template` "{answer} I am unsure." and `solved_template` "{answer} I am sure.".

    Args:
        judged: proposals with `label`; those that the target solved are left out without a `solved_template`.
        answers: good answers by id; otherwise a row's own `chosen` is used.
        exclude: instructions that must not be in the training data, such as those of the evaluation.
        ask: the prompt for the target, with {prompt}.
        template: of the response, with {answer} (the good one), {letter} (the right one of a multiple-choice question)
            or {majority} (the target's own: the most probable letter with its option, or the most frequent response).
        solved_template: the same for instructions that the target solved.
    """
    known, barred = set[str](), {normalised(text) for text in exclude}
    for row in judged:
        given, options = given_answer(row), options_of(row)
        solved = bool(row["label"]) and not (given and given.right is False)
        wanted = solved_template if solved else template
        prompt, row_id = str(row["prompt"]), str(row["id"])
        if not wanted:
            yield "solved", dict(row)
            continue
        good = answers.get(row_id, row.get("chosen"))
        fields = {"answer": good, "letter": None, "majority": given.text if given else None}
        if options is not None:
            right = letter_of(str(good), options).letter if good is not None else ""
            fields["letter"] = right or None
            fields["majority"] = f"{given.text}. {options[given.text]}" if given and given.text in options else None
        if normalised(prompt) in barred:
            yield "excluded", dict(row)
        elif any(value is None and f"{{{name}}}" in wanted for name, value in fields.items()):
            yield "without a good answer", dict(row)
        elif normalised(prompt) in known:
            yield "proposed before", dict(row)
        else:
            known.add(normalised(prompt))
            yield (
                "",
                {"id": row_id, "prompt": filled(ask, prompt=prompt), "response": filled(wanted, **fields)},
            )
