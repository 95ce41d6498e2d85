"""Sentences that can be replaced alone: whole, in one line, and never code, tables or maths."""

from __future__ import annotations

import pytest
from finepref.synth.seapo.choice import candidates
from finepref.synth.seapo.sentences import sentences


def texts(answer: str) -> list[str]:
    found = sentences(answer)
    assert all(answer[each.start : each.end] == each.text for each in found)
    return [each.text for each in found]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Paris", ["Paris"]),
        ("It is so. He left! Why? Yes.", ["It is so.", "He left!", "Why?", "Yes."]),
        ("Dr. Smith met J. Doe at 5 p.m. today. They ate.", ["Dr. Smith met J. Doe at 5 p.m. today.", "They ate."]),
        ("It costs Rs. 960 or $5.50, e.g. now. Pay 3. Go.", ["It costs Rs. 960 or $5.50, e.g. now.", "Pay 3.", "Go."]),
        ("Use the .env file. see below. Then 3.5 is it.", ["Use the .env file. see below.", "Then 3.5 is it."]),
        ('He said: "Go. Now." She went.', ["She went."]),
        ("One (it is. Two) ends. Three is.", ["Three is."]),
        ("Use `f(). Then` here. Then `c. Stop.", []),
        ("**Stop it.** Then go on.", ["Then go on."]),
        ("The set $xy. B$ is open. It costs $5. Yes.", ["It costs $5.", "Yes."]),
        (
            "北京是首都。上海有两千万人\uff01你好吗\uff1f他说\uff1a“是的。”然后走了",
            ["北京是首都。", "上海有两千万人\uff01", "你好吗\uff1f", "他说\uff1a“是的。”", "然后走了"],
        ),
        ("如下\uff1a\n首先\uff08见上\uff09打开文件。", ["首先\uff08见上\uff09打开文件。"]),
        ("Windows ends.\r\n\r\nLines so.\r\n", ["Windows ends.", "Lines so."]),
        ("<think>It is. Hm.</think>\n\nYes, it is. Go.", ["Yes, it is.", "Go."]),
        ("", []),
    ],
)
def test_running_text_is_cut_at_the_ends_of_its_sentences(answer, expected):
    assert texts(answer) == expected


STRUCTURED = """\
# A heading. Of two sentences.

Here are the steps:

1. **Cost:** It is low. It stays low.
2. Eat fruit
   - Sub items are read. Too.

| Name is. | Two. |
|---|---|
| A cell is. | Not this. |

A soft-wrapped sentence begins
here and ends. Another one
begins. **Title**

$$
x = 3. Y = 4.

z = 5. W.
$$

\\[ a = b. C \\]

    indented_code = "Is not. Read."

```python
print("Not this. Nor this.")
```
<div>Nor this. One.</div>

> A quotation is read.

The end is here.
"""


def test_lists_are_read_by_item_and_headings_tables_code_html_and_maths_are_not():
    assert texts(STRUCTURED) == [
        "It is low.",
        "It stays low.",
        "Eat fruit",
        "Sub items are read.",
        "Too.",
        "A quotation is read.",
        "The end is here.",
    ]


def best(error_type: str, answer: str, *, seed: int = 0, record_id: str = "a") -> list[str]:
    return [each.text for each in candidates(error_type, sentences(answer), seed=seed, record_id=record_id)]


def test_an_error_of_correctness_goes_where_a_number_a_name_or_a_statement_is():
    answer = "Walk along the river. The bridge is old. It has 12 arches. Go there? The town of Bern is near."
    found = best("correctness", answer)
    assert {*found[:2]} == {"It has 12 arches.", "The town of Bern is near."}
    assert found[2:] == ["The bridge is old."]


def test_an_error_of_logic_goes_where_a_connective_is_or_into_the_last_sentence():
    answer = "The road was icy all day. Because of that, the bus was late. We waited at the stop. It came in the end."
    assert best("logic", answer) == ["Because of that, the bus was late.", "It came in the end."]
    assert best("logic", "路面结了冰。所以公交车晚到了。我们在等车。") == ["所以公交车晚到了。", "我们在等车。"]


def test_a_made_up_detail_goes_anywhere_but_into_questions_greetings_and_scraps_only_if_there_is_nothing_else():
    answer = "Sure! The bridge is old and long. Is it made of stone? Let me know if you need more of this."
    assert best("hallucination", answer)[0] == "The bridge is old and long."
    assert len(best("hallucination", answer)) == 4
    assert best("hallucination", "Yes.") == ["Yes."]


def test_equally_good_sentences_are_in_an_order_by_seed_and_record():
    answer = " ".join(f"The house number {i} is old." for i in range(9))
    orders = {tuple(best("correctness", answer, seed=seed, record_id=name)) for seed in (0, 1) for name in "abc"}
    assert len(orders) == 6
    assert best("correctness", answer) == best("correctness", answer)
