"""Tokenised pairs: the view that methods read, and the weights of a stage that names none."""

from __future__ import annotations

import pytest
from finepref.formats.problems import BadData
from finepref.formats.records import FORMATS, parse, revive, to_row
from finepref.methods.options import PairOptions, in_yaml
from finepref.methods.pair_rows import NO_RESPONSE, PairRow, ResponseRow, weigh_all, weigh_chosen

OPTIONS = PairOptions.read("llamafactory", {}, in_yaml)
SPANS = ResponseRow([-100, 5, 6, 7], [0.0, 1.0, 0.0, -0.5], [0.0] * 4, annotated=True, scored=False)
PLAIN = ResponseRow([-100, -100, 8], [1.0, 1.0, 1.0], [0.0] * 3, annotated=False, scored=False)


def test_a_response_without_spans_counts_as_a_whole_and_the_prompt_never_counts():
    weights = weigh_all(PairRow("a", SPANS, PLAIN, mapped=False), OPTIONS, 0)
    assert weights == ([0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 1.0], 0)
    assert weigh_chosen(PairRow("a", SPANS, NO_RESPONSE, mapped=False), OPTIONS, 0) == [0.0, 1.0, 0.0, -0.5]
    assert weigh_chosen(PairRow("a", PLAIN, NO_RESPONSE, mapped=False), OPTIONS, 0) == [0.0, 0.0, 1.0]


def test_a_response_of_which_nothing_is_left_is_named():
    cut = SPANS._replace(weight=[0.0] * 4)
    with pytest.raises(BadData, match="FP214 record a rejected_spans: `cutoff_len` cuts off every selected token"):
        weigh_all(PairRow("a", PLAIN, cut, mapped=False), OPTIONS, 0)


ROWS = {
    "pair": {"id": "a", "prompt": "p", "chosen": "good", "rejected": "bad", "margin": 0.5},
    "span_pair": {
        "id": "a",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
        "chosen": "good",
        "rejected": "bad",
        "rejected_spans": [[0, 2, 0.5]],
        "side": -1,
    },
    "scored_pair": {
        "id": "a",
        "prompt": "p",
        "chosen": "good",
        "rejected": "bad",
        "tokenizer": "t",
        "chosen_scores": [1.0, 2.0],
        "rejected_scores": [0.0],
        "chosen_offsets": [[0, 2], [2, 4]],
    },
    "ranked": {"id": "a", "prompt": "p", "responses": ["x", "y"], "scores": [1.0, 0.0], "kind": "apo"},
    "feedback": {"id": "a", "prompt": "p", "response": "x", "label": False, "error_type": "logic"},
    "negatives": {
        "id": "a",
        "prompt": "p",
        "chosen": "good",
        "negatives": {"logic": "bad"},
        "spans": {"logic": [[0, 1]]},
        "rejected": "no",
    },
}


@pytest.mark.parametrize("formatting", FORMATS)
def test_a_record_that_travelled_as_json_is_the_one_that_was_parsed(formatting):
    import json

    record = parse(ROWS[formatting], formatting)
    assert revive(json.loads(json.dumps(to_row(record))), formatting) == record
