"""`finepref tokens` shows the tokens and weights that a stage trains on. The tokenizer has one token per byte."""

from __future__ import annotations

import json
import random

import pytest
from finepref import stages
from finepref.cli import app
from finepref.formats.jsonl import write_jsonl
from finepref.hosts.token_view import token_texts
from typer.testing import CliRunner

SCORED = {"id": "a", "prompt": "?", "chosen": "abcd", "rejected": "efgh", "tokenizer": "letters"}
SCORED |= {"chosen_scores": [0.4, 0.3, 0.2, 0.1], "rejected_scores": [0.4, 0.3, 0.2, 0.1]}
SCORED |= {f"{side}_offsets": [[i, i + 1] for i in range(4)] for side in ("chosen", "rejected")}
SPANS = {"id": "s", "prompt": "Why?", "chosen": "right", "rejected": "a wrong word", "rejected_spans": [[2, 7, 0.5]]}
LISTS = {"id": "l", "prompt": "?", "responses": ["yes", "no"], "scores": [2, -1]}
NEGATIVES = {"id": "n", "prompt": "?", "chosen": "good", "negatives": {"fact": "bad", "logic": "worse"}}


@pytest.fixture
def told(tmp_path):
    """What the command prints about rows, after a check of its exit code."""

    def run(rows, *words, code=0):
        file = tmp_path / "rows.jsonl"
        write_jsonl(file, rows if isinstance(rows, list) else [rows])
        outcome = CliRunner().invoke(app, ["tokens", str(file), *map(str, words)])
        assert outcome.exit_code == code, outcome.output
        return outcome.output

    return run


@pytest.fixture
def content(told):
    """The first record as JSON."""
    return lambda *words, **options: json.loads(told(*words, "--json", **options).splitlines()[0])


@pytest.mark.parametrize(("ratio", "chosen", "rejected"), [(0.5, "⟦a⟧⟦b⟧cd", "ef⟦g⟧⟦h⟧"), (0.25, "⟦a⟧bcd", "efg⟦h⟧")])
def test_options_are_given_as_in_the_yaml_and_the_selected_tokens_are_in_brackets(told, ratio, chosen, rejected):
    ratios = [f"sepo_ratio_{side}={ratio}" for side in ("chosen", "rejected")]
    lines = told(SCORED, *ratios, "--stage", "sepo").splitlines()
    picked = int(4 * ratio)
    assert lines[-4:] == [
        f"chosen: {picked} of 4 tokens have a weight ({ratio:.0%})",
        chosen,
        f"rejected: {picked} of 4 tokens have a weight ({ratio:.0%})",
        rejected,
    ]


def test_without_a_model_spans_are_shown_by_characters_and_their_weight_stands_behind(told):
    lines = told(SPANS, "tdpo_sides=two", "--stage", "tdpo").splitlines()
    assert lines[-1] == "a ⟦wrong⟧0.5 word"
    assert lines[-2] == "rejected: 5 of 12 characters have a weight (42%)"
    assert lines[-3] == "⟦right⟧"


@pytest.mark.parametrize(
    ("colours", "blue", "orange"), [("truecolor", "48;2;0;114;178", "48;2;178;82;0"), ("standard", "44", "43")]
)
def test_in_a_terminal_positive_weights_are_on_blue_and_negative_ones_on_orange_with_two_lines(colours, blue, orange):
    from finepref.commands.tokens import _coloured
    from finepref.hosts.token_view import Response
    from rich.console import Console

    text = _coloured(Response("a", "", 1, "tokens", ["x", "y", "z"], {"weight": [1, -1, 0]}), colours == "truecolor")
    console = Console(color_system=colours, force_terminal=True)
    with console.capture() as capture:
        console.print(text)
    assert capture.get() == f"\x1b[97;{blue}mx\x1b[0m\x1b[21;97;{orange}my\x1b[0mz\n"


def test_in_a_terminal_there_are_colours_in_place_of_brackets(told, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = told(SPANS | {"rejected_spans": [[2, 7]]}, "tdpo_sides=two", "--stage", "tdpo")
    assert "a \x1b[97;48;2;0;114;178mwrong\x1b[0m word\n" in output
    assert "⟦" not in output


def test_with_a_model_the_tokens_are_those_of_its_chat_template(content, tiny_model):
    """The chosen response has no spans, so its five letters and the end token count."""
    found = content(SPANS, "tdpo_sides=two", "--stage", "tdpo", "--model", tiny_model)
    chosen, rejected = found["responses"]
    assert chosen["texts"] == [*"right", "</s>"]
    assert chosen["weight"] == [1] * 6
    assert rejected["texts"] == [*"a wrong word", "</s>"]
    assert rejected["weight"] == [0, 0, *[0.5] * 5, *[0] * 6]
    assert rejected["span"] == rejected["weight"]


def test_scores_of_another_tokenizer_are_refused_and_mapped_when_the_option_says_so(told, content, tiny_model):
    words = ["--stage", "sepo", "--model", tiny_model]
    assert "FP212" in told(SCORED, *words, code=1)
    found = content(SCORED, "sepo_map_scores=true", "sepo_ratio_chosen=0.5", *words)
    assert found["responses"][0]["weight"] == [1, 1, 0, 0, 0]
    assert found["responses"][0]["reward"] == [pytest.approx(s) for s in (0.4, 0.3, 0.2, 0.1)] + [None]


def test_a_reward_is_read_at_one_token_of_each_response(content, tiny_model):
    words = ["--stage", "apo_rm", "--model", tiny_model]
    for pooling, at in (("last", -2), ("eos", -1)):
        responses = content(LISTS, f"apo_pooling={pooling}", *words)["responses"]
        assert [each["name"] for each in responses] == ["responses[0]", "responses[1]"]
        for each in responses:
            assert [i for i, weight in enumerate(each["weight"]) if weight] == [len(each["texts"]) + at]


def test_of_negatives_the_ones_that_are_never_drawn_have_no_weight(content, tiny_model):
    words = ["--stage", "seapo_kto", "--model", tiny_model]
    both = content(NEGATIVES, *words)["responses"]
    assert [(each["name"], {*each["weight"]}) for each in both] == [("chosen", {1}), ("fact", {1}), ("logic", {1})]
    assert both[1]["about"] == "one of these is drawn in each epoch"
    one = content(NEGATIVES, "seapo_error_types=fact", *words)["responses"]
    assert [(each["name"], {*each["weight"]}) for each in one] == [("chosen", {1}), ("fact", {1}), ("logic", {0})]
    assert one[2]["about"] == "of a type that the options leave out"


def test_granular_sft_has_the_weights_of_the_chosen_response_alone(content, tiny_model):
    row = SPANS | {"chosen_spans": [[0, 2]], "rejected_spans": []}
    (chosen,) = content(row, "--stage", "granular_sft", "--model", tiny_model)["responses"]
    assert chosen["weight"] == [1, 1, 0, 0, 0, 0]


def test_a_record_that_would_be_skipped_is_shown_with_the_reason_and_the_exit_code_says_so(told, tiny_model):
    rows = [SPANS | {"chosen": "the same 1", "rejected": "the same 2", "rejected_spans": []}]
    words = ["tdpo_masks=none", "finepref_overlong=keep_prompt", "--stage", "tdpo", "--model", tiny_model]
    output = told(rows, *words, "--cutoff-len", 30, code=1)
    assert "skipped: equal_after_cut" in output
    assert "chosen: 10 characters, without weights" in output
    assert "the same 2" in output
    assert "skipped" not in told(rows, *words)


def test_the_cut_of_the_run_is_applied_and_told(content, tiny_model):
    """The prompt <user>Why?</s><assistant> has 22 tokens; LLaMA-Factory's rule leaves the response the rest."""
    words = ["tdpo_masks=none", "finepref_overlong=keep_prompt", "--stage", "tdpo", "--model", tiny_model]
    prompt = len("<user>Why?") + 1 + len("<assistant>")
    found = content(SPANS, *words, "--cutoff-len", prompt + 3)
    assert [each["texts"] for each in found["responses"]] == [[*"rig"], [*"a w"]]
    assert found["notes"] == ["cut to fit cutoff_len: the response"]


def test_a_page_of_several_records_says_what_it_leaves_out(told, tmp_path):
    rows = [SCORED | {"id": f"r{i}"} for i in range(5)]
    page = tmp_path / "page.html"
    assert told(rows, "--stage", "sepo", "--record", 2, "--count", 3, "--output", page) == f"{page}: 3 records\n"
    text = page.read_text(encoding="utf-8")
    assert [f'"id":"r{i}"' in text for i in range(5)] == [False, True, True, True, False]
    assert "records 2 to 4 of rows.jsonl; more follow: --record 5, or a larger --count" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stage", "sepo", "--record", "2"], "has no record 2"),
        (["nonsense=1", "--stage", "sepo"], "nonsense=1: stage sepo has the options "),
        (["--stage", "nonsense"], "finepref has no stage nonsense; it has "),
        (["sepo_ratio_chosen=2", "--stage", "sepo"], "`sepo_ratio_chosen` must be above 0 and at most 1, not 2"),
        (["--stage", "apo_rm"], "what stage apo_rm trains on depends on tokens: give the model with --model"),
        (["--stage", "cdpo"], "FP262"),
        (["--stage", "sepo", "--cutoff-len", "9"], "--template and --cutoff-len are about tokens: give --model too"),
        (["--stage", "sepo", "--model", "models/nowhere"], "there is no model folder 'models/nowhere'"),
        (["--stage", "granular_sft", "--model", "MODEL"], "FP201"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_message(told, tiny_model, words, message):
    output = told(SCORED, *[str(tiny_model) if word == "MODEL" else word for word in words], code=1)
    assert message in output
    assert "Traceback" not in output


def test_a_template_by_name_needs_the_host_and_that_is_said(told, tiny_model, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "finepref.hosts.llamafactory.template_tokens", None)
    output = told(SCORED, "--stage", "sepo", "--model", tiny_model, "--template", "chatml", code=1)
    assert "the template chatml is LLaMA-Factory's; --template tokenizer is the tokenizer's chat template" in output


def test_a_bad_row_is_shown_with_its_problem(told):
    output = told([{"id": "b", "prompt": "?", "chosen": "x"}], "--stage", "sepo", "--format", "scored_pair", code=1)
    assert "FP010" in output
    assert "chosen: 1 characters, without weights" in output


def test_each_stage_on_pairs_can_be_looked_at_without_a_model(told):
    """Scores or spans, whichever the stage reads."""
    rows = {"scored_pair": SCORED, "span_pair": SPANS, "pair": SPANS}
    for stage in (each for each in stages.all_stages().values() if each.shape == "pair"):
        row = dict(rows[stage.formats[0]])
        if stage.name == "cdpo":
            row["score_kind"] = "contrast"
        options = ["tgdpo_map_scores=true"] if stage.name == "tgdpo" else []
        assert "have a weight" in told(row, *options, "--stage", stage.name)


TEXTS = ["plain words", "naïve 🦙 の答え", "🦙" * 20, "a\u0301 e\u0300 \U0001f468\u200d\U0001f469\u200d\U0001f467", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_of_several_tokens_comes_with_the_last_of_them(tiny_model, text):
    """Beside the slow way, which decodes all tokens before each token. A byte is a token here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    slow, known = [], ""
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(ids[:end])
        whole = known if whole.endswith("\ufffd") and end < len(ids) else whole
        slow.append(whole[len(known) :])
        known = whole
    assert token_texts(tokenizer, ids) == slow
    assert "".join(slow) == text


def test_long_texts_are_decoded_in_windows_and_stay_whole(tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    draw = random.Random(0)
    text = "".join(draw.choice(["ab ", "é", "🦙", "\n", "語"]) for _ in range(400))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "🦙" in texts


def test_a_space_that_a_decoder_drops_at_the_beginning_stays_in_the_middle_of_long_texts():
    """As in Llama 2: the decoder takes the space off the first token that it is given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "?": 2}, unk_token="?"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")
    text = " ".join("ab" * 50)
    texts = token_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert texts == ["a", *[" b", " a"] * 49, " b"]
