"""Answers with marked errors in the layout of FineGrainedRLHF, in own words, for runs on either host."""

from __future__ import annotations

RIGHT = "The answer is {0}, since {1} + {2} = {0}."
WRONG = "The answer is {0}, naïvely: {1} + {2} = {0}!  Or 数 {0}"


def answers(count: int = 12) -> list[dict]:
    """`count` answers with errors; what else public rows have: marks that overlap, something that is lacking, an
    answer without a correction, and at last one that is right, which gives no pair."""
    rows = []
    for i in range(count):
        sums = (2 * i + 1, 2 * i + 4)
        right, wrong = (
            template.format(result, i, i + 1) for template, result in zip((RIGHT, WRONG), sums, strict=True)
        )
        first, last = wrong.index(f"{sums[1]}"), wrong.rindex(f"{sums[1]}")
        size = len(f"{sums[1]}")
        marks = [(last, last + size), (first, first + size)]
        if i == 1:
            marks += [(first - 3, first + 1)]  # overlaps the mark of the result
        errors = [{"error type": "Wrong-Grounding", "start": start, "end": end} for start, end in marks]
        feedback = {"errors": errors, "missing-info": [], "corrected-prediction": right}
        if i == 2:
            feedback["missing-info"] = [{"error type": "Missing-Answer", "passage_id": 0, "sentence_id": [0]}]
        if i == 3:
            feedback["corrected-prediction"] = ""
        rows.append(
            {
                "question": f"What is {i} + {i + 1}?",
                "passages": [["Sums", "One counts on.", "From the first number."]],
                "gold": f"It is {sums[0]}.",
                "prediction 1": wrong,
                "prediction 2": "No idea.",
                "feedback": feedback,
                "preference": [0] * 6,
            }
        )
    nothing = {"errors": [], "missing-info": [], "corrected-prediction": ""}
    return [*rows, rows[0] | {"prediction 1": "It is 1.", "feedback": nothing}]
