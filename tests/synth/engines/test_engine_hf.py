"""The embedded engine on a tiny random model, against a slow decoding of one request at a time."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from finepref.formats.records import Message
from finepref.synth.engines.checkpoint import folder_digest, prompt_ids
from finepref.synth.engines.hf import HfEngine, _processors
from finepref.synth.engines.protocol import Completion, Request
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["a", "What is this?", "bb", "A somewhat longer question than the others, to be padded to.", "xyz", "q"]


def requests(texts=TEXTS, max_new_tokens=12, **more) -> list[Request]:
    return [Request(text, (Message("user", text),), max_new_tokens, **more) for text in texts]


def answers(model, asked, batch_size=4) -> dict[str, Completion]:
    return {each.id: each for batch in HfEngine(str(model), batch_size=batch_size).generate(asked) for each in batch}


def greedy(folder, text: str, steps: int) -> list[int]:
    """The most probable token again and again, each from a forward pass over everything before it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = prompt_ids(tokenizer, [Message("user", text)])
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_the_prompt_is_the_chat_template_up_to_the_answer(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = prompt_ids(tokenizer, [Message("system", "s"), Message("user", "u")])
    assert tokenizer.decode(ids) == "<system>s</s><user>u</s><assistant>"


def test_temperature_0_is_greedy_in_any_batch(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = answers(tiny_model, requests())
    for text in TEXTS:
        tokens = greedy(tiny_model, text, 12)
        expected = tokens[: tokens.index(0)] if 0 in tokens else tokens
        assert found[text].text == tokenizer.decode(expected)
    assert found == answers(tiny_model, requests(), batch_size=1)


def test_stop_reasons_and_token_counts(tiny_model, tmp_path):
    """The second greedy token is made an end token of the model: the answer is the first token, and 2 were made."""
    first, second, *_ = greedy(tiny_model, "a", 2)
    assert first != second
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = {"eos_token_id": [0, second], "repetition_penalty": 1000.0, "do_sample": True, "temperature": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt = len(prompt_ids(tokenizer, [Message("user", "a")]))
    found = answers(folder, requests(["a"]))["a"]
    assert found == Completion("a", tokenizer.decode([first]), "stop", prompt, 2)
    found = answers(folder, requests(["a"], max_new_tokens=1))["a"]
    assert found == Completion("a", tokenizer.decode([first]), "length", prompt, 1)


def test_a_request_keeps_its_own_limit_in_a_batch_with_longer_ones(tiny_model):
    asked = [*requests(["a"], max_new_tokens=3), *requests(["b"], max_new_tokens=9)]
    found = answers(tiny_model, asked)
    assert [found[text].completion_tokens <= limit for text, limit in (("a", 3), ("b", 9))] == [True, True]
    assert found["a"] == answers(tiny_model, requests(["a"], max_new_tokens=3))["a"]


def test_a_prompt_that_fills_the_context_is_an_error_and_a_nearly_full_one_is_cut(tiny_model):
    """256 positions; the template adds 6 + 4 + 11 tokens or fewer, so 300 characters do not fit."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    frame = len(prompt_ids(tokenizer, [Message("user", "")]))
    nearly, full = "x" * (256 - frame - 2), "y" * (256 - frame)
    found = answers(tiny_model, requests([nearly, full, "a"]))
    assert found[full].error == "the prompt has 256 tokens and the model room for 256"
    assert found[nearly].completion_tokens <= 2
    assert found["a"].error is None


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(tiny_model):
    asked = [Request(f"{i}", (Message("user", "Go"),), 12, temperature=1.0, seed=i) for i in range(6)]
    found = answers(tiny_model, asked)
    assert found == answers(tiny_model, asked, batch_size=1)
    assert len({each.text for each in found.values()}) > 3


def sampled(folder, text: str, steps: int, *, temperature: float, seed: int) -> list[int]:
    """argmax of logits / temperature - log(-log u), u from the CPU's generator with the seed, V at a time."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = prompt_ids(tokenizer, [Message("user", text)])
    start, generator = len(ids), torch.Generator().manual_seed(seed)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1] / temperature
        ids.append(int((logits - torch.rand(len(logits), generator=generator).log().neg().log()).argmax()))
    return ids[start:]


def test_on_a_cpu_a_seed_means_the_numbers_of_torchs_cpu_generator(tiny_model):
    """So that a job goes on as it began, also with another release of finepref."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    asked = [Request(text, (Message("user", text),), 8, temperature=0.7, seed=i) for i, text in enumerate(TEXTS)]
    for i, (text, completion) in enumerate(
        sorted(answers(tiny_model, asked).items(), key=lambda e: TEXTS.index(e[0]))
    ):
        tokens = sampled(tiny_model, text, 8, temperature=0.7, seed=i)
        assert completion.text == tokenizer.decode(tokens[: tokens.index(0)] if 0 in tokens else tokens)


class Drawn(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the devices on which random numbers are drawn, and elements that are copied between devices."""

    def __init__(self):
        super().__init__()
        self.devices, self.copied = [], []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if "rand" in str(function):
            self.devices.append(made.device.type)
        given = {each.device.type for each in arguments if isinstance(each, torch.Tensor)}
        if isinstance(made, torch.Tensor) and given and {made.device.type} != given:
            self.copied.append(made.numel())
        return made


@pytest.mark.parametrize(
    ("noise", "devices", "copied"), [("meta", ["meta"] * 6, []), ("cpu", ["cpu"] * 6, [3 * 50] * 2)]
)
def test_noise_is_drawn_where_the_logits_are_or_on_the_cpu(monkeypatch, noise, devices, copied):
    """Two steps of three rows. The stand-in of a GPU is "meta"; its generators are the CPU's, which it takes."""
    made, whole = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: made.append(torch.device(device).type) or whole())
    requests = [Request(f"{i}", (Message("user", "Go"),), 4, temperature=1.0, seed=i) for i in range(3)]
    processors = _processors(requests, noise)
    with Drawn() as drawn:
        for _ in range(2):
            scores = processors(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 50, device="meta"))
    assert (scores.device.type, [*scores.shape]) == ("meta", [3, 50])
    assert made == [noise] * 3
    assert drawn.devices == devices
    assert drawn.copied == copied


def test_the_engines_name_says_where_noise_is_drawn_unless_on_the_cpu(monkeypatch):
    """A seed means other numbers there, so that a journal of the one is not gone on with by the other."""
    plain = HfEngine("owner/name")
    assert (plain.model, plain.noise) == ("hf:owner/name", "cpu")
    monkeypatch.setattr("finepref.synth.engines.hf.accelerator", lambda: torch.device("cuda", 1))
    on_gpu = HfEngine("owner/name")
    assert (on_gpu.model, on_gpu.noise) == ("hf:owner/name+cuda-noise", "cuda")


def test_samples_follow_the_distribution_of_the_model(tiny_model):
    """900 samples of one token: the share of each text within 4 standard deviations, 4 sqrt(.25 / 900) = 0.067, of its
    softmax probability (all bytes that are no text of their own decode to one replacement character)."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    ids = prompt_ids(tokenizer, [Message("user", "Go")])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    asked = [Request(f"{i}", (Message("user", "Go"),), 1, temperature=2.0, seed=i) for i in range(900)]
    texts = [each.text for each in answers(tiny_model, asked, batch_size=300).values()]
    expected: Counter[str] = Counter()
    for token, probability in enumerate((logits / 2).softmax(-1).tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += probability
    assert len(expected) > 100
    for text, probability in expected.items():
        assert abs(texts.count(text) / 900 - probability) < 0.067


def test_top_p_keeps_the_most_probable_tokens_only(tiny_model):
    asked = [Request(f"{i}", (Message("user", "Go"),), 5, temperature=1.0, top_p=1e-6, seed=i) for i in range(4)]
    tokens = greedy(tiny_model, "Go", 5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    expected = tokenizer.decode(tokens[: tokens.index(0)] if 0 in tokens else tokens)
    assert {each.text for each in answers(tiny_model, asked).values()} == {expected}


def test_batches_are_the_same_again_after_some_of_them_were_answered(tiny_model):
    engine = HfEngine(str(tiny_model), batch_size=2)
    batches = [[each.id for each in batch] for batch in engine.generate(requests())]
    assert batches[0][0] == max(TEXTS, key=len)
    left = [request for request in requests() if request.id not in batches[0]]
    assert [[each.id for each in batch] for batch in engine.generate(left)] == batches[1:]


def test_a_model_without_a_chat_template_is_refused(tiny_model, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        answers(folder, requests(["a"]))


def test_the_digest_of_a_folder_is_that_of_its_contents(tiny_model, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    assert folder_digest(folder) == folder_digest(tiny_model)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder_digest(folder) != folder_digest(tiny_model)
    assert HfEngine(str(folder)).model == f"hf:{folder_digest(folder)}"
    assert HfEngine("owner/name").model == "hf:owner/name"


def penalised(folder, text: str, steps: int, penalty: float) -> list[int]:
    """Greedy, with the logits of tokens that are there already divided (positive) or multiplied (negative)."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = prompt_ids(tokenizer, [Message("user", text)])
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        for token in {*ids}:
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        ids.append(int(logits.argmax()))
    return ids[start:]


def test_a_repetition_penalty_counts_a_requests_own_tokens_in_any_batch(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    found = answers(tiny_model, requests(repetition_penalty=1.5))
    for text in TEXTS:
        tokens = penalised(tiny_model, text, 12, 1.5)
        assert found[text].text == tokenizer.decode(tokens[: tokens.index(0)] if 0 in tokens else tokens)
    assert found != answers(tiny_model, requests())


def test_top_k_1_is_greedy_at_any_temperature(tiny_model):
    assert answers(tiny_model, requests(temperature=3.0, top_k=1)) == answers(tiny_model, requests())
