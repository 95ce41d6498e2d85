"""The probabilities of letters as an answer's first token, against one forward pass of each prompt alone."""

from __future__ import annotations

import json
import math

import pytest
import torch
from finepref.formats.records import Message
from finepref.synth.engines import letters
from finepref.synth.engines.checkpoint import prompt_ids
from finepref.synth.engines.hf import HfEngine
from finepref.synth.engines.openai import OpenAIEngine
from finepref.synth.engines.protocol import Request
from finepref.synth.engines.ray import RayEngine
from finepref.synth.engines.vllm import VllmEngine
from finepref.synth.ray_workers import Workers
from tiny_llama import CHATML, save_tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ["Why?\nA. x\nB. y", "A much longer question than the other one, to be padded to?\nA. a\nB. b\nC. c"]


def requests():
    return [Request(text, (Message("user", text),), 1) for text in QUESTIONS]


@pytest.fixture(scope="module")
def spaced_model(tmp_path_factory):
    """A model whose tokenizer has the tokens A, B and " B", but writes " A" as two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<|im_end|>", "<|im_start|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠB"]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("Ġ", "B")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_end|>", "<|im_start|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    return save_tiny_llama(tmp_path_factory.mktemp("spaced"), fast, initializer_range=0.3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_letter_has_the_sum_of_the_probabilities_of_the_tokens_that_write_it(spaced_model, batch_size):
    """The reference: softmax of the last logits of each prompt alone; B is "B" and " B", A is "A"."""
    engine = HfEngine(str(spaced_model), batch_size=batch_size)
    found = {each.id: each for batch in engine.letters(requests()) for each in batch}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(spaced_model), AutoTokenizer.from_pretrained(spaced_model)
    ids = tokenizer.get_vocab()
    for text in QUESTIONS:
        prompt = prompt_ids(tokenizer, [Message("user", text)])
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        told = {letter: math.exp(p) for letter, p in json.loads(found[text].text).items()}
        assert told["A"] == pytest.approx(float(expected[ids["A"]]), rel=1e-4)
        assert told["B"] == pytest.approx(float(expected[ids["B"]] + expected[ids["ĠB"]]), rel=1e-4)
        shares, outside = letters.read(found[text].text, "AB")
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["A"] == pytest.approx(told["A"] / (told["A"] + told["B"]))
        assert outside == pytest.approx(1 - told["A"] - told["B"])


def test_an_option_has_the_probability_that_the_answer_begins_with_its_text(spaced_model):
    """The reference: one token after the other, each from a forward pass over everything before it."""
    options = ("x", "a B")
    asked = [Request("1", (Message("user", QUESTIONS[0]),), 1, candidates=options)]
    ((found,),) = HfEngine(str(spaced_model)).letters(asked)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(spaced_model), AutoTokenizer.from_pretrained(spaced_model)
    expected = {}
    for letter, option in zip("AB", options, strict=True):
        ids, expected[letter] = prompt_ids(tokenizer, [Message("user", QUESTIONS[0])]), 0.0
        for token in tokenizer(option)["input_ids"]:
            with torch.no_grad():
                expected[letter] += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
            ids.append(token)
    assert json.loads(found.text) == pytest.approx(expected, rel=1e-4)
    shares, outside = letters.read(found.text, "AB")
    assert shares["A"] == pytest.approx(1 / (1 + math.exp(expected["B"] - expected["A"])), rel=1e-4)
    assert outside == pytest.approx(1 - math.exp(expected["A"]) - math.exp(expected["B"]))


def test_a_spelling_that_changes_the_tokens_of_the_prompt_is_not_counted(spaced_model):
    """After a prompt that ends in a space, "B" joins it to one token " B", so it cannot follow; "A" can."""
    tokenizer = AutoTokenizer.from_pretrained(spaced_model)
    found = letters.letter_tokens(tokenizer, tokenizer("Answer: ")["input_ids"])
    ids = tokenizer.get_vocab()
    assert found["A"] == [ids["A"]]
    assert found["B"] == [ids["ĠB"]]
    assert letters.letter_tokens(tokenizer, tokenizer("Answer:")["input_ids"])["B"] == [ids["B"], ids["ĠB"]]


def test_what_cannot_be_read_is_told_by_name():
    assert letters.read('{"A": -0.5}', "AB") == "the letter B is not one token of the model"
    assert letters.read('{"A": null, "B": null}', "AB") == "no option has any probability"
    assert letters.read('{"A": -900.0, "B": null}', "AB") == ({"A": 1.0, "B": 0.0}, 1.0)
    assert letters.completion("1", {}, prompt_tokens=3).error == "no letter is one token after this template"


def test_an_engine_without_probabilities_is_refused_by_name_and_workers_have_the_letters_inside(tiny_model):
    endpoint = OpenAIEngine("m", base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match=r"letters need hf or vllm: --engine openai does not give"):
        letters.letters_of(endpoint, "--engine openai", "letters need hf or vllm")
    assert letters.letters_of(VllmEngine("m"), "--engine vllm", "letters need hf or vllm").model.endswith(":letters")
    engine = HfEngine(str(tiny_model))
    found = letters.letters_of(
        RayEngine(engine, Workers(count=1, cpus=1.0, gpus=0.0)), "--engine hf", "letters need hf or vllm"
    )
    assert isinstance(found, RayEngine)
    assert found.model == f"{engine.model}:letters"
    assert isinstance(found.engine, letters.Letters)
