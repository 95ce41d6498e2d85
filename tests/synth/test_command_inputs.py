"""Inputs of the commands: every kind of file, every layout, and names of data sets."""

from __future__ import annotations

import io
import json
import zipfile
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
from chat_endpoint import answering
from finepref.cli import app
from finepref.formats.check import digest
from finepref.synth.apo import score as apo_score
from finepref.synth.data_sources.job_rows import given, rows_of
from finepref.synth.seapo import inject as seapo_inject
from pyarrow import parquet
from typer.testing import CliRunner
from usage_errors import unboxed

NUMBERS = range(1, 6)
ASKED = [f"What is {i} + 2?" for i in NUMBERS]
GOOD = [f"{i} + 2 = {i + 2}." for i in NUMBERS]
BAD = [f"It is {i}." for i in NUMBERS]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows(make) -> list[dict]:
    return [make(*each) for each in zip(ASKED, GOOD, BAD, strict=True)]


def sharegpt(asked: str, good: str, bad: str) -> dict:
    sides = {"chosen": {"from": "gpt", "value": good}, "rejected": {"from": "gpt", "value": bad}}
    return {"conversations": [{"from": "human", "value": asked}], **sides}


def trl(asked: str, good: str, bad: str) -> dict:
    return {"prompt": [user(asked)], "chosen": [assistant(good)], "rejected": [assistant(bad)], "origin": "here"}


def orca(asked: str, good: str, bad: str) -> dict:
    return {"question": asked, "chosen": good, "rejected": bad}


def kto(asked: str, good: str, bad: str) -> list[dict]:
    return [{"instruction": asked, "input": "", "output": text, "kto_tag": text == good} for text in (good, bad)]


def supervised(asked: str, good: str, bad: str) -> dict:
    return {"instruction": asked, "input": "", "output": good}


def source(kind: str, folder: Path) -> str:
    """What a user names on the command line for the questions and answers above, in one of the kinds."""
    info = {
        "ranking": {"file_name": "ranking.json", "formatting": "sharegpt", "ranking": True},
        "labelled": {"file_name": "kto.json", "columns": {"prompt": "instruction", "kto_tag": "kto_tag"}},
        "single": {"file_name": "sft.json"},
    }
    (folder / "ranking.json").write_text(json.dumps(rows(sharegpt)))
    (folder / "kto.json").write_text(json.dumps([*chain.from_iterable(rows(kto))]))
    (folder / "sft.json").write_text(json.dumps(rows(supervised)))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if kind in info:
        return kind
    path = folder / {"csv": "in.csv", "parquet": "in.parquet", "zst": "in.jsonl.zst"}.get(kind, "in.jsonl")
    if kind == "folder":
        path = folder / "shards"
        path.mkdir()
        (path / "a.jsonl").write_bytes(lines(rows(orca)[:2]))
        (path / "b.jsonl").write_bytes(lines(rows(orca)[2:]))
    elif kind == "csv":
        texts = [f"{asked},,{good},{bad}\n" for asked, good, bad in zip(ASKED, GOOD, BAD, strict=True)]
        path.write_text("".join(["instruction,input,chosen,rejected\n", *texts]))
    elif kind == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows(trl)), path)
    elif kind == "zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(lines(rows(orca)))
    else:
        path.write_bytes(lines(rows(trl)))
    return str(path)


PAIRED = ["ranking", "trl", "csv", "parquet", "zst", "folder"]
LABELLED = ["labelled", "single"]


def words(name: str, data: str, folder: Path, model: Path, url: str) -> list:
    """The words of a command that reads `data`."""
    to = ["--engine", "openai", "--model", "m", "--base-url", url]
    return {
        "sepo score": ["sepo", "score", data, "--reference", model, "--oracle", model],
        "seapo inject": ["seapo", "inject", data, "--engine", "rules", "--types", "correctness"],
        "apo sample": ["apo", "sample", data, "--n", 1, *to],
        "apo pair": ["apo", "pair", folder / "samples.jsonl", "--golden", data],
        "reversegen warmup": ["reversegen", "warmup", data, "--n", 40, "--shots", 2],
        "reversegen propose": ["reversegen", "propose", data, "--prompts", 10, "--n", 1, "--shots", 4, *to],
        "reversegen validate": ["reversegen", "validate", data, "--by", "arithmetic"],
        "reversegen answer": ["reversegen", "answer", data, *to],
        "dedup": ["dedup", data, "--method", "exact"],
        "judge": ["judge", data, "--judge", "contains", "--pattern", "="],
    }[name]


def run(*asked: object):
    result = CliRunner().invoke(app, [str(word) for word in asked])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(name: str, made: list[dict]) -> list:
    """What the questions and answers of an output are."""
    if name in ("reversegen warmup", "reversegen propose"):
        field = "response" if name.endswith("warmup") else "prompt"
        return sorted({row[field] for row in made})
    if name == "dedup":  # the rows as they are in the file
        return [json.dumps(row).count("What is") for row in made]
    if name == "apo pair":
        return [(row["prompt"], *row["responses"]) for row in made]
    answers = {"seapo inject": "chosen", "apo sample": "sample_0", "judge": "response", "sepo score": "chosen"}
    asked = "query" if name == "apo sample" else "prompt"
    return [(row[asked], row[answers.get(name, "response" if "response" in row else "chosen")]) for row in made]


EXPECTED = {
    "sepo score": [*zip(ASKED, GOOD, strict=True)],
    "seapo inject": [*zip(ASKED, GOOD, strict=True)],
    "apo sample": [(asked, f"{asked} Four.") for asked in ASKED],
    "apo pair": [(asked, good, f"{asked} Four.") for asked, good in zip(ASKED, GOOD, strict=True)],
    "reversegen warmup": ASKED,
    "reversegen propose": ["Why?"],
    "reversegen validate": [],
    "reversegen answer": [(asked, f"{asked} Four.") for asked in ASKED],
    "judge": [*zip(ASKED, GOOD, strict=True)],
    "dedup": [1] * len(ASKED),
}
EXPECTED["reversegen validate"] = [(asked, f"{i} + 2 = {i + 2}") for i, asked in zip(NUMBERS, ASKED, strict=True)]

MATRIX = [
    (name, kind)
    for name in EXPECTED
    for kind in (*PAIRED, *LABELLED)
    if not (name == "sepo score" and kind in LABELLED) and not (name == "judge" and kind != "single")
]


@pytest.mark.parametrize(("name", "kind"), MATRIX)
def test_a_command_reads_every_kind_of_input(name, kind, tmp_path, tiny_model):
    data, output = source(kind, tmp_path), tmp_path / "out.jsonl"
    ready = [{"query_id": f"{i}", "query": asked, "sample_0": f"{asked} Four."} for i, asked in enumerate(ASKED)]
    (tmp_path / "samples.jsonl").write_bytes(lines(ready))

    def reply(asked: str) -> dict:
        return {"content": "Why?" if name.endswith("propose") else f"{asked} Four."}

    with answering(reply) as endpoint:
        if name == "apo pair":  # the samples of the same input, so that the ids are the same
            found = run(*words("apo sample", data, tmp_path, tiny_model, endpoint.url), "--output",
                        tmp_path / "samples.jsonl", "--dataset-dir", tmp_path)  # fmt: skip
            assert found.exit_code == 0, found.output
        asked = words(name, data, tmp_path, tiny_model, endpoint.url)
        found = run(*asked, "--output", output, "--dataset-dir", tmp_path)
    assert found.exit_code == 0, found.output
    expected = EXPECTED[name]
    if name == "dedup" and kind == "labelled":
        assert len(read(output)) == len(ASKED)  # two rows of each question
    else:
        assert told(name, read(output)) == expected


BROKEN = {
    "empty": ("empty.jsonl", "FP002"),
    "torn": ("torn.jsonl.zst", "FP001"),
    "torn line": ("line.jsonl", "FP004"),
    "zip": ("in.jsonl", "FP097"),
    "two kinds": ("kinds", "FP076"),
    "no name": ("nothing", "FP071"),
    "mixed": ("mixed.jsonl", "FP092"),
}


def broken(kind: str, folder: Path, make=orca) -> str:
    source("ranking", folder)
    name = BROKEN[kind][0]
    path = folder / name
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "torn":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(lines(rows(make) * 500))
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "torn line":
        path.write_bytes(lines(rows(make))[:-20] + b"\n")
    elif kind == "zip":
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as packed:
            packed.writestr("in.jsonl", lines(rows(orca)))
        path.write_bytes(whole.getvalue())
    elif kind == "two kinds":
        path.mkdir()
        (path / "a.jsonl").write_bytes(lines(rows(orca)))
        (path / "b.csv").write_bytes(b"prompt\nx\n")
    elif kind == "mixed":
        path.write_bytes(lines([*rows(make), *rows(trl)]))
    return str(path) if kind != "no name" else name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in EXPECTED
        for kind in BROKEN
        if name != "reversegen propose" and (name, kind) not in (("dedup", "mixed"), ("judge", "mixed"))
    ],
)
def test_an_input_that_cannot_be_read_is_told_with_its_code(name, kind, tmp_path, tiny_model):
    data = broken(kind, tmp_path, supervised if name == "judge" else orca)
    (tmp_path / "samples.jsonl").write_bytes(lines([{"query_id": "1", "query": ASKED[0], "sample_0": "x"}]))
    asked = words(name, data, tmp_path, tiny_model, "http://127.0.0.1:9/v1")
    found = run(*asked, "--output", tmp_path / "out.jsonl", "--dataset-dir", tmp_path)
    assert found.exit_code == 1
    assert BROKEN[kind][1] in found.stderr or (kind == "empty" and "no row" in found.stderr), found.output
    assert not (tmp_path / "out.jsonl").exists() or not read(tmp_path / "out.jsonl")


def test_apo_score_reads_pairs_ranked_feedback_and_single_answers_of_any_layout(tmp_path):
    def responses(kind: str) -> list:
        found = apo_score.read_scorable(rows_of(given(source(kind, tmp_path), dataset_dir=tmp_path), apo_score.WANTS))
        return [(each.prompt[0].content, each.responses, each.scores) for each in found]

    both = [(asked, (good, bad), (1.0, 0.0)) for asked, good, bad in zip(ASKED, GOOD, BAD, strict=True)]
    for kind in (*PAIRED[:-1], "labelled"):
        assert responses(kind) == both
    assert responses("single") == [(asked, (good,), ()) for asked, good in zip(ASKED, GOOD, strict=True)]
    rated = [{"instruction": "a", "completions": [{"response": text, "overall_score": n}]} for n, text in ((1, "x"),)]
    rated[0]["completions"] += [{"response": "y", "overall_score": 3.5}]
    (tmp_path / "rated.jsonl").write_bytes(lines(rated))
    assert responses_of(tmp_path / "rated.jsonl") == [("a", ("x", "y"), (1.0, 3.5))]


def responses_of(path: Path) -> list:
    found = apo_score.read_scorable(rows_of(path, apo_score.WANTS))
    return [(each.prompt[0].content, each.responses, each.scores) for each in found]


def test_seapo_margins_joins_feedback_by_prompt_and_counts_prompts_without_both_labels(tmp_path, tiny_model, caplog):
    made = [each | {"kto_tag": each["kto_tag"]} for each in chain.from_iterable(rows(kto))][:-1]
    (tmp_path / "kto.csv").write_text(
        "\n".join(["instruction,output,kto_tag", *(f"{r['instruction']},{r['output']},{r['kto_tag']}" for r in made)])
    )
    asked = ["seapo", "margins", "--data", tmp_path / "kto.csv", "--model", tiny_model, "--error-type", "logic"]
    found = run(*asked, "--output", tmp_path / "m.json")
    assert found.exit_code == 0, found.output
    assert json.loads((tmp_path / "m.json").read_text())["types"]["logic"]["n"] == len(ASKED) - 1
    assert "9 rows of layout alpaca_kto; FP063, a prompt without an undesirable response: 1" in caplog.text


@pytest.mark.parametrize("kind", [*PAIRED, "labelled"])
def test_convert_takes_names_folders_and_files_without_from(kind, tmp_path):
    data, output = source(kind, tmp_path), tmp_path / "out.jsonl"
    target = "feedback" if kind == "labelled" else "pair"
    found = run("convert", data, output, "--to", target, "--dataset-dir", tmp_path)
    assert found.exit_code == 0, found.output
    if target == "pair":
        assert [(row["prompt"], row["chosen"], row["rejected"]) for row in read(output)] == [
            *zip(ASKED, GOOD, BAD, strict=True)
        ]
    else:
        assert sorted((row["prompt"], row["label"]) for row in read(output)) == sorted(
            (asked, label) for asked in ASKED for label in (True, False)
        )


def test_convert_refuses_targets_and_mixtures_of_what_it_has_recognised(tmp_path):
    data = source("labelled", tmp_path)
    found = run("convert", data, tmp_path / "o.jsonl", "--to", "scored_pair", "--dataset-dir", tmp_path)
    assert (found.exit_code, "alpaca_kto becomes" in found.stderr) == (2, True)
    found = run("convert", data, "ranking", tmp_path / "o.jsonl", "--to", "negatives", "--dataset-dir", tmp_path)
    assert (found.exit_code, "records of several formats" in unboxed(found.stderr)) == (2, True)


def test_convert_takes_an_error_type_before_a_name(tmp_path):
    data, output = source("labelled", tmp_path), tmp_path / "out.jsonl"
    found = run("convert", f"logic={data}", output, "--to", "negatives", "--dataset-dir", tmp_path)
    assert found.exit_code == 0, found.output
    assert [row["negatives"] for row in read(output)] == [{"logic": bad} for bad in BAD]


@pytest.mark.parametrize(
    "asked",
    [
        ["convert", "remote", "o.jsonl", "--to", "pair"],
        ["seapo", "inject", "remote", "--engine", "rules", "--output", "o.jsonl"],
        ["dedup", "remote", "--method", "exact", "--output", "o.jsonl"],
    ],
    ids=lambda asked: asked[0],
)
def test_a_set_on_a_hub_that_cannot_be_reached_is_one_line_with_a_code(asked, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("no route to the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    Path("dataset_info").mkdir()
    remote = {"hf_hub_url": "some/set", "ranking": True, "formatting": "sharegpt"}
    Path("dataset_info/dataset_info.json").write_text(json.dumps({"remote": remote}))
    found = run(*asked)
    assert found.exit_code == 1
    told = unboxed(found.output)
    assert "FP111" in told
    assert "no route to the hub" in told
    assert not Path("o.jsonl").exists()


def test_a_set_on_a_hub_is_read_once_and_its_content_is_in_the_digest(tmp_path, monkeypatch):
    held, loads = rows(sharegpt), []

    def load(name, *args, **options):
        loads.append(name)
        return iter(held)

    monkeypatch.setattr("datasets.load_dataset", load)
    remote = {"remote": {"hf_hub_url": "some/set", "ranking": True, "formatting": "sharegpt"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(remote))
    wants = seapo_inject.WANTS
    found = rows_of(given("remote", dataset_dir=tmp_path), wants)
    first = found.digest()
    assert [each.chosen for each in seapo_inject.read_sources(found)] == GOOD
    assert (found.digest(), loads) == (first, ["some/set"])
    held.pop()
    assert rows_of(given("remote", dataset_dir=tmp_path), wants).digest() != first


def digest_of(data: Path | str, **options) -> str:
    return rows_of(given(str(data), **options), seapo_inject.WANTS).digest()


def test_the_digest_of_an_input_tells_all_that_its_rows_depend_on(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_bytes(lines([{"prompt": "a", "question": "b", "chosen": "c"}]))
    assert digest_of(own) == digest(own)  # of one file of own rows as it always was, so that old journals resume
    assert digest_of(own, columns={"prompt": "question"}) != digest(own)
    folder = Path(source("folder", tmp_path))
    first = digest_of(folder)
    assert digest_of(folder) == first
    changed = (folder / "b.jsonl").read_bytes().replace(b"It is 5", b"It is 6")
    (folder / "b.jsonl").write_bytes(changed)
    second = digest_of(folder)
    (folder / "c.jsonl").write_bytes(lines(rows(orca)[:1]))
    assert len({first, second, digest_of(folder)}) == 3
    assert digest_of(source("trl", tmp_path)) != digest_of(tmp_path / "in.jsonl", layout="trl_implicit")


def test_a_changed_shard_makes_another_job_and_the_journal_is_refused(tmp_path):
    folder = Path(source("folder", tmp_path))
    with answering(lambda asked: {"content": "4."}) as endpoint:
        asked = words("reversegen answer", str(folder), tmp_path, tmp_path, endpoint.url)
        assert run(*asked, "--output", tmp_path / "o.jsonl").exit_code == 0
        (folder / "b.jsonl").write_bytes((folder / "b.jsonl").read_bytes().replace(b"5 + 2?", b"6 + 2?"))
        found = run(*asked, "--output", tmp_path / "o.jsonl")
    assert (found.exit_code, "answers of another job" in found.stderr) == (1, True)


@pytest.mark.parametrize("kind", ["ranking", "folder", "beside the shards", "beside shards by name"])
def test_an_input_by_name_or_folder_is_never_written_over(kind, tmp_path):
    data = source("folder" if kind.startswith("beside") else kind, tmp_path)
    target = {"ranking": tmp_path / "ranking.json", "folder": Path(data) / "a.jsonl"}.get(kind, Path(data) / "o.jsonl")
    before = target.read_bytes() if target.exists() else None
    if kind.endswith("by name"):
        data = "shards"
        entry = {"file_name": "shards", "formatting": "orca"}
        (tmp_path / "dataset_info.json").write_text(json.dumps({data: entry}))
    told = "is in" if kind.startswith("beside") else "is also an input"
    for asked in (
        ["seapo", "inject", data, "--engine", "rules", "--output", target],
        ["dedup", data, "--method", "exact", "--output", target],
        ["convert", data, target, "--to", "pair"],
    ):
        found = run(*asked, "--dataset-dir", tmp_path)
        assert found.exit_code == 2
        assert told in unboxed(found.stderr)
        assert (target.read_bytes() if target.exists() else None) == before


def test_further_columns_are_kept_and_what_has_no_place_is_counted(tmp_path, caplog):
    made = [row | {"origin": "web", "label": 3} for row in rows(orca)]
    (tmp_path / "in.jsonl").write_bytes(lines([*made, made[0] | {"rejected": "Another."}]))
    asked = ["seapo", "inject", tmp_path / "in.jsonl", "--engine", "rules", "--types", "correctness"]
    assert run(*asked, "--output", tmp_path / "o.jsonl").exit_code == 0
    assert {row["origin"] for row in read(tmp_path / "o.jsonl")} == {"web"}
    left_out = "rows that repeat an earlier one, left out: 1; rows whose column label is not kept: 6"
    assert f"6 rows of layout orca; {left_out}" in caplog.text


def test_own_rows_keep_their_columns_whatever_the_kind_of_file(tmp_path):
    held = [{"id": str(i), "prompt": asked, "note": {"a": i}} for i, asked in enumerate(ASKED)]
    held[0] |= {"messages": None, "label": None}
    parquet.write_table(pa.Table.from_pylist(held), tmp_path / "in.parquet")
    with answering(lambda asked: {"content": "4."}) as endpoint:
        asked = words("reversegen answer", str(tmp_path / "in.parquet"), tmp_path, tmp_path, endpoint.url)
        assert run(*asked, "--output", tmp_path / "o.jsonl").exit_code == 0
    assert read(tmp_path / "o.jsonl") == [
        {"id": str(i), "prompt": asked, "note": {"a": i}, "response": "4."} for i, asked in enumerate(ASKED)
    ]


def test_a_column_that_the_user_names_is_read_and_named_in_problems(tmp_path):
    held = [{"exercise": asked, "chosen": good, "n": 1} for asked, good in zip(ASKED, GOOD, strict=True)]
    (tmp_path / "in.jsonl").write_bytes(lines([*held, {"exercise": " ", "chosen": "x"}]))
    asked = ["seapo", "inject", tmp_path / "in.jsonl", "--engine", "rules", "--types", "correctness"]
    asked += ["--column", "prompt=exercise", "--output", tmp_path / "o.jsonl"]
    found = run(*asked)
    assert (found.exit_code, "exercise" in found.stderr) == (1, True)
    found = run(*asked, "--bad-rows", "skip", "--max-bad", "20%")
    assert found.exit_code == 0, found.output
    assert [(row["prompt"], row["n"]) for row in read(tmp_path / "o.jsonl")] == [(each, 1) for each in ASKED]


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (["sepo", "score", "--reference", "x", "--oracle", "x"], "labelled"),
        (["seapo", "margins", "--model", "x"], "ranking"),
        (["judge", "--judge", "number"], "labelled"),
        (["judge", "--judge", "number"], "ranking"),
    ],
    ids=lambda each: " ".join(each[:2]) if isinstance(each, list) else each,
)
def test_rows_that_a_command_cannot_take_are_named_with_what_it_takes(asked, kind, tmp_path):
    data = source(kind, tmp_path)
    place = ["--data", data] if "margins" in asked else [data]
    found = run(*asked, *place, "--dataset-dir", tmp_path, "--output", tmp_path / "o.jsonl")
    assert (found.exit_code, "FP112" in found.stderr) == (1, True), found.output


def test_ids_are_compared_over_all_shards(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_bytes(lines([{"id": "1", "prompt": name, "chosen": "x"}]))
    found = run("seapo", "inject", folder, "--engine", "rules", "--output", tmp_path / "o.jsonl")
    assert found.exit_code == 1
    assert f"FP060 {folder / 'b.jsonl'}:1 id: 1 is the id of {folder / 'a.jsonl'}:1" in found.stderr


def test_supervised_layouts_are_no_layouts_of_training_data(tmp_path):
    data = source("single", tmp_path)
    for asked in (["validate", data], ["convert", data, tmp_path / "o.jsonl", "--to", "pair"]):
        found = run(*asked, "--dataset-dir", tmp_path)
        assert (found.exit_code, "FP016" in found.output) == (1, True)
    found = run("validate", tmp_path / "sft.json", "--format", "alpaca_sft")
    assert (found.exit_code, "is not one of" in unboxed(found.stderr)) == (2, True)
    found = run("validate", tmp_path / "sft.json")
    assert (found.exit_code, "FP093" in found.output) == (1, True)


def test_a_prompt_beside_whole_dialogues_is_no_question_of_its_own(tmp_path):
    """UltraFeedback binarized: `messages` end in the chosen response."""
    dialogue = [user(ASKED[0]), assistant(GOOD[0])]
    row = {"prompt": ASKED[0], "messages": dialogue, "chosen": dialogue, "rejected": [user(ASKED[0]), assistant("x")]}
    (tmp_path / "in.jsonl").write_bytes(lines([row]))
    asked = ["reversegen", "validate", tmp_path / "in.jsonl", "--by", "arithmetic", "--output", tmp_path / "o.jsonl"]
    assert run(*asked).exit_code == 0
    assert [row["prompt"] for row in read(tmp_path / "o.jsonl")] == ASKED[:1]


def test_a_layout_and_columns_that_the_user_gives_go_before_those_of_the_entry(tmp_path):
    row = {"prompt": "a", "question": "b", "response_0": "x", "response_1": "y"}
    (tmp_path / "pku.json").write_text(json.dumps([row | {"better_response_id": 0, "safer_response_id": 1}]))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"v1.5": {"file_name": "pku.json", "formatting": "saferlhf"}})
    )
    asked = ["convert", "v1.5", tmp_path / "o.jsonl", "--to", "pair", "--dataset-dir", tmp_path]
    for further, expected in (
        ([], ("a", "x")),
        (["--from", "saferlhf_safer"], ("a", "y")),
        (["--column", "prompt=question"], ("b", "x")),
    ):
        found = run(*asked, *further)
        assert found.exit_code == 0, found.output
        assert [(made["prompt"], made["chosen"]) for made in read(tmp_path / "o.jsonl")] == [expected]


def test_only_desirable_and_best_responses_are_good_answers(tmp_path):
    found = rows_of(given(source("labelled", tmp_path), dataset_dir=tmp_path), seapo_inject.WANTS)
    assert [each.chosen for each in seapo_inject.read_sources(found)] == GOOD
    assert found.told["undesirable responses left out"] == len(BAD)
    rated = [{"response": text, "overall_score": score} for text, score in (("low", 1), ("best", 3), ("also best", 3))]
    (tmp_path / "rated.jsonl").write_bytes(lines([{"instruction": "a", "completions": rated}]))
    found = rows_of(tmp_path / "rated.jsonl", seapo_inject.WANTS)
    assert [each.chosen for each in seapo_inject.read_sources(found)] == ["best"]
    assert found.told["responses below the best left out"] == 2
