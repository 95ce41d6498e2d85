"""vLLM in this process on a tiny random model, against the engine hf and against the model's own logits."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from finepref.formats.records import Message
from finepref.synth.ask import ask_stream
from finepref.synth.engines.checkpoint import folder_digest, prompt_ids
from finepref.synth.engines.hf import HfEngine
from finepref.synth.engines.protocol import Completion, Request
from finepref.synth.engines.vllm import VllmEngine
from finepref.synth.journal import Journal
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["a", "What is this?", "bb", "A somewhat longer question than the others, to stand beside.", "xyz", "q"]
TIE = 1e-3
"""Logits nearer than this are as good as equal: float32 sums in another order differ by some 1e-5."""


@cache
def engine(folder: Path) -> VllmEngine:
    return VllmEngine(str(folder), enforce_eager=True, max_num_seqs=8)


def answers(folder: Path, asked: list[Request]) -> dict[str, Completion]:
    return {each.id: each for together in engine(folder).generate(asked) for each in together}


def requests(texts=TEXTS, max_new_tokens=24, **more) -> list[Request]:
    return [Request(text, (Message("user", text),), max_new_tokens, **more) for text in texts]


@pytest.mark.parametrize("candidates", [(), ("x", "a B", "yes")])
def test_the_probabilities_of_letters_and_of_options_are_those_of_hf(tiny_model, candidates):
    asked = requests(max_new_tokens=1, candidates=candidates)
    asked.append(Request("long", (Message("user", "word " * 60),), 1, candidates=candidates))
    found = {each.id: each for together in engine(tiny_model).letters(asked) for each in together}
    expected = {each.id: each for together in HfEngine(str(tiny_model)).letters(asked) for each in together}
    assert found.keys() == expected.keys()
    assert found["long"] == expected["long"]
    assert "tokens and the model room for 256" in found["long"].error
    for name in TEXTS:
        told, wanted = (json.loads(each[name].text) for each in (found, expected))
        assert [*told] == [*wanted]
        assert len(told) == (len(candidates) or 26)
        assert told == pytest.approx(wanted, abs=1e-4)


def test_an_option_that_changes_probabilities_is_refused(tiny_model):
    changed = VllmEngine(str(tiny_model), logprobs_mode="processed_logits")
    with pytest.raises(ValueError, match="logprobs_mode changes the probabilities: remove it"):
        next(changed.letters(requests(max_new_tokens=1)))


def penalised(logits: torch.Tensor, ids: list[int], penalty: float) -> torch.Tensor:
    seen = torch.tensor(sorted({*ids}))
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def test_greedy_answers_are_those_of_hf_up_to_the_first_tie(tiny_model):
    """Where both differ first, the logits of the two tokens after what they share are as good as equal."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for penalty in (1.0, 1.5):
        asked = requests(repetition_penalty=penalty)
        found = answers(tiny_model, asked)
        expected = {each.id: each for batch in HfEngine(str(tiny_model)).generate(asked) for each in batch}
        assert found.keys() == expected.keys()
        equal = 0
        for request in asked:
            if found[request.id] == expected[request.id]:
                equal += 1
                continue
            prompt = prompt_ids(tokenizer, request.messages)
            ids = greedy(model, prompt, 24, penalty)
            ties = [n for n, (_, gap) in enumerate(ids) if gap < TIE]
            assert ties, request
            shared = tokenizer.decode([token for token, _ in ids[: ties[0]]], skip_special_tokens=True)
            assert found[request.id].text.startswith(shared)
            assert expected[request.id].text.startswith(shared)
        assert equal >= 4, "ties are rare"


def greedy(model, prompt: list[int], steps: int, penalty: float) -> list[tuple[int, float]]:
    """The most probable token again and again, and how far the second is behind it."""
    ids, made = [*prompt], []
    for _ in range(steps):
        with torch.no_grad():
            logits = penalised(model(torch.tensor([ids])).logits[0, -1], ids, penalty)
        (first, second), (token, _) = logits.topk(2)
        ids.append(int(token))
        made.append((int(token), float(first - second)))
    return made


def test_stop_reasons_token_counts_and_no_other_defaults_of_the_folder(tiny_model, tmp_path):
    """The second greedy token is made an end token of the model: the answer is the first token, and 2 were made."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    prompt = prompt_ids(tokenizer, [Message("user", "a")])
    first, second = (token for token, _ in greedy(model, prompt, 2, 1.0))
    assert first != second
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = {"eos_token_id": [0, second], "repetition_penalty": 1000.0, "do_sample": True, "temperature": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = answers(folder, requests(["a"]))["a"]
    assert found == Completion("a", tokenizer.decode([first]), "stop", len(prompt), 2)
    found = answers(folder, requests(["a"], max_new_tokens=1))["a"]
    assert found == Completion("a", tokenizer.decode([first]), "length", len(prompt), 1)


def test_a_prompt_that_fills_the_context_is_an_error_and_a_nearly_full_one_is_cut(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    frame = len(prompt_ids(tokenizer, [Message("user", "")]))
    nearly, full = "x" * (256 - frame - 2), "y" * (256 - frame)
    found = answers(tiny_model, requests([nearly, full, "a"]))
    assert found[full].error == "the prompt has 256 tokens and the model room for 256"
    assert found[nearly].completion_tokens <= 2
    assert found["a"].error is None


def test_a_sample_depends_on_its_seed_and_not_on_what_runs_beside_it(tiny_model):
    asked = [Request(f"{i}", (Message("user", "Go"),), 12, temperature=1.0, seed=i) for i in range(20)]
    found = answers(tiny_model, asked)
    assert found == answers(tiny_model, asked)
    assert found == {**answers(tiny_model, asked[10:]), **answers(tiny_model, asked[:10])}
    assert len({each.text for each in found.values()}) > 10


def test_samples_follow_the_distribution_of_the_model(tiny_model):
    """900 samples of one token: the share of each text within 4 standard deviations, 4 sqrt(.25 / 900) = 0.067, of its
    softmax probability."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, [Message("user", "Go")])])).logits[0, -1]
    asked = [Request(f"{i}", (Message("user", "Go"),), 1, temperature=2.0, seed=i) for i in range(900)]
    texts = Counter(each.text for each in answers(tiny_model, asked).values())
    expected: Counter[str] = Counter()
    for token, probability in enumerate((logits / 2).softmax(-1).tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += probability
    assert len(expected) > 100
    for text, probability in expected.items():
        assert abs(texts[text] / 900 - probability) < 0.067


@pytest.mark.parametrize("settings", [{"top_p": 1e-6}, {"top_k": 1}])
def test_top_p_and_top_k_keep_the_most_probable_tokens_only(tiny_model, settings):
    asked = requests(temperature=2.0, seed=3, **settings)
    assert answers(tiny_model, asked) == answers(tiny_model, requests())


def test_each_answer_comes_in_the_step_that_finishes_it_and_a_run_that_was_left_is_taken_up(tiny_model, tmp_path):
    """8 at a time: after 3 yields there are 3 answers or more and work under way, which the second run does anew."""
    asked = [Request(f"{i}", (Message("user", f"Go {i}"),), 1 + i % 5) for i in range(30)]
    job = {"job": "j", "model": engine(tiny_model).model, "prompt_version": "1", "sampling": {}, "seed": 0}
    whole = answers(tiny_model, asked)
    with Journal(tmp_path, input_digest="d", **job) as journal:
        run = ask_stream(asked, engine=engine(tiny_model), journal=journal)
        assert len([*islice(run, 3)]) == 3
        run.close()
        known = {*journal.done}
    assert 3 <= len(known) < 30
    with Journal(tmp_path, input_digest="d", **job) as journal:
        assert {*journal.done} == known
        assert {each.id: each for each in ask_stream(asked, engine=engine(tiny_model), journal=journal)} == whole
    assert sum(len(json.loads(line)) for line in (tmp_path / "journal.jsonl").read_text().splitlines()) == 30


def test_a_setting_that_vllm_refuses_is_told_and_the_engine_goes_on(tiny_model):
    with pytest.raises(ValueError, match=r"temperature must be in \[0, 2\], got 9"):
        answers(tiny_model, [*requests(), *requests(["hot"], temperature=9.0)])
    assert len(answers(tiny_model, requests())) == len(TEXTS)


def test_an_unknown_option_is_refused_and_the_known_ones_are_in_the_name(tiny_model):
    with pytest.raises(ValueError, match="vLLM has no option max_seqs"):
        next(VllmEngine(str(tiny_model), max_seqs=8).generate(requests()))
    assert VllmEngine(str(tiny_model)).model == f"vllm:{folder_digest(tiny_model)}"
    assert VllmEngine("owner/name", max_num_seqs=8).model == 'vllm:owner/name:{"max_num_seqs": 8}'
