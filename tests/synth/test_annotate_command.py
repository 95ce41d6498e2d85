"""`finepref annotate`: steps and their journal, the server that its page speaks to, the files, and merging them.

What the page does is tested in a browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from annotating import Client, annotator
from finepref.cli import app
from finepref.formats.bad_rows import BadRows
from finepref.formats.marks import Mark
from finepref.formats.problems import BadData
from finepref.hosts.annotate_page import MAX_BODY, Annotator
from finepref.synth.annotation import Annotation, read_items, unmarked_path
from finepref.synth.data_sources.inputs import find_inputs
from finepref.synth.journal import JournalBusy
from typer.testing import CliRunner

TEXT = "\U0001f999 It is Lyon.\r\nIt has e\u0301clairs."
PAIR = {"id": "p", "prompt": "?", "chosen": "It is Paris.", "rejected": TEXT}
SUM = {"id": "sum", "prompt": "17 + 25?", "chosen": "It is 42.", "rejected": "It is 43.", "margin": 2.0}
SPANS = {"id": "s", "prompt": "?", "chosen": "yes", "rejected": "not so", "rejected_spans": [[0, 3, 0.5]]}


@pytest.fixture
def opened(tmp_path):
    """The annotation of files, as the command opens it."""

    def run(*paths):
        inputs = [each for path in paths for each in find_inputs(str(path), "", tmp_path, {}, None)]
        return Annotation(read_items(inputs, BadRows())[0], tmp_path / "marks.work")

    return run


@pytest.fixture
def written(tmp_path):
    """The rows that an annotation writes, those without spans, and the outcome."""

    def run(annotation):
        output = tmp_path / "marks.jsonl"
        outcome = annotation.write(output)
        read = lambda file: [*map(json.loads, file.read_text().splitlines())] if file.exists() else []  # noqa: E731
        return read(output), read(unmarked_path(output)), outcome

    return run


def invoke(*words, code=0):
    outcome = CliRunner().invoke(app, ["annotate", *map(str, words)])
    assert outcome.exit_code == code, outcome.output
    return outcome.output


def test_marks_are_spans_of_the_characters_of_python(opened, rows, written):
    with opened(rows(PAIR)) as annotation:
        for part, weight in (("Lyon", 0.5), ("\U0001f999", 1.0), ("e\u0301clairs", 1.0)):
            start = TEXT.index(part)
            annotation.mark(0, "rejected", Mark(start, start + len(part), "bad", weight))
        (row,), unmarked, outcome = written(annotation)
    found = [(TEXT[span["start"] : span["end"]], span.get("weight", 1)) for span in row["rejected_spans"]]
    assert found == [("\U0001f999", 1), ("Lyon", 0.5), ("e\u0301clairs", 1)]
    assert (row["rejected"], unmarked, outcome.rows) == (TEXT, [], 1)


def test_every_record_is_in_one_file_or_counted(opened, rows, written):
    """Marked; the data's spans; looked at; all of it bad; not looked at; begun and taken back."""
    others = [PAIR | {"id": name, "prompt": name} for name in ("seen", "nothing", "waits", "undone")]
    with opened(rows(SUM, SPANS, *others)) as annotation:
        annotation.mark(0, "rejected", Mark(6, 8, "bad"))
        annotation.finish(2)
        annotation.mark(3, "chosen", Mark(0, 12, "bad"))
        annotation.mark(5, "chosen", Mark(0, 2, "good"))
        annotation.undo()
        found, unmarked, outcome = written(annotation)
        assert annotation.waiting() == 3  # `s` has spans that nobody has confirmed
    assert [row["id"] for row in found] == ["sum", "s"]
    assert found[1]["rejected_spans"] == [{"start": 0, "end": 3, "weight": 0.5}]
    assert [row.get("annotated") for row in found] == [None, False]
    assert [row["id"] for row in unmarked] == ["seen", "nothing"]
    assert (outcome.given, outcome.unmarked, outcome.waiting) == (1, 2, 2)
    assert outcome.left_out == {"nothing left to train on": 1}


def test_marks_against_a_response_are_spans_of_the_rest_and_kept_beside_them(opened, rows, written):
    with opened(rows(PAIR)) as annotation:
        annotation.mark(0, "chosen", Mark(6, 11, "bad", 0.5))
        (row,), *_ = written(annotation)
    assert row["chosen_spans"] == [{"start": 0, "end": 6}, {"start": 11, "end": 12}]
    assert row["marks"] == {"chosen": [[6, 11, "bad", 0.5]], "rejected": []}


def test_a_side_that_no_longer_fits_the_spans_is_left_out_and_counted(opened, rows, written):
    with opened(rows(SPANS | {"side": -1}, SPANS | {"id": "t", "prompt": "!", "side": -1})) as annotation:
        annotation.mark(0, "chosen", Mark(0, 3, "good"))
        annotation.finish(1)
        found, _, outcome = written(annotation)
    assert [row.get("side", 0) for row in found] == [0, -1]
    assert outcome.left_out == {"without the `side` of the data": 1}


def test_reopening_resumes_also_with_another_file_of_the_set(opened, rows, written):
    first, second = rows(PAIR), rows(SUM, name="more.jsonl")
    with opened(first) as annotation:
        annotation.mark(0, "chosen", Mark(0, 2, "good"))
    with opened(first, second) as annotation:
        assert annotation.state(0).marks["chosen"] == (Mark(0, 2, "good"),)
        annotation.finish(1)
    with opened(second) as annotation:
        assert annotation.waiting() == 0
        found, unmarked, outcome = written(annotation)
    assert (found, [row["id"] for row in unmarked], outcome.elsewhere) == ([], ["sum"], 1)


def test_every_step_can_be_undone_also_those_of_an_earlier_session(opened, rows):
    file, draw, states = rows(PAIR, SPANS), random.Random(0), []
    with opened(file) as annotation:
        for _ in range(12):
            states.append([annotation.state(0), annotation.state(1)])
            before = annotation.steps
            while annotation.steps == before:  # a step that changes nothing is none
                number, start = draw.randrange(2), draw.randrange(3)
                act = draw.choice(["mark", "clear", "finish"])
                if act == "mark":
                    kind, weight = draw.choice(["good", "bad"]), draw.choice([0.5, 1.0])
                    annotation.mark(number, "rejected", Mark(start, start + 2, kind, weight))
                elif act == "clear":
                    annotation.clear(number, "rejected", start, start + 1)
                else:
                    annotation.finish(number)
        annotation.undo()
        assert [annotation.state(0), annotation.state(1)] == states.pop()
    while states:
        with opened(file) as annotation:
            annotation.undo()
            assert [annotation.state(0), annotation.state(1)] == states.pop()
    with opened(file) as annotation:
        assert annotation.undo() is None


def test_other_texts_than_those_that_were_annotated_are_refused(opened, rows):
    with opened(rows(PAIR)) as annotation:
        annotation.mark(0, "chosen", Mark(0, 2, "good"))
    with pytest.raises(BadData, match="FP321"), opened(rows(PAIR | {"chosen": "Paris."})):
        pass
    with opened(rows(PAIR)) as annotation:  # and the folder is free again
        assert annotation.steps == 1


def test_one_annotator_at_a_time_works_in_a_folder(opened, rows):
    with opened(rows(PAIR)), pytest.raises(JournalBusy), opened(rows(PAIR)):
        pass


@pytest.fixture
def served(opened, rows, tmp_path):
    """The annotator's server, as the command starts it, and a client."""
    with opened(rows(PAIR, SUM, SPANS)) as annotation:
        window = {"title": "rows", "about": ["some"], "first": 0, "count": 2}
        with Annotator(annotation, tmp_path / "marks.jsonl", **window) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield SimpleNamespace(annotation=annotation, server=server, client=Client(server.url))
            finally:
                server.shutdown()
                thread.join()


def test_the_page_has_the_records_of_its_window_with_their_marks(served):
    data = served.client.data()
    assert [record["id"] for record in data["records"]] == ["p", "sum"]
    assert data["records"][0]["responses"][1]["text"] == TEXT
    assert served.server.server_address[0] == "127.0.0.1"
    served.client.mark(0, "chosen", 6, 11, "good", 0.5)
    record = served.client.data()["records"][0]
    assert record["marks"] == {"chosen": [[6, 11, "good", 0.5]], "rejected": []}
    assert (record["open"], record["done"]) == (False, False)


def test_the_policy_names_what_may_run_and_nothing_is_kept_or_framed(served):
    text = served.client.page()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*)"', text)
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        assert (
            parts.pop(f"{kind}-src")
            == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        )
    assert parts.pop("connect-src") == "'self'"
    assert {*parts.values()} == {"'none'"}
    assert not re.search("https?:|innerHTML|outerHTML|insertAdjacent|document.write|eval", text)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("{path}", {"Host": "evil.example"}),
        ("{path}", {"Host": "evil.example:{port}"}),
        ("{path}", {"Host": "127.0.0.1"}),
        ("{path}", {"Host": ""}),
        ("/", {}),
        ("/favicon.ico", {}),
        ("/" + "A" * 43 + "/", {}),
        ("{path}".upper(), {}),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_with_another_host_or_without_the_token_are_refused(served, method, path, headers):
    client = served.client
    names = {"path": client.path, "PATH": client.path.swapcase(), "port": client.host.rpartition(":")[2]}
    headers = {"Origin": f"http://{client.host}"} | {name: value.format(**names) for name, value in headers.items()}
    asked = path.format(**names) + ("step" if method == "POST" and path != "/favicon.ico" else "")
    body = json.dumps({"do": "done", "record": 0, "steps": 0}).encode() if method == "POST" else b""
    status, answer = client.request(method, asked, body, **headers)
    assert status == 403
    assert served.server.token.encode() not in answer
    assert served.annotation.steps == 0


@pytest.mark.parametrize("origin", ["", "null", "https://evil.example", "http://127.0.0.1", "http://localhost:{port}"])
def test_steps_of_another_origin_are_refused(served, origin):
    client = served.client
    body = json.dumps({"do": "done", "record": 0, "steps": 0}).encode()
    headers = {"Origin": origin.format(port=client.host.rpartition(":")[2])}
    assert client.request("POST", f"{client.path}step", body, **headers)[0] == 403
    assert served.annotation.steps == 0
    assert client.send(do="done", record=0)[0] == 200  # the same from the page itself


def test_the_address_of_a_tunnel_with_the_same_port_is_answered(served):
    host = served.client.host.replace("127.0.0.1", "localhost")
    assert served.client.request("GET", served.client.path, Host=host)[0] == 200


@pytest.mark.parametrize(
    ("step", "status", "text"),
    [
        (
            {"do": "mark", "record": 0, "side": "chosen", "start": 6, "end": 13, "kind": "bad", "weight": 1},
            400,
            "FP322",
        ),
        (
            {"do": "mark", "record": 0, "side": "chosen", "start": 6, "end": 8, "kind": "bad", "weight": -1},
            400,
            "FP323",
        ),
        ({"do": "mark", "record": 0, "side": "chosen", "start": 6, "end": 8, "kind": "ok", "weight": 1}, 400, "FP326"),
        ({"do": "mark", "record": 0, "side": "prompt", "start": 0, "end": 1}, 400, "not understood"),
        ({"do": "clear", "record": 2, "side": "chosen", "start": 0, "end": 1}, 400, "no record 2"),
        ({"do": "done", "record": -1}, 400, "no record -1"),
        ({"do": "fly", "record": 0}, 400, "not understood"),
        ({"do": "done", "record": 0, "steps": 7}, 409, "load this page again"),
        ({"do": "x" * MAX_BODY}, 413, "bytes at most"),
    ],
)
def test_a_step_that_cannot_be_is_refused_and_changes_nothing(served, step, status, text):
    found, answer = served.client.send(**step)
    assert (found, text in answer["error"]) == (status, True), answer
    assert served.annotation.steps == 0


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{", b"[" * MAX_BODY])
def test_what_is_no_step_is_refused(served, body):
    client = served.client
    assert client.request("POST", f"{client.path}step", body, Origin=f"http://{client.host}")[0] == 400


def test_two_pages_of_one_annotator_do_not_undo_each_other(served):
    other = Client(served.client.url)
    served.client.mark(0, "chosen", 0, 2)
    status, answer = other.send(do="undo")
    assert (status, "another page" in answer["error"]) == (409, True)
    assert Client(served.client.url).send(do="undo")[1]["told"] == "Undone."


def test_an_undone_step_of_a_record_that_the_page_does_not_show_is_named(served):
    served.annotation.finish(2)
    client = Client(served.client.url)
    assert client.send(do="undo")[1] | {"steps": 0} == {
        "steps": 0,
        "records": [],
        "record": None,
        "told": "Undone, in s, which is not on this page.",
    }


def test_a_full_disk_is_told_and_the_mark_is_not_there(served, monkeypatch):
    def full(self, entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finepref.synth.journal.Journal.append", full)
    status, answer = served.client.send(do="done", record=0)
    assert (status, "No space left" in answer["error"]) == (500, True)
    assert served.client.data()["records"][0]["done"] is False


def test_the_button_writes_the_file(served, tmp_path):
    served.client.mark(0, "chosen", 6, 11, "good")
    told = served.client.send(do="write")[1]["told"]
    assert "marks.jsonl: 2 span pairs, 1 of them with the spans of the input" in told
    assert len((tmp_path / "marks.jsonl").read_text().splitlines()) == 2


def test_a_kill_at_any_time_loses_no_mark_that_was_told_to_be_saved(rows, tmp_path):
    """`kill -9` while marks are sent one after the other, three times; then the file is written without a page."""
    rows({"id": "long", "prompt": "?", "chosen": "good", "rejected": "x" * 1000})
    saved = 0
    for round_ in range(3):
        with annotator(tmp_path, "rows.jsonl", "--output", "marks.jsonl") as command:
            client = Client(command.url)
            found = client.data()["records"][0]["marks"]["rejected"]
            assert len(found) in (saved, saved + 1)  # one may have been written and not told
            saved, enough = len(found), threading.Event()

            def send(client=client, enough=enough, goal=saved + 5 + 3 * round_):
                nonlocal saved
                try:
                    while saved < 300:
                        client.mark(0, "rejected", 3 * saved, 3 * saved + 1)
                        saved += 1
                        if saved == goal:
                            enough.set()
                except (OSError, ValueError):  # killed
                    pass

            thread = threading.Thread(target=send)
            thread.start()
            assert enough.wait(60)
            command.kill()
            thread.join()
    told = invoke(tmp_path / "rows.jsonl", "--output", tmp_path / "marks.jsonl", "--no-page")
    assert "marks.jsonl: 1 span pairs" in told
    (row,) = map(json.loads, (tmp_path / "marks.jsonl").read_text().splitlines())
    spans = [[span["start"], span["end"]] for span in row["rejected_spans"]]
    assert spans == [[3 * i, 3 * i + 1] for i in range(len(spans))]
    assert 0 < saved <= len(spans) <= saved + 1


def test_marks_that_spans_cannot_tell_are_read_back_from_the_file(opened, rows, written):
    with opened(rows(PAIR)) as annotation:
        annotation.mark(0, "chosen", Mark(6, 11, "bad", 0.5))
        (row,), *_ = written(annotation)
    inputs = find_inputs(str(rows(row | {"id": "again"}, name="again.jsonl")), "", rows(PAIR).parent, {}, None)
    (item,), left_out = read_items(inputs, BadRows())
    assert (item.given["chosen"], left_out) == ((Mark(6, 11, "bad", 0.5),), {})


SCORES = {"tokenizer": "letters", "chosen_scores": [0.5], "rejected_scores": [0.5]}


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (SUM, {"margin"}),
        (SPANS | {"margin": 1.0, "note": "x"}, {"margin", "note"}),
        (PAIR | SCORES, {"token scores"}),
    ],
)
def test_what_span_pairs_have_no_place_for_is_told(rows, tmp_path, row, names):
    told = invoke(rows(row), "--output", tmp_path / "marks.jsonl", "--no-page")
    assert {line.partition(":")[0] for line in told.splitlines() if "not kept" in line} == names
    assert "(1 rows)" in told


def test_ctrl_c_writes_what_validate_says_tdpo_trains_on(rows, tmp_path, tiny_model):
    rows(PAIR, SUM)
    with annotator(tmp_path, "rows.jsonl", "--output", "marks.jsonl") as command:
        client = Client(command.url)
        client.mark(0, "rejected", 8, 12)
        client.mark(1, "chosen", 6, 8, "bad")
        told = command.end()
    assert "marks.jsonl: 2 span pairs" in told
    words = ["validate", str(tmp_path / "marks.jsonl"), "--stage", "tdpo", "--model", str(tiny_model)]
    outcome = CliRunner().invoke(app, [*words, "--cutoff-len", "2048", "--json"])
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.output)
    assert (found["passed"], found["files"][0]["formatting"], found["files"][0]["rows"]) == (True, "span_pair", 2)


def test_records_that_are_no_pairs_and_bad_rows_are_refused_with_their_codes(rows, tmp_path):
    output = tmp_path / "marks.jsonl"
    ranked = rows({"prompt": "?", "responses": ["a", "b"], "scores": [1, 0]}, name="ranked.jsonl")
    assert "FP320" in invoke(ranked, "--output", output, "--no-page", code=1)
    bad = rows(PAIR, PAIR | {"id": "q", "prompt": "!", "rejected": PAIR["chosen"]}, name="bad.jsonl")
    assert "FP034" in invoke(bad, "--output", output, "--no-page", code=1)
    skip = ["--bad-rows", "skip", "--max-bad", "60%"]
    assert "1 rows rejected: 1 FP034" in invoke(bad, "--output", output, "--no-page", *skip)
    twice = rows(PAIR, name="twice.jsonl")
    assert "FP060" in invoke(bad, twice, "--output", output, "--no-page", *skip, code=1)


def test_the_input_is_not_overwritten_and_a_record_must_be_there(rows, tmp_path):
    file = rows(PAIR)
    invoke(file, "--output", file, code=2)
    assert json.loads(file.read_text()) == PAIR
    assert "has no record 2" in invoke(file, "--output", tmp_path / "m.jsonl", "--record", 2, "--no-page", code=1)


def test_the_page_of_a_part_says_which_and_sigterm_writes_all_that_is_marked(rows, tmp_path):
    rows(PAIR, SUM, SPANS)
    words = ["rows.jsonl", "--output", "marks.jsonl", "--record", "2", "--count", "1"]
    with annotator(tmp_path, *words) as command:
        client = Client(command.url)
        told = "records 2 to 2 of 3; more follow: --record 3, or a larger --count"
        assert f"{told}\n" in command.told
        assert client.data()["about"] == [told]
        assert [record["id"] for record in client.data()["records"]] == ["sum"]
        client.mark(0, "chosen", 0, 2, "good")
        command.end(signal.SIGTERM)
    assert [json.loads(row)["id"] for row in (tmp_path / "marks.jsonl").read_text().splitlines()] == ["sum", "s"]


def test_annotating_needs_neither_torch_nor_transformers(rows, tmp_path):
    words = ["annotate", str(rows(SPANS)), "--output", str(tmp_path / "marks.jsonl"), "--no-page"]
    program = "import sys\nsys.modules.update(torch=None, transformers=None)\nfrom finepref.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def people(tmp_path, rows):
    """The files of two annotators by their marks: name -> [(record, side, start, end, kind), ...]."""
    file = rows(PAIR, SUM, SPANS | {"rejected_spans": []}, PAIR | {"id": "only", "prompt": "!"})

    def run(**marks):
        files = []
        for name, given in marks.items():
            inputs = find_inputs(str(file), "pair", tmp_path, {}, None)
            with Annotation(read_items(inputs, BadRows())[0], tmp_path / name) as annotation:
                for number, *mark in given:
                    if mark:
                        annotation.mark(number, mark[0], Mark(*mark[1:]))
                    annotation.finish(number)
                files.append(tmp_path / f"{name}.jsonl")
                annotation.write(files[-1])
        return files

    return run


def merged(files, tmp_path, *words, code=0):
    told = invoke("merge", *files, "--output", tmp_path / "both.jsonl", *words, code=code)
    if code:
        return told
    read = [*map(json.loads, (tmp_path / "both.jsonl").read_text().splitlines())]
    return told, {row["id"]: row for row in read}, json.loads((tmp_path / "both.report.json").read_text())


def test_two_annotators_are_merged_with_the_agreement_of_what_both_looked_at(people, tmp_path):
    """`sum` has 18 characters: both "43", one also "It". `s` has 9: one saw nothing, the other "not"."""
    files = people(
        ann=[(1, "rejected", 6, 8, "bad"), (1, "chosen", 0, 2, "bad"), (2,), (3, "chosen", 6, 11, "good", 0.5)],
        bob=[(1, "rejected", 6, 8, "bad", 0.5), (2, "rejected", 0, 3, "bad")],
    )
    told, found, report = merged(files, tmp_path)
    assert found["sum"]["rejected_spans"] == [{"start": 6, "end": 8, "weight": 0.75}]
    assert "chosen_spans" not in found["sum"]
    assert found["only"]["chosen_spans"] == [{"start": 6, "end": 11, "weight": 0.5}]
    assert found.keys() == {"sum", "only"}
    assert (tmp_path / "both.unmarked.jsonl").read_text().count("\n") == 1
    assert (report["seen_by_both"], report["seen_by_one"], report["characters"]) == (2, [1, 0], 27)
    # 22 of 27 the same; bad: 4 and 5, none: 23 and 22, so n^2 p_e = 4 * 5 + 23 * 22 = 526 and n^2 = 729
    assert report["same"] == pytest.approx(22 / 27)
    assert report["kappa"] == pytest.approx((27 * 22 - 526) / (729 - 526))
    assert report["table"]["bad"] == {"good": 0, "bad": 2, "none": 2}
    assert [each["id"] for each in report["records"]] == ["s", "sum"]  # the least agreement first
    assert "Cohen's kappa 0.335" in told
    assert "least agreement: s (66.7%), sum (88.9%)" in told


def test_spans_of_the_input_that_somebody_did_not_look_at_are_no_agreement(opened, rows, tmp_path):
    """Of three records with the same spans in both files one was looked at by both, one by the second, one by none."""
    rows(*(SPANS | {"id": name, "prompt": name} for name in ("both", "second", "none")))
    for name, numbers in (("ann", [0]), ("bob", [0, 1])):
        with opened(tmp_path / "rows.jsonl") as annotation:
            for number in numbers:
                annotation.finish(number)
            annotation.mark(numbers[-1], "rejected", Mark(0, 3, "bad", 1.0))
            annotation.write(tmp_path / f"{name}.jsonl")
            while annotation.undo() is not None:
                pass
    told, found, report = merged([tmp_path / "ann.jsonl", tmp_path / "bob.jsonl"], tmp_path)
    assert (report["seen_by_both"], report["seen_by_one"], report["seen_by_nobody"]) == (1, [0, 1], 1)
    assert report["characters"] == len("yes") + len("not so")
    weights = {name: (row["rejected_spans"][0].get("weight", 1), row.get("annotated")) for name, row in found.items()}
    assert weights == {"both": (0.75, None), "second": (1, None), "none": (0.5, False)}
    assert "1 records have spans of the input, at which neither looked" in told


def test_keeping_what_either_marked_keeps_no_contradiction(people, tmp_path):
    files = people(
        ann=[(1, "rejected", 6, 8, "bad"), (2, "rejected", 0, 3, "bad")],
        bob=[(1, "chosen", 0, 2, "good"), (2, "rejected", 2, 6, "good")],
    )
    told, found, _ = merged(files, tmp_path, "--keep", "either")
    assert found["sum"]["chosen_spans"] == [{"start": 0, "end": 2}]
    assert found["sum"]["rejected_spans"] == [{"start": 6, "end": 8}]
    assert found["s"]["rejected_spans"] == [{"start": 0, "end": 2}]
    assert found["s"]["marks"]["rejected"] == [[0, 2, "bad", 1.0], [3, 6, "good", 1.0]]
    assert "1 characters are good to one and bad to the other" in told


def test_files_without_a_common_record_or_with_other_texts_are_refused(people, rows, tmp_path):
    ann, bob = people(ann=[(1, "rejected", 6, 8, "bad")], bob=[(2, "rejected", 0, 3, "bad")])
    assert "FP324" in merged([ann, bob], tmp_path, code=1)
    other = rows(
        {"id": "sum", "prompt": "?", "chosen": "a", "rejected": "b", "rejected_spans": [[0, 1]]}, name="o.jsonl"
    )
    answer = merged([ann, other], tmp_path, code=1)
    assert "FP325" in answer
    assert "o.jsonl:1" in answer
    spoilt = json.loads(ann.read_text()) | {"marks": {"chosen": [[0, 99, "bad", 1]], "rejected": []}}
    assert "FP322" in merged([rows(spoilt, name="spoilt.jsonl"), ann], tmp_path, code=1)
    assert not (tmp_path / "both.jsonl").exists()


def test_rows_without_an_id_are_the_same_record_whatever_is_marked(rows, tmp_path):
    row = {"prompt": "?", "chosen": "yes", "rejected": "not so"}
    one = rows(row | {"rejected_spans": [[0, 3]]}, name="one.jsonl")
    two = rows(row | {"rejected_spans": [[0, 6]]}, name="two.jsonl")
    _, found, report = merged([one, two], tmp_path)
    assert [each["rejected_spans"] for each in found.values()] == [[{"start": 0, "end": 3}]]
    assert report["characters"] == 9


def test_an_output_of_merge_is_no_input(people, tmp_path):
    ann, bob = people(ann=[(1, "rejected", 6, 8, "bad")], bob=[(1, "rejected", 6, 8, "bad")])
    before = ann.read_bytes()
    invoke("merge", ann, bob, "--output", ann, code=2)
    assert ann.read_bytes() == before
