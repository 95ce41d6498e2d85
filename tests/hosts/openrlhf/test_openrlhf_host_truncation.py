"""`overlong host` keeps the tokens, and leaves out the rows, that OpenRLHF's own RewardDataset keeps and leaves out.

Where finepref differs on purpose, the texts here do not show it:

- Prompt and response are tokenised separately, the host tokenises them as one text. So responses here begin with a
  letter, before which the tokenizer always begins a token.
- Without a chat template finepref ends a response with the end token, the host with a space and the end token. The
  host adds neither to a response that ends with the end token, so here it gets such responses.
- After the end token finepref keeps what the template writes there (often a line break), the host strips line breaks.
- The host trains on pairs of which the cut makes two equal responses. finepref leaves them out and counts them.
"""

from __future__ import annotations

from functools import partial
from random import Random
from types import SimpleNamespace

import pytest

MAX_LEN = 160
COUNT = 2000
KEYS = ("prompt", "chosen", "rejected")

NO_BREAK_AT_THE_END = (
    "{% for m in messages %}{{ '' if loop.first else '\n' }}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
    "{% endfor %}{{ '\n<|im_start|>assistant\n' if add_generation_prompt else '' }}"
)


def random_rows() -> list[dict]:
    """Pairs of every length around MAX_LEN; in some, the responses differ at their end only."""
    chance = Random(11)
    words = ["the", "answer", "is", "a", "number", "and", "so", "on", "What", "12", "13", "élan", "naïve", "数"]

    def text(most: int) -> str:
        return " ".join(chance.choice(words) for _ in range(chance.randint(1, most)))

    rows = []
    for i in range(COUNT):
        start = text(60) if chance.random() < 0.3 else ""
        chosen, rejected = (f"{name}{text(40)}" for name in ("yes ", "no "))
        if start:
            chosen, rejected = f"so {start} {chosen}", f"so {start} {rejected}"
        rows.append({"id": f"row-{i}", "prompt": f"{i} {text(80)}?", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    from openrlhf.utils import get_tokenizer

    return get_tokenizer(str(tiny_model), None, "right", None, use_fast=True)


@pytest.fixture(params=["chat", "chat with a line break at the end", "plain", "plain with an input template"])
def arguments(request, tokenizer, monkeypatch):
    """The host's `--data.*` of four ways to write a dialogue."""
    template = None if "break" in request.param else NO_BREAK_AT_THE_END
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template)
    return SimpleNamespace(
        apply_chat_template=request.param.startswith("chat"),
        tokenizer_chat_template=template if request.param.startswith("chat") else None,
        input_template="Question: {}\nAnswer:" if "input" in request.param else None,
        max_len=MAX_LEN,
        prompt_key="prompt",
        chosen_key="chosen",
        rejected_key="rejected",
    )


def kept_by_host(rows: list[dict], tokenizer, arguments, *, is_dpo: bool) -> tuple[list[tuple], set[str]]:
    """(chosen ids, rejected ids) of each row that the host keeps, and the ids of those that it leaves out."""
    from datasets import Dataset
    from openrlhf.datasets import RewardDataset

    given = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        if arguments.apply_chat_template
        else {key: row[key] + ("" if key == "prompt" else tokenizer.eos_token) for key in KEYS}
        for row in rows
    ]
    strategy = SimpleNamespace(args=SimpleNamespace(data=arguments))
    host = RewardDataset(
        Dataset.from_list(given),
        tokenizer,
        MAX_LEN,
        strategy,
        input_template=arguments.input_template,
        is_dpo=is_dpo,
        num_processors=None,
    )
    left_out = {row["id"] for row, each in zip(rows, given, strict=True) if host.process_data(each)["prompt"] is None}
    return [(tuple(c[0].tolist()), tuple(r[0].tolist())) for c, _, r, _, _ in host], left_out


@pytest.fixture
def ours(host, tokenizer, arguments):
    """Tokenise rows as a stage does: (chosen ids, rejected ids) of each row that is kept, and the notes."""
    from finepref.formats import records
    from finepref.hosts.openrlhf import data, pairs, ranked
    from finepref.hosts.openrlhf.notes import Notes
    from finepref.hosts.reading import Sourced
    from finepref.hosts.rows import Rows
    from finepref.methods import apo_rm, tdpo
    from finepref.methods.options import in_yaml

    def call(rows: list[dict], *, is_dpo: bool) -> tuple[list[tuple], Notes]:
        stage = tdpo.STAGE if is_dpo else apo_rm.STAGE
        given = {"tdpo_masks": "none"} if is_dpo else {"apo_pooling": "eos", "finepref_overlong": "host"}
        options = stage.options.read("openrlhf", given, in_yaml)
        rule = data.dpo_rule if is_dpo else data.reward_rule
        encoder = data.Encoder(tokenizer, arguments, policy=options.overlong, rule=rule)
        notes = Notes(Rows(), options.bad_rows)
        found = [Sourced("x.jsonl", i, records.parse(row, "pair"), 1) for i, row in enumerate(rows, start=1)]
        if is_dpo:
            made = pairs.tokenise(found, encoder, "x", notes, weigh=partial(stage.weigh, options=options, seed=0))
            return [(tuple(row.chosen.ids.tolist()), tuple(row.rejected.ids.tolist())) for row in made], notes
        made = ranked.tokenise(found, encoder, "x", notes, options=options)
        return [tuple(tuple(ids.tolist()) for ids in row.sequences) for row in made], notes

    return call


@pytest.mark.parametrize("is_dpo", [True, False], ids=["train_dpo", "train_rm"])
def test_two_thousand_random_pairs_are_cut_as_the_host_cuts_them(ours, tokenizer, arguments, is_dpo):
    from finepref.methods import overlong

    rows = random_rows()
    found, notes = ours(rows, is_dpo=is_dpo)
    expected, left_out = kept_by_host(rows, tokenizer, arguments, is_dpo=is_dpo)
    differing = [pair for pair in expected if pair[0] != pair[1]]
    end = tokenizer.eos_token_id
    without_break = [tuple(ids[: len(ids) - ids[::-1].index(end)] for ids in pair) for pair in found]
    assert without_break == differing
    assert {row["id"] for row in notes.rows.named if row["reason"] == overlong.OVERLONG} == left_out
    assert len(expected) - len(differing) == notes.rows.skipped.total() - len(left_out)
    assert notes.rows.skipped[overlong.EQUAL_AFTER_CUT] > 20
    assert len(left_out) > 50 if is_dpo else not left_out
    assert sum(max(map(len, pair)) == MAX_LEN for pair in differing) > 200
    assert sum(max(map(len, pair)) < MAX_LEN for pair in differing) > 200
    assert notes.rows.cut["response"] > 200
    assert not notes.bad_rows.problems
