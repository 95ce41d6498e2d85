"""One sentence is rewritten, the rest of the answer stays; what a gate rejects is tried again, and nothing is asked
twice."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from finepref.cli import app
from finepref.formats.check import check_file
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.journal import JournalChanged
from finepref.synth.seapo.inject import inject
from finepref.synth.seapo.prompts import ERRORS
from finepref.synth.seapo.sentences import sentences
from typer.testing import CliRunner

STEPS = """\
Do this:

1. **Heat:** Boil 2 litres of water in Bern. Wait.
2. Add the salt, because pasta needs it.

```python
salt = 2. Not = 3.
```

| a | b |
|---|---|
| It is. | Not. |

So the pasta is ready after 9 minutes."""
NILE = "The Nile flows north through Egypt. It ends near Alexandria, so ships can reach Cairo from the sea."

COLOURS = {"correctness": "purple", "logic": "green", "hallucination": "orange"}


class Scripted:
    """An engine whose answer is made of the sentence and the number of the try; it notes (id, sentence, temperature).

    The word purple in an answer becomes another colour for another error type; the engine stops after `most` answers.
    """

    model = "scripted"

    def __init__(self, answer: Callable[[str, int], str | None], *, most: int = 10**6) -> None:
        self.answer, self.most = answer, most
        self.asked: list[tuple[str, str, float]] = []
        self.tries: dict[str, int] = {}

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            sentence = request.messages[-1].content.rpartition("\n")[2]
            self.asked.append((request.id, sentence, request.temperature))
            number = self.tries[request.id] = self.tries.get(request.id, 0) + 1
            text = self.answer(sentence, number)
            text = text and text.replace("purple", COLOURS[request.id.rpartition("/")[2].partition("-")[0]])
            yield [Completion(request.id, error="HTTP 503") if text is None else Completion(request.id, text, "stop")]


def wrong(sentence: str, number: int = 1) -> str:
    """The sentence with its longest word replaced."""
    return sentence.replace(max(sentence.rstrip(".").split(), key=len), "purple", 1)


def write(path: Path, answers: Iterable[str]) -> Path:
    rows = [{"id": f"r{i}", "prompt": f"Question {i}?", "chosen": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", [STEPS, NILE])


def test_all_but_one_sentence_is_kept_and_the_span_is_in_it(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(wrong)
    outcome = inject(source, output, engine=engine, by="sentence")
    assert (outcome.written, outcome.negatives) == (2, dict.fromkeys(ERRORS, 2))
    for row in read(output):
        for name, text in row["negatives"].items():
            (sentence,) = [asked for key, asked, _ in engine.asked if key == f"{row['id']}/{name}"]
            begin = row["chosen"].index(sentence)
            new = wrong(sentence).replace("purple", COLOURS[name])
            assert text == row["chosen"][:begin] + new + row["chosen"][begin + len(sentence) :]
            (span,) = row["spans"][name]
            assert begin <= span["start"] < span["end"] <= begin + len(new)
            assert text[span["start"] : span["end"]] in COLOURS[name]
    assert {temperature for *_, temperature in engine.asked} == {0}
    assert check_file(output, "negatives").total_problems == 0


def test_a_rejected_sentence_is_followed_by_the_next_one_at_the_temperature_of_retries(source, tmp_path):
    engine = Scripted(lambda sentence, number: sentence if number < 3 else wrong(sentence))
    outcome = inject(write(source, [NILE]), tmp_path / "out.jsonl", engine=engine, by="sentence", types=["logic"])
    first, second = (each.text for each in sentences(NILE))
    assert [(asked, temperature) for _, asked, temperature in engine.asked] == [
        (second, 0),
        (second, 0.7),
        (second, 0.7),
    ]
    assert [*outcome.tries] == [{"asked": 1, "usable": 0}] * 2 + [{"asked": 1, "usable": 1}]
    engine = Scripted(lambda sentence, number: sentence)
    outcome = inject(
        source,
        tmp_path / "two.jsonl",
        engine=engine,
        by="sentence",
        types=["hallucination"],
        retries=4,
        temperature=0.2,
    )
    assert sorted({asked for _, asked, _ in engine.asked}) == sorted([first, second])
    assert [temperature for *_, temperature in engine.asked] == [0.2, 0.7, 0.7, 0.7, 0.7]
    assert all(left[1] != right[1] for left, right in zip(engine.asked, engine.asked[1:], strict=False))
    assert outcome.rejected.counts == {"unchanged": 5}
    assert [each.row.get("try") for each in outcome.rejected.entries] == [None, 2, 3, 4, 5]


def test_a_kill_in_any_try_and_a_resume_give_the_same_files_and_ask_nothing_twice(source, tmp_path):
    def answer(sentence: str, number: int) -> str:
        return wrong(sentence) if len(sentence) % 3 == 0 else sentence

    options = {"by": "sentence", "work_dir": tmp_path / "work"}
    whole = Scripted(answer)
    inject(source, tmp_path / "out.jsonl", engine=whole, by="sentence", work_dir=tmp_path / "calm")
    suffixes = (".jsonl", ".report.json", ".report.md")
    expected = [(tmp_path / "out").with_suffix(suffix).read_bytes() for suffix in suffixes]
    assert len({*whole.tries.values()}) > 1, "some were tried more often than others"
    asked = []
    for _ in range(len(whole.asked)):
        engine = Scripted(answer, most=1)
        with contextlib.suppress(KeyboardInterrupt):
            inject(source, tmp_path / "out.jsonl", engine=engine, **options)
        asked += engine.asked
    assert asked == whole.asked
    again = Scripted(answer)
    inject(source, tmp_path / "out.jsonl", engine=again, **options)
    assert again.asked == []
    assert [(tmp_path / "out").with_suffix(suffix).read_bytes() for suffix in suffixes] == expected


def test_wider_gates_ask_nothing_and_narrower_ones_only_for_what_they_reject(source, tmp_path):
    output = tmp_path / "out.jsonl"
    options = {"by": "sentence", "types": ["correctness"], "retries": 1}
    inject(source, output, engine=Scripted(lambda sentence, number: sentence.replace(".", " plainly.")), **options)
    engine = Scripted(wrong)
    outcome = inject(source, output, engine=engine, **options, change="any", max_length_ratio=9)
    assert (outcome.negatives, engine.asked) == ({"correctness": 2}, [])
    engine = Scripted(lambda sentence, number: sentence.replace(".", ", as Dr. Marsh said in 1987."))
    outcome = inject(source, output, engine=engine, **options, change="facts", max_length_ratio=9)
    assert [key for key, *_ in engine.asked] == ["r0/correctness", "r1/correctness"]
    assert outcome.negatives == {"correctness": 2}
    assert outcome.examples["paraphrase"] == "changed: words; --change facts"
    engine = Scripted(lambda sentence, number: sentence)
    outcome = inject(source, output, engine=engine, **(options | {"retries": 3}), change="facts", max_edit=0.01)
    assert len(engine.asked) == 4, "further tries go on from those that are there"


def test_what_the_engine_fails_on_is_asked_again_by_the_next_run_and_not_by_a_retry(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(lambda sentence, number: None)
    outcome = inject(source, output, engine=engine, by="sentence", types=["logic"])
    assert (len(engine.asked), outcome.rejected.unanswered) == (2, 2)
    engine = Scripted(wrong)
    outcome = inject(source, output, engine=engine, by="sentence", types=["logic"])
    assert (len(engine.asked), outcome.rejected.unanswered, outcome.written) == (2, 0, 2)


def test_an_answer_without_a_sentence_says_so_and_is_not_asked_for(source, tmp_path):
    engine = Scripted(wrong)
    outcome = inject(
        write(source, ["```\nx = 1. Y = 2.\n```", "| a |\n|---|\n| b. |"]),
        tmp_path / "o.jsonl",
        engine=engine,
        by="sentence",
    )
    assert (engine.asked, outcome.written, outcome.failed) == ([], 0, 2)
    assert outcome.rejected.counts == {"no_sentence": 6}


def test_another_choice_of_sentences_is_another_job(source, tmp_path, monkeypatch):
    output = tmp_path / "out.jsonl"
    inject(source, output, engine=Scripted(wrong), by="sentence")
    monkeypatch.setattr("finepref.synth.seapo.inject.sentences", lambda text: sentences(text)[:1])
    with pytest.raises(JournalChanged) as caught:
        inject(source, output, engine=Scripted(wrong), by="sentence")
    assert [*caught.value.fields] == ["sampling"]
    with pytest.raises(JournalChanged) as caught:
        inject(source, output, engine=Scripted(wrong), by="answer")
    assert "prompt_version" in caught.value.fields


def test_variants_by_sentence_begin_with_other_sentences_and_need_no_temperature(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(wrong)
    inject(write(source, [NILE]), output, engine=engine, by="sentence", types=["hallucination"], count=2)
    (row,) = read(output)
    assert len({*row["negatives"].values()}) == 2
    assert {asked for _, asked, _ in engine.asked} == {each.text for each in sentences(NILE)}


def test_the_same_text_for_two_types_is_tried_again_for_the_second(source, tmp_path):
    one = "The old bridge in Bern is long."
    engine = Scripted(lambda sentence, number: sentence.replace("long", "short" if number == 1 else "blue"))
    outcome = inject(
        write(source, [one]), tmp_path / "o.jsonl", engine=engine, by="sentence", types=["correctness", "logic"]
    )
    assert outcome.rejected.counts == {"same_as_another": 1}
    (row,) = read(tmp_path / "o.jsonl")
    assert row["negatives"] == {"correctness": one.replace("long", "short"), "logic": one.replace("long", "blue")}


class Checking(Scripted):
    """Its check confirms no error in the first text of a record."""

    def generate(self, requests: Iterable[Request]) -> Iterator[list[Completion]]:
        for request in requests:
            if "### Verdict" in request.messages[0].content:
                verdict = '{"pass": false}' if self.tries[request.id] == 1 else '{"pass": true}'
                yield [Completion(request.id, verdict, "stop")]
            else:
                yield from super().generate([request])


def test_an_error_that_the_check_does_not_confirm_is_tried_again(source, tmp_path):
    engine = Checking(wrong)
    outcome = inject(source, tmp_path / "out.jsonl", engine=engine, by="sentence", types=["hallucination"], check=True)
    assert outcome.rejected.counts == {"no_error": 2}
    assert (outcome.written, len(engine.asked)) == (2, 4)


@pytest.mark.parametrize("options", [{"by": "sentence"}, {"retries": 1}])
def test_rules_take_no_sentences_and_no_retries(source, tmp_path, options):
    with pytest.raises(ValueError, match="sentences and retries are for a model"):
        inject(source, tmp_path / "out.jsonl", engine=None, **options)


def test_a_retry_at_temperature_0_and_another_unit_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="a retry needs a temperature above 0"):
        inject(source, tmp_path / "out.jsonl", engine=Scripted(wrong), retries=1, retry_temperature=0)
    with pytest.raises(ValueError, match="rewrites the answer or a sentence; got 'word'"):
        inject(source, tmp_path / "out.jsonl", engine=Scripted(wrong), by="word")


def test_the_report_shows_yield_reasons_and_originals_beside_what_they_became(source, tmp_path):
    output = tmp_path / "out.jsonl"
    engine = Scripted(lambda sentence, number: sentence if number == 1 else sentence.replace(".", ", <b>| purple."))
    inject(source, output, engine=engine, by="sentence", retries=1)
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert (report["by"], report["retries"], report["records"]) == ("sentence", 1, 2)
    text = (tmp_path / "out.report.md").read_text()
    assert "| usable | 2 of 2 (100%) | 2 of 2 (100%) | 2 of 2 (100%) |" in text
    assert "| unchanged | 2 | 2 | 2 |" in text
    assert "| 2 | 6 | 6 |" in text, "in the second try all 6 texts"
    assert ", &lt;b&gt;\\| orange. | words |" in text
    assert "<b>" not in text


def test_the_command_prints_the_yield_and_fails_without_any(source, tmp_path, monkeypatch):
    monkeypatch.setattr("finepref.commands.seapo.engine_of", lambda *_: Scripted(lambda sentence, number: sentence))
    words = ["seapo", "inject", str(source), "--output", str(tmp_path / "out.jsonl"), "--by", "sentence"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 1
    assert found.stdout.count("0 of 2 (0%)") == 3
    assert "usable by try: 0 of 6, 0 of 6, 0 of 6, 0 of 6" in found.stdout
    assert "no row is left" in found.stderr
