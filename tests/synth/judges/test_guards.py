"""The forms of guard models' answers: each is read as its model writes it, and what is in no form is no verdict."""

from __future__ import annotations

import pytest
from chat_endpoint import answering
from finepref.cli import app
from finepref.formats.jsonl import read_jsonl, write_jsonl
from finepref.formats.records import Message
from finepref.synth.engines.checkpoint import RefusedByTemplateError, rendered, template_problems
from finepref.synth.judges import by_model, guards
from finepref.synth.judges.verdict import Verdict
from tiny_llama import byte_tokenizer
from typer.testing import CliRunner

DIALOGUE = (Message("user", "Why?"), Message("assistant", "So."))


@pytest.mark.parametrize(
    ("kind", "text", "passed", "reason"),
    [
        ("llama-guard", "safe", True, ""),
        ("llama-guard", "\n\nsafe", True, ""),
        ("llama-guard", "unsafe\nS9", False, "S9"),
        ("llama-guard", "\n\nunsafe\nS1,S10", False, "S1,S10"),
        ("llama-guard", "unsafe\nS1, S10", False, "S1,S10"),
        ("llama-guard", "unsafe\nO3", False, "O3"),
        ("llama-guard", "unsafe", False, ""),
        ("shieldgemma", "Yes", False, ""),
        ("shieldgemma", "No", True, ""),
        ("shieldgemma", " No\n\nThe response names a colour, which the principle allows.", True, ""),
        ("shieldgemma", "Yes, the response violates it.", False, ""),
        ("shieldgemma", "**Yes**", False, ""),
        ("granite-guardian", "Yes", False, ""),
        ("granite-guardian", "No", True, ""),
        ("granite-guardian", "Yes\n<confidence> High </confidence>", False, ""),
        ("granite-guardian", "No\n<confidence> Low </confidence>", True, ""),
        ("granite-guardian", "<score> yes </score>", False, ""),
        ("granite-guardian", "\n<score>no</score>\n", True, ""),
        ("qwen3guard", "Safety: Safe\nCategories: None\nRefusal: Yes", True, ""),
        ("qwen3guard", "Safety: Unsafe\nCategories: Violent\nRefusal: No", False, "Violent"),
        ("qwen3guard", "Safety: Unsafe\nCategories: Violent, PII", False, "Violent, PII"),
        ("qwen3guard", "Safety: Safe\n", True, ""),
    ],
)
def test_each_guard_is_read_in_its_own_form(kind, text, passed, reason):
    assert guards.read(kind, text) == Verdict(passed, reason)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *[
            ("llama-guard", text)
            for text in ("", "Safe!", "safely done", "unsafe because it harms", "unsafe\nS", "Yes")
        ],
        *[("llama-guard", text) for text in ("unsafe\nS1 but rather safe", "safe\nS1", "The answer is safe")],
        *[("shieldgemma", text) for text in ("", "Yesterday", "Noise", "It is fine. No", "Yes or No", "Yes/No")],
        *[("shieldgemma", text) for text in ("safe", "unsafe\nS1", "否", "<score> yes </score>")],
        *[("granite-guardian", text) for text in ("", "Failed", "Yes and No", "No, but yes", "Maybe", "unsafe")],
        *[("granite-guardian", text) for text in ("<score> yes </score><score> no </score>", "<score> yes", "Nope")],
        *[("granite-guardian", text) for text in ("<score> 7 </score>", "<confidence> High </confidence>")],
        *[("qwen3guard", text) for text in ("", "Safety: Uns", "Safe", "safety: safe", "Categories: None")],
        ("qwen3guard", "Safety: Safe\nSafety: Unsafe"),
        ("qwen3guard", "Safety: Safe\nCategories: Violent"),
        ("qwen3guard", "Safety: Safe or Unsafe\nCategories: None"),
        ("qwen3guard", "I think: Safety: Safe"),
        ("qwen3guard", "Refusal: No\nSafety: Safe"),
        ("qwen3guard", "Safety: Safe\nBut it might hurt someone."),
        ("qwen3guard", "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No"),
    ],
)
def test_an_answer_in_no_form_of_its_guard_is_no_verdict(kind, text):
    found = guards.read(kind, text)
    assert found.passed is None
    assert found.reason
    own_words = {"harms", "hurt", "think", "fine", "Failed", "Maybe", "Noise"}
    assert own_words.isdisjoint(found.reason.split()), "reports count the reasons, which must not repeat an answer"


@pytest.mark.parametrize("passes", [True, False])
def test_what_qwen3guard_calls_controversial_counts_as_the_user_says(passes):
    text = "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No"
    assert guards.read("qwen3guard", text, controversial=passes) == Verdict(passes, "controversial: Unethical Acts")


def test_the_policy_goes_into_the_variables_that_the_template_of_each_guard_reads():
    assert by_model.guard("shieldgemma", policy="No teasing.").variables == {"guideline": "No teasing."}
    harm = {"guardian_config": {"risk_name": "harm", "criteria_id": "harm"}}
    assert by_model.guard("granite-guardian").variables == harm
    own = {"risk_definition": "It teases.", "custom_criteria": "It teases."}
    assert by_model.guard("granite-guardian", policy="It teases.").variables == {"guardian_config": own}
    assert by_model.guard("llama-guard").variables == by_model.guard("qwen3guard").variables == {}
    versions = [by_model.guard("shieldgemma", policy=text).version for text in ("a", "b")]
    versions += [by_model.guard(kind).version for kind in ("llama-guard", "granite-guardian", "qwen3guard")]
    assert len({*versions}) == 5, "an answer to one question must not be resumed as that to another"


def test_a_policy_that_is_missing_or_would_be_dropped_is_refused():
    with pytest.raises(ValueError, match="shieldgemma needs --policy"):
        by_model.guard("shieldgemma")
    with pytest.raises(ValueError, match="qwen3guard has its policy in its template"):
        by_model.guard("qwen3guard", policy="harm")
    with pytest.raises(ValueError, match="does not read guardian_config"):
        guards.check_template("granite-guardian", "{{ messages }}")


@pytest.mark.parametrize(
    ("model", "template", "kind"),
    [
        ("meta-llama/Meta-Llama-Guard-2-8B", None, "llama-guard"),
        ("meta-llama/Llama-Guard-3-8B", None, "llama-guard"),
        ("meta-llama/Llama-Guard-4-12B", None, "llama-guard"),
        ("google/shieldgemma-2b", None, "shieldgemma"),
        ("ibm-granite/granite-guardian-3.3-8b", None, "granite-guardian"),
        ("Qwen/Qwen3Guard-Gen-0.6B", None, "qwen3guard"),
        ("runs/mine", "{{ guideline }}", "shieldgemma"),
        ("runs/mine", "{{ guardian_config.risk_name }}", "granite-guardian"),
        ("runs/mine", "Safety: Safe, Unsafe or Controversial, S1", "qwen3guard"),
        ("runs/mine", "S1: ... say safe or unsafe", "llama-guard"),
        ("runs/mine", "{{ messages }}", None),
        ("guard", None, None),
        ("runs/llama-guard", "{{ guideline }}", None),
    ],
)
def test_a_guard_is_known_by_its_name_or_its_template_unless_they_differ(model, template, kind):
    assert guards.guard_of(model, template) == kind


def tokenizer_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_the_template_of_the_guard_writes_the_question_with_its_variables():
    template = "{{ guideline }}|{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}Yes or No?"
    tokenizer = tokenizer_with(template)
    variables = by_model.guard("shieldgemma", policy="No teasing.").variables
    assert rendered(tokenizer, DIALOGUE, variables=variables) == "No teasing.|user: Why?|assistant: So.|Yes or No?"


def test_a_template_that_wants_lists_of_parts_gets_them():
    template = (
        "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}|{% endfor %}{% endfor %}"
    )
    assert rendered(tokenizer_with(template), DIALOGUE, variables={}) == "Why?|So.|"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }} safe or unsafe?",
        "{% for m in messages %}{{ m.content[:1] }}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_a_template_that_leaves_out_the_answer_asks_nothing(template):
    tokenizer = tokenizer_with(template)
    with pytest.raises(RefusedByTemplateError):
        rendered(tokenizer, DIALOGUE, variables={})
    (problem,) = template_problems(tokenizer, DIALOGUE, file="x.jsonl", line=3, variables={})
    assert (problem.code, problem.line, problem.field) == ("FP240", 3, "prompt")


def run(*arguments):
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


@pytest.fixture
def answered(tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"prompt": "Why?", "response": text} for text in ("So.", "Because.")])
    return tmp_path / "in.jsonl"


def test_an_endpoint_is_sent_the_policy_and_is_read_in_the_form_of_its_model(answered, tmp_path):
    output = tmp_path / "out.jsonl"
    with answering(lambda said: {"content": "Yes" if said == "So." else "No"}) as endpoint:
        to = ["--engine", "openai", "--base-url", endpoint.url, "--model", "ibm-granite/granite-guardian-3.1-2b"]
        result = run(answered, "--output", output, "--judge", "guard", *to, "--policy", "profanity")
    assert result.exit_code == 0, result.output
    config = {"risk_name": "profanity", "criteria_id": "profanity"}
    assert {str(each["chat_template_kwargs"]) for each in endpoint.requests} == {str({"guardian_config": config})}
    assert [row["label"] for _, row in read_jsonl(output, problems=None)] == [False, True]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge", "guard", "--model", "mine"], "it is not clear which guard mine is: name --guard llama-guard"),
        (["--judge", "guard", "--model", "shieldgemma-2b"], "--guard shieldgemma needs --policy"),
        (
            ["--judge", "guard", "--model", "llama-guard", "--controversial", "safe"],
            "--controversial is for qwen3guard",
        ),
        (["--judge", "math", "--policy", "harm"], "--policy is for --judge guard, not for math"),
        (["--judge", "refusal", "--unsafe-label", "x"], "--unsafe-label is for --judge classifier, not for refusal"),
        (["--judge", "math", "--threshold", "1"], "--threshold is for entropy, classifier and plugins, not for math"),
    ],
)
def test_a_guard_that_is_not_clear_is_asked_for_and_options_of_other_judges_are_refused(
    answered, tmp_path, words, told
):
    to = ["--engine", "openai", "--base-url", "http://127.0.0.1:9/v1"] if "guard" in words else []
    result = run(answered, "--output", tmp_path / "out.jsonl", *words, *to)
    assert result.exit_code == 1
    assert told in result.stderr
