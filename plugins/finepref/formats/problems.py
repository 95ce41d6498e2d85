"""What can be wrong with data: the code table, one problem, and the error that carries all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CODES: dict[str, str] = {
    "FP001": "the file cannot be read",
    "FP002": "the file holds no record",
    "FP003": "the bytes are not UTF-8",
    "FP004": "the text is not valid JSON",
    "FP005": "the row is not a JSON object",
    "FP006": "an object has the same key twice",
    "FP007": "a number is NaN, infinite or out of range",
    "FP008": "a text has a lone surrogate",
    "FP009": "a row is too long or nested too deeply",
    "FP010": "a required field is missing",
    "FP011": "a value has the wrong type",
    "FP012": "a text is empty",
    "FP013": "a thing is given twice, in two ways",
    "FP014": "an object has an unknown key",
    "FP015": "the row is of another format",
    "FP016": "the format is unknown",
    "FP017": "the column mapping does not fit the format",
    "FP020": "the role of a message is unknown",
    "FP021": "the turns are not in order",
    "FP022": "the prompt does not end in a user turn",
    "FP023": "the id is not a plain short string",
    "FP030": "there is no negative",
    "FP031": "an error type is not a name",
    "FP032": "a negative equals the positive",
    "FP033": "two negatives are equal",
    "FP034": "chosen equals rejected",
    "FP035": "an error type on a desirable response",
    "FP036": "an error type that is not among the allowed ones",
    "FP040": "a span is not of the form {start, end, weight}",
    "FP041": "a span lies outside its text",
    "FP042": "a span is empty",
    "FP043": "two spans overlap",
    "FP045": "spans for a response that is not there",
    "FP046": "the side does not fit the spans",
    "FP047": "a negative without a span",
    "FP050": "fewer than two responses",
    "FP051": "responses and scores differ in number",
    "FP052": "all scores are equal",
    "FP053": "the kind of a ranked record is unknown",
    "FP054": "equal responses have different scores",
    "FP055": "token scores and token offsets differ in number",
    "FP056": "token offsets do not fit the text",
    "FP057": "there is no token score",
    "FP060": "an id is used twice",
    "FP061": "the file has only one label class",
    "FP062": "a prompt without a desirable response",
    "FP063": "a prompt without an undesirable response",
    "FP064": "a prompt with two different desirable responses",
    "FP065": "a prompt with two different responses of one error type",
    "FP066": "an undesirable response without an error type",
    "FP067": "a golden answer and its samples do not match",
    "FP068": "rows of one prompt cannot be kept apart",
    "FP070": "an entry of dataset_info.json is not an object",
    "FP071": "the dataset is not in dataset_info.json",
    "FP072": "an entry has an unknown key",
    "FP073": "an entry names no file",
    "FP074": "a path leaves the dataset folder",
    "FP075": "the data file is not there",
    "FP076": "a folder holds files of another kind",
    "FP080": "a masked_region is not [start, end, flag]",
    "FP081": "a text is not query<sep>response",
    "FP082": "the texts of a row have different queries",
    "FP083": "a row of the CSV does not fit its header",
    "FP084": "the token ids do not fit the text",
    "FP085": "a train_detail is not {begin_offset, end_offset, train}",
    "FP086": "a dialogue that no query in the HH layout stands for",
    "FP091": "too many rows of the input are bad",
    "FP201": "the dataset is of a format that the stage does not train on",
    "FP202": "the file is of a kind that cannot be checked",
    "FP203": "prompt and response do not fit into cutoff_len",
    "FP204": "no negative of the error types asked for",
    "FP205": "no second prompt to form mismatched pairs with",
    "FP210": "a record has no spans or token scores to select tokens by",
    "FP211": "the chat template changes the tokens of a response",
    "FP212": "the token scores belong to another tokenizer",
    "FP213": "the token scores do not fit the tokens of the response",
    "FP214": "no selected token is left of a response",
    "FP215": "spans on both responses where only one may be read",
    "FP216": "a span weight where a token can only be taken or left",
    "FP217": "a span weight is negative, which the stage does not allow",
    "FP220": "the margin of a pair is not above 0",
    "FP222": "the reward is read at an end token that is not there",
    "FP223": "all records to train on have the coefficient 0",
    "FP224": "the loss asked for is for records of which there are none",
    "FP230": "a prompt of several turns without a chat template",
    "FP231": "the chat template does not continue its own prompt",
    "FP240": "the chat template refuses the dialogue",
    "FP241": "the row is longer than the model's context",
    "FP250": "the token scores belong to another prompt",
    "FP251": "the template writes a token that the model does not have",
}
"""Code -> short meaning. Codes are never reused for another meaning (FP044 and FP221 were codes)."""

SHOWN = 100
"""The most problems that are kept for showing; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where: `line` 0 means the whole file, `field` "" the whole row."""

    file: str
    line: int
    field: str
    code: str
    message: str

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"{self.code} is not in the code table")

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{self.code} {place} {self.field}: {self.message}"
            if self.field
            else f"{self.code} {place}: {self.message}"
        )


class BadData(ValueError):  # noqa: N818 (the name is public)
    """Data that cannot be used.

    Attributes:
        problems: the first 100 problems.
        total: how many there are in all.
    """

    def __init__(self, problems: Sequence[Problem], total: int | None = None) -> None:
        self.total = len(problems) if total is None else total
        self.problems = tuple(problems[:SHOWN])
        super().__init__(self.problems, self.total)

    def __str__(self) -> str:
        count = "1 problem" if self.total == 1 else f"{self.total} problems"
        if self.total > len(self.problems):
            count += f", the first {len(self.problems)} shown"
        return "\n".join([*map(str, self.problems), count])
