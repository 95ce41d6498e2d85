"""`finepref apo pair`: golden answers ranked above the LLM's samples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from finepref.formats.apo_samples import ApoItem, cut_at_next_turn, golden_above_sample, read_items
from finepref.formats.bad_rows import BadRows
from finepref.formats.files import write_json
from finepref.formats.jsonl import RawRow, write_jsonl
from finepref.formats.problems import Problem
from finepref.formats.records import Ranked, Record, to_row
from finepref.synth.apo.sample import is_query
from finepref.synth.data_sources.job_rows import PAIRS, SUPERVISED, Row, Rows, Wants, answer_of, question, rows_of
from finepref.synth.engines.protocol import request_seed
from finepref.synth.left_out import Ledger, Written


def _golden(record: Record, told: Counter[str]) -> Row | None:
    """The prompt and the good answer of a record; the first answer to a prompt is the golden one."""
    answer = answer_of(record, told)
    if answer is None:
        return None
    asked = question(record, told)
    return Row(asked.fields | {"chosen": answer}, asked.key)


SAMPLES = Wants("apo pair", "samples", lambda row: True, None, (), question)
GOLDEN = Wants(
    "apo pair",
    "golden answers",
    lambda row: is_query(row) and type(row.get("golden", row.get("chosen"))) is str,
    None,
    (*PAIRS, "ranked", "feedback", SUPERVISED),
    _golden,
)


def pair(
    samples: Rows,
    golden: Rows,
    output: Path,
    *,
    take: str = "all",
    cut: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
    bad_rows: BadRows | None = None,
) -> Written:
    """Rank golden answers above samples: `ranked` records of kind apo, and `<stem>.report.json` with what is left out.

    A sample that is empty or equal to the golden answer is left out.

    Args:
        samples: rows {query_id, query, sample_0, ...}.
        golden: rows {query_id, query, golden} or {id?, prompt or messages, chosen}, or the good answers of any layout.
        output: the JSON Lines file to write.
        take: "all" samples, or "one" random sample of each query (the same one for the same seed and query).
        cut: remove what follows "\\nHuman:" in a response.
        allow_missing: leave out ids that are in one of the files only, instead of an error; the report lists them.
        seed: of `take="one"`.
        bad_rows: collects rows with a problem; None = each is an error.

    Raises:
        BadData: there are bad rows that `bad_rows` does not accept; FP067 for ids that are in one of the files only.
    """
    bad = BadRows() if bad_rows is None else bad_rows
    answers = read_items(rows_of(golden, GOLDEN), "golden", bad_rows=bad)
    sampled = read_items(rows_of(samples, SAMPLES), "sample", bad_rows=bad)

    def refuse(item: ApoItem, problems: list[Problem]) -> None:
        bad.refuse(item.file, RawRow(item.line, item.raw, None, []), problems)

    records: list[Ranked] = []
    left_out = Ledger()
    for key, item in sampled.items():
        if (answer := answers.get(key)) is None:
            left_out.add({"query_id": key}, "no golden answer")
        elif answer.asks() != item.asks():
            message = f"the query differs from that of the golden answer in line {answer.line}"
            refuse(item, [Problem(item.file, item.line, "query", "FP067", message)])
        else:
            usable = _usable(key, item, answer, cut, left_out)
            if take == "one" and usable:
                usable = [usable[request_seed(seed, key) % len(usable)]]
            made = [golden_above_sample(key, item, answer, name, file=item.file, cut=cut) for name in usable]
            if problems := [problem for each in made if isinstance(each, list) for problem in each]:
                refuse(item, problems)
            else:
                records += [each for each in made if isinstance(each, Ranked)]
    for key in answers:
        if key not in sampled:
            left_out.add({"query_id": key}, "no samples")
    if not allow_missing:
        of_golden = {"no samples": answers, "no golden answer": sampled}
        for each in left_out.entries:
            if each.reason in of_golden:
                key = str(each.row["query_id"])
                item = of_golden[each.reason][key]
                refuse(item, [Problem(item.file, item.line, "query_id", "FP067", f"{key!a} has {each.reason}")])
        left_out.entries = [each for each in left_out.entries if each.reason not in of_golden]
    bad.settle()
    report: dict[str, object] = {"job": "apo pair", "take": take, "cut": cut, "seed": seed, "records": len(records)}
    report |= {"left_out": dict(left_out.counts), "left_out_samples": left_out.rows}
    write_json(output.with_suffix(".report.json"), report)
    write_jsonl(output, map(to_row, records))
    return Written(len(records), left_out)


def _usable(key: str, item: ApoItem, answer: ApoItem, cut: bool, left_out: Ledger) -> list[str]:
    """The names of the samples that can be ranked below the golden answer; the others are left out.

    Args:
        key: id of the query.
        item: its samples.
        answer: its golden answer.
        cut: see `pair`.
        left_out: takes the other samples.
    """
    golden, *texts = (
        (cut_at_next_turn(text) if cut else text).strip() for text in (answer.texts["golden"], *item.texts.values())
    )
    usable = []
    for name, kept in zip(item.texts, texts, strict=True):
        reason = "empty" if not kept else "equals golden" if kept == golden else ""
        if reason:
            left_out.add({"query_id": key, "sample": name}, reason)
        else:
            usable.append(name)
    return usable
