"""What can be wrong with data: the code table, one problem, and the error that carries all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

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
    "FP087": "a masked_region of flag 0: both responses are masked",
    "FP088": "a row with images, videos or audios",
    "FP089": "a turn of a tool whose role may mean a call or its result",
    "FP090": "a row that gives no record",
    "FP091": "too many rows of the input are bad",
    "FP092": "the rows of a file are of several layouts",
    "FP093": "the layout of a row is not known",
    "FP094": "the prompts of the two responses differ",
    "FP095": "a response is not one message of the assistant",
    "FP096": "a label that names none of the responses",
    "FP097": "the file is of a kind that is not read",
    "FP100": "a mark that is on no characters of the response; the row is read without it",
    "FP101": "a mark that the record cannot hold; the row is read without it",
    "FP102": "a step, or a response, that gives no pair; others do",
    "FP103": "the better response is another one of the row",
    "FP104": "the marks of steps do not fit the steps",
    "FP105": "the marks of edits do not fit the text",
    "FP106": "sentences that are not those of the response",
    "FP107": "nothing of a response is left to train on",
    "FP108": "a transcript without the marks of its speakers",
    "FP109": "the row has the content of an earlier one, and is trained on too",
    "FP110": "a package that reads this kind of data is not installed",
    "FP111": "a data set on a hub cannot be read",
    "FP112": "a command that needs rows of another format",
    "FP117": "tools that are not a list of objects",
    "FP118": "calls of functions that cannot be read",
    "FP120": "the row gives no pair, although nothing is wrong with it; it is left out and counted",
    "FP121": "a system text that is not used, because the messages have their own",
    "FP122": "no part of a worse response is marked, so all of it is its span",
    "FP201": "the dataset is of a format that the stage does not train on",
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
    "FP242": "the template cannot write the tools, or the turns of tools, of a row",
    "FP250": "the token scores belong to another prompt",
    "FP251": "the template writes a token that the model does not have",
    "FP260": "the kind of the token scores is unknown",
    "FP261": "a contrast is not between 0 and 1",
    "FP262": "the token scores are of another kind than the stage reads",
    "FP263": "a response has no end token, which is to be trained",
    "FP264": "a pair has no margin, which the loss reads",
    "FP280": "the options of a question are too few, too many or not different",
    "FP281": "the answer of a question names none of its options, or two",
    "FP282": "the labels of options do not fit the options",
    "FP283": "a multiple-choice question with further turns or tools",
    "FP284": "the questions of a subject are not a list",
    "FP290": "a warm-up file where instructions to start from are wanted",
    "FP291": "an instruction where a ready few-shot prompt is wanted",
    "FP300": "a task to evaluate is not known, or asked for in two ways",
    "FP301": "the data or the metric of a task cannot be read",
    "FP302": "the folder of results holds those of another model, or with other settings",
    "FP303": "a task needs a package, data or an option that is not there",
    "FP304": "the data leave nothing to measure",
    "FP305": "a run to report on is not there",
    "FP306": "a folder holds nothing to report",
    "FP307": "a file of a run cannot be read",
    "FP308": "a run to report on did not end",
    "FP309": "a run is given twice",
    "FP310": "the texts of token ids are not known",
    "FP311": "the texts are not those of the token ids",
    "FP312": "a row is not one of a file of rejected rows",
    "FP320": "a record to annotate is not a pair",
    "FP321": "the marks belong to another text",
    "FP322": "a mark is on no characters of the response, or on those of another mark",
    "FP323": "the weight of a mark is not a number from 0 on",
    "FP324": "two annotators have no record in common",
    "FP325": "a record has other texts in the file of the other annotator",
    "FP326": "marks are not of the form that the annotator writes",
}
"""Code -> short meaning. Codes are never used again for another meaning (FP044, FP064, FP065, FP086, FP202, FP221)."""

NOTES = frozenset({"FP100", "FP101", "FP102", "FP103", "FP109", "FP121", "FP122"})
"""Codes that do not make a row a bad one: what has no place in its record is counted and told."""
LEFT_OUT = frozenset({"FP120"})
"""Codes of good rows that give no record: they are left out, counted and named, and stop nothing."""

SHOWN = 100
"""The most problems that are kept for showing; the rest are counted."""


EXAMPLES = 3
"""Equal problems are told in one line, with this many of their places."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where: `line` 0 means the whole file, `field` "" the whole row.

    `record` is the id that the row gives, "" if it gives none.
    """

    file: str
    line: int
    field: str
    code: str
    message: str
    record: str = dataclass_field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise KeyError(f"{self.code} is not in the code table")

    @property
    def place(self) -> str:
        """The file, with the line if there is one; for a row in a one-line array also its index."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        place = f"{self.place} {self.field}" if self.field else self.place
        return f"{self.code} {place}: {self.message}" + (f" (id {self.record})" if self.record else "")


@dataclass
class Group:
    """Problems that are equal but for their place, and for numbers and quoted texts in their message.

    Attributes:
        first: the first of them.
        count: how many there are.
        places: of the first three.
        vary: whether their messages differ, in a number or a quoted text.
    """

    first: Problem
    count: int = 0
    places: list[str] = dataclass_field(default_factory=list)
    vary: bool = False

    def add(self, problem: Problem) -> None:
        """Count one more."""
        self.count += 1
        self.vary = self.vary or problem.message != self.first.message
        if self.count <= EXAMPLES:
            self.places.append(problem.place)

    def __str__(self) -> str:
        """The first problem, the number of others, and two of their places."""
        if self.count == 1:
            return str(self.first)
        return f"{self.first}; {self.count - 1:,} more like it: {self.examples.partition(', ')[2]}"

    @property
    def examples(self) -> str:
        """The places that are kept."""
        return ", ".join(self.places) + (", ..." if self.count > len(self.places) else "")


_VARYING = re.compile(r"\d+(?:\.\d+)?|'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


class Groups:
    """Problems grouped by what is wrong; memory does not grow with their number, only with that of the kinds."""

    def __init__(self, problems: Iterable[Problem] = ()) -> None:
        self.by_kind: dict[tuple[str, str, str], Group] = {}
        for problem in problems:
            self.add(problem)

    def kind_of(self, problem: Problem) -> tuple[str, str, str]:
        """What equal problems have in common."""
        field, message = _VARYING.sub("#", problem.field), _VARYING.sub("#", problem.message)
        kind = (problem.code, field, message)
        return kind if kind in self.by_kind or len(self.by_kind) < 1000 else (problem.code, field, "")

    def add(self, problem: Problem) -> None:
        """Count a problem. After a thousand kinds, further ones are counted by code and field alone."""
        kind = self.kind_of(problem)
        if kind not in self.by_kind:
            self.by_kind[kind] = Group(problem)
        self.by_kind[kind].add(problem)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.by_kind.values())


class BadData(ValueError):  # noqa: N818 (the name is public)
    """Data that cannot be used.

    Attributes:
        problems: the first 100 problems.
        total: how many there are in all.
    """

    def __init__(self, problems: Sequence[Problem] | str, total: int | None = None) -> None:
        """Collect problems.

        Args:
            problems: the problems; or the text of such an error, as a worker process gives it when it is raised again.
            total: how many there are, if `problems` holds the first of them only.
        """
        text = problems if isinstance(problems, str) else ""
        found = _problems_in(text) if isinstance(problems, str) else problems
        self.total = len(found) if total is None else total
        self.problems = tuple(found[:SHOWN])
        self._text = text if text and not found else _text(found, self.total)
        super().__init__(self.problems, self.total)

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.problems, self.total, self._text)


def _again(problems: Sequence[Problem], total: int, text: str) -> BadData:
    """The error that was pickled: its text may group more problems than it keeps."""
    error = BadData(problems, total)
    error._text = text
    return error


def _text(problems: Sequence[Problem], total: int) -> str:
    """The problems, equal ones in one line where they are many, and their number."""
    groups = Groups(problems)
    few = {kind for kind, group in groups.by_kind.items() if group.count <= EXAMPLES}
    lines, told = [], 0
    for problem in problems:
        kind = groups.kind_of(problem)
        if kind in few:
            lines.append(str(problem))
            told += 1
        elif kind in groups.by_kind and groups.by_kind[kind].first is problem:
            lines.append(str(groups.by_kind[kind]))
            told += groups.by_kind[kind].count
        if len(lines) == SHOWN:
            break
    count = "1 problem" if total == 1 else f"{total} problems"
    if total > told:
        count += f", the first {told} shown"
    return "\n".join([*lines, count])


_PLACED = re.compile(
    r"(?m)^(?:[\w.]*BadData: )?(?P<code>[A-Z]{2,8}\d{3}) (?P<place>\S+?)(?P<field> \S+)?: (?P<message>.+)$"
)


def _problems_in(text: str) -> list[Problem]:
    """The problems in the text of a BadData that was raised in another process."""
    found = []
    for match in _PLACED.finditer(text):
        file, _, line = match["place"].rpartition(":")
        numbered = line.isdigit() and file != ""
        if match["code"] in CODES:
            place = (file, int(line)) if numbered else (match["place"], 0)
            found.append(Problem(*place, (match["field"] or "").strip(), match["code"], match["message"]))
    return found
