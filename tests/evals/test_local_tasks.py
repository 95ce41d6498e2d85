"""Our own tasks on a tiny model: figures against the model's own forward pass, groups, limits, and resuming."""

from __future__ import annotations

import json
from statistics import fmean

import pytest
from finepref.cli import app
from finepref.synth.engines.hf import HfEngine
from typer.testing import CliRunner


def evaluate(*words):
    """`finepref eval` in this process; its result, whose output holds both streams."""
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten records for each task."""
    folder = tmp_path_factory.mktemp("data")
    negatives = [
        {
            "id": f"n{i}",
            "prompt": f"What is {i} + 7?",
            "chosen": f"{i} + 7 = {i + 7}",
            "negatives": {"correctness": f"{i} + 7 = {i + 8}", "logic": f"{i} + 7 = {i + 7}, which is odd"},
        }
        for i in range(10)
    ]
    pairs = [
        {
            "id": i,
            "prompt": f"What is {i} + 7?",
            "chosen": f"It is {i + 7}.",
            "rejected": f"It is {i + 9}!",
            "chosen_model": "a",
            "rejected_model": "b",
            "subset": ("even", "odd")[i % 2],
        }
        for i in range(10)
    ]
    choices = [
        {"question": f"What is {i} + 7?", "options": [str(i + 6), str(i + 7)], "answer": "B", "subject": "sums"}
        for i in range(10)
    ]
    return {
        "negatives": write(folder / "negatives.jsonl", negatives),
        "pairs": write(folder / "pairs.jsonl", pairs),
        "choices": write(folder / "choices.jsonl", choices),
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory, tiny_model, data):
    """All of our own tasks on the model."""
    output = tmp_path_factory.mktemp("out")
    words = ["--data", f"margins,detection={data['negatives']}", "--data", f"preferences={data['pairs']}"]
    words += ["--data", f"letters={data['choices']}", "--limit", 8, "--max-new-tokens", 6]
    made = evaluate("local", "--model", tiny_model, "--output", output, *words)
    assert made.exit_code == 0, made.output
    return output / "tiny"


def task(out, name):
    return json.loads((out / "tasks" / f"{name}.json").read_bytes())


def samples(out, name):
    return [json.loads(line) for line in (out / "samples" / f"{name}.jsonl").read_text().splitlines()]


def next_logps(folder, text, adapter=None):
    """Log-probabilities [V] of the token after a text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(ids).logits[0, -1].log_softmax(-1)


def mean_logp(folder, prompt, answer, adapter=None):
    """The mean log-probability of the tokens of an answer and of its end, one by one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text, found = f"<user>{prompt}</s><assistant>", []
    for token in [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]:
        found.append(next_logps(folder, text, adapter)[token].item())
        text += tokenizer.decode([token])
    return fmean(found)


def test_every_task_has_a_result_with_its_settings_and_a_row_per_document(out):
    counts = {name: task(out, name)["n"] for name in ("gym", "margins", "preferences", "letters", "detection")}
    assert counts == {"gym": 8, "margins": 16, "preferences": 8, "letters": 8, "detection": 16}
    for name, n in counts.items():
        assert len(samples(out, name)) == n
        assert task(out, name)["settings"]["limit"] == 8
    assert len(task(out, "margins")["settings"]["data_sha256"]) == 64


def test_preferences_are_mean_log_probabilities_by_subset(out, tiny_model):
    row = samples(out, "preferences")[0]
    good, bad = (mean_logp(tiny_model, "What is 0 + 7?", answer) for answer in ("It is 7.", "It is 9!"))
    assert row["margin"] == pytest.approx(good - bad, abs=1e-4)
    found = task(out, "preferences")
    shares = {
        name: [each["accuracy"] for each in samples(out, "preferences") if each["subset"] == name]
        for name in found["by"]
    }
    assert {name: own["accuracy"] for name, own in found["by"].items()} == {
        name: fmean(own) for name, own in shares.items()
    }
    assert [own["n"] for own in found["by"].values()] == [4, 4]
    assert found["calibration"]["n"] == 8


def test_a_reference_gives_the_implicit_reward_of_an_adapter(tmp_path, tiny_model, adapter, data):
    words = ["--data", data["pairs"], "--limit", 2, "--reference", tiny_model, "--beta", 0.5]
    made = evaluate("preferences", "--model", adapter, "--output", tmp_path, *words)
    assert made.exit_code == 0, made.output
    answers = ("It is 7.", "It is 9!")
    good, bad = (
        mean_logp(tiny_model, "What is 0 + 7?", answer, adapter) - mean_logp(tiny_model, "What is 0 + 7?", answer)
        for answer in answers
    )
    assert samples(tmp_path / "lora", "preferences")[0]["margin"] == pytest.approx(0.5 * (good - bad), abs=1e-4)


def test_a_reward_model_is_recognised_and_gives_its_own_rewards(tmp_path, tiny_model, data):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoTokenizer

    folder = tmp_path / "rewards"
    model = AutoModel.from_pretrained(tiny_model)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    weight = torch.arange(32.0).reshape(1, 32) / 32
    save_file(
        {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}, folder / "value_head.safetensors"
    )
    made = evaluate("reward", "--model", folder, "--output", tmp_path, "--data", data["pairs"], "--limit", 3)
    assert made.exit_code == 0, made.output
    rewards = []
    for answer in ("It is 7.", "It is 9!"):
        ids = tokenizer(f"<user>What is 0 + 7?</s><assistant>{answer}</s>", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0]
        rewards.append(float(hidden[-2] @ weight[0]))
    assert samples(tmp_path / "rewards", "preferences")[0]["margin"] == pytest.approx(
        rewards[0] - rewards[1], abs=1e-3
    )
    assert "reward: accuracy" in made.output


def test_letters_are_the_probabilities_of_the_next_token(out, tiny_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    logps = next_logps(tiny_model, "<user>What is 0 + 7?\nA. 6\nB. 7</s><assistant>")
    a, b = (logps[tokenizer(letter)["input_ids"][0]].exp().item() for letter in "AB")
    row = samples(out, "letters")[0]
    assert row["confidence"] == pytest.approx(max(a, b) / (a + b), abs=1e-5)
    assert row["letter"] == ("A" if a > b else "B")
    assert task(out, "letters")["by"]["sums"]["n"] == 8


def test_detection_is_the_mean_over_both_orders_of_the_options(out, tiny_model):
    from finepref.evals.detection import ASK, OPTIONS
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shares = []
    for first, second, letter in ((*OPTIONS, 0), (*OPTIONS[::-1], 1)):
        text = ASK.format(question="What is 0 + 7?", answer="0 + 7 = 8", first=first, second=second)
        logps = next_logps(tiny_model, f"<user>{text}</s><assistant>")
        both = [logps[tokenizer(each)["input_ids"][0]].exp().item() for each in "AB"]
        shares.append(both[letter] / sum(both))
    row = next(each for each in samples(out, "detection") if each["id"] == "n0/correctness")
    assert row["p_error"] == pytest.approx(fmean(shares), abs=1e-5)
    assert task(out, "detection")["by"].keys() == {"correctness", "logic"}


def test_gym_judges_right_and_wrong_answers(tmp_path, tiny_model, monkeypatch):
    """An engine that knows the answers of every second question."""
    from finepref.synth.data_sources.reasoning_gym import questions
    from finepref.synth.engines.protocol import Completion

    known = {row["prompt"]: row["answer"] for row in questions("chain_sum", 6, seed=3)}
    right = {*[*known][::2]}

    def generate(self, requests):
        for each in requests:
            asked = each.messages[-1].content
            text = known[asked] if asked in right else "-1"
            yield [Completion(each.id, f"The answer is {text}", "stop")]

    monkeypatch.setattr(HfEngine, "generate", generate)
    words = ["gym:chain_sum", "--model", tiny_model, "--output", tmp_path, "--limit", 6, "--seed", 3]
    made = evaluate(*words)
    assert made.exit_code == 0, made.output
    found = task(tmp_path / "tiny", "gym_chain_sum")
    assert found["metrics"]["accuracy"]["value"] == 0.5
    assert found["without_verdict"] == 0


def test_a_question_without_an_answer_counts_as_wrong_and_is_told(tmp_path, tiny_model, monkeypatch):
    from finepref.synth.engines.protocol import Completion

    def generate(self, requests):
        yield [Completion(each.id, "", "stop") for each in requests]

    monkeypatch.setattr(HfEngine, "generate", generate)
    made = evaluate("gym", "--model", tiny_model, "--output", tmp_path, "--limit", 3)
    assert made.exit_code == 0, made.output
    found = task(tmp_path / "tiny", "gym")
    assert (found["n"], found["metrics"]["accuracy"]["value"], found["without_verdict"]) == (3, 0.0, 3)
    assert {each["no_verdict"] for each in samples(tmp_path / "tiny", "gym")} == {"empty answer"}


def test_a_task_that_is_stopped_asks_only_for_the_answers_that_it_lacks(tmp_path, tiny_model, data, monkeypatch):
    original, asked = HfEngine.letters, []

    def letters(self, requests):
        for number, batch in enumerate(original(self, requests)):
            asked.extend(each.id for each in batch)
            yield batch
            if number == stop:
                raise KeyboardInterrupt

    monkeypatch.setattr(HfEngine, "letters", letters)
    words = ["detection", "--model", tiny_model, "--output", tmp_path, "--data", data["negatives"], "--limit", 4]
    stop = 1
    assert evaluate(*words).exit_code != 0
    first = [*asked]
    assert len(first) == 16
    stop = None
    made = evaluate(*words)
    assert made.exit_code == 0, made.output
    assert len(asked) == len({*asked}) == 24  # 4 records, 3 answers, 2 orders


def test_a_bad_row_stops_the_task_unless_it_may_be_skipped(tmp_path, tiny_model, data):
    rows = data["negatives"].read_text() + '{"id": "x", "prompt": "Q?", "chosen": "A.", "negatives": {"logic": ""}}\n'
    path = tmp_path / "bad.jsonl"
    path.write_text(rows)
    words = ["margins", "--model", tiny_model, "--output", tmp_path / "out", "--data", path]
    made = evaluate(*words)
    assert made.exit_code == 1
    assert f"{path}:11" in made.output
    made = evaluate(*words, "--bad-rows", "skip", "--max-bad", "10%")
    assert made.exit_code == 0, made.output
    assert sum(task(tmp_path / "out" / "tiny", "margins")["rejected_rows"].values()) == 1
    assert (tmp_path / "out" / "tiny" / "samples" / "margins.rejected.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["margins", "detection", "--data", "{negatives}"], "say for which task it is: --data TASK="),
        (["gym", "--data", "margins={negatives}"], "--data margins: no such task is asked for"),
        (["letters", "--data", "{negatives}"], "FP304 letters: nothing is left to measure"),
        (["gym:no_such_set"], "no_such_set"),
    ],
)
def test_what_cannot_be_measured_is_one_line(tmp_path, tiny_model, data, words, told):
    words = [word.format(**data) for word in words]
    made = evaluate(*words, "--model", tiny_model, "--output", tmp_path)
    assert made.exit_code == 1
    assert [line for line in made.output.splitlines() if told in line]
    assert "Traceback" not in made.output


def test_models_of_one_name_are_told_apart_by_the_user(tmp_path, tiny_model):
    words = ["gym", "--output", tmp_path, "--model", tiny_model, "--model", tiny_model]
    made = evaluate(*words)
    assert made.exit_code == 1
    assert "two models have the name tiny: give NAME=" in made.output


def test_the_list_names_every_suite_and_task():
    from finepref.evals.suites import LOCAL, SUITES

    made = evaluate("--list")
    assert made.exit_code == 0
    for name, parts in SUITES.items():
        assert f"{name}: " in made.output
        assert all(part.label in made.output for part in parts)
    assert all(f"    {name}" in made.output for name in LOCAL)
