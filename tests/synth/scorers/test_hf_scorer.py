"""Log-probabilities of responses in prompt trees, against each response read by itself in float64."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy

import pytest
import torch
from finepref.synth.scorers import hf as scoring
from finepref.synth.scorers.hf import HfScorer, Reader
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.token_tree import MOST_PADDING, batches, padding, tree
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

ITEMS = [
    Item("a", [5, 6, 7], {"one": [10, 11, 12, 0], "two": [10, 11, 13, 14, 15, 0], "three": [20, 0]}),
    Item("b", [8] * 20, {"one": [9, 9, 0], "two": [9, 9, 9, 9, 0]}),
    Item("c", [4], {"one": [30, 31, 0], "two": [30, 31]}),
]


def alone(network, prompt, response):
    """log softmax of the logits at the position before each response token, the sequence in a row of its own."""
    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *response]])).logits[0].double()
    return [logits[len(prompt) + i - 1].log_softmax(-1)[token].item() for i, token in enumerate(response)]


def assert_equals_each_alone(network, items, *, shares_prompt, plain_head):
    reader = Reader(network.eval())
    assert (reader.shares_prompt, reader.plain_head) == (shares_prompt, plain_head)
    found = reader.logps(items)
    for item, by_name in zip(items, found, strict=True):
        for name, response in item.responses.items():
            assert by_name[name].tolist() == pytest.approx(alone(network.double(), item.prompt, response), abs=2e-5)
        network.float()


def test_a_tree_holds_common_beginnings_once_and_no_last_token():
    """1 2 then 3 4 9 or 3 5 9: nodes 1 2 3 4 5; edges after 2: 3; after 3: 4 and 5; after 4 and after 5: 9."""
    assert tree([1, 2], [[3, 4, 9], [3, 5, 9]]) == (
        [1, 2, 3, 4, 5],
        [-1, 0, 1, 2, 2],
        [(1, 3), (2, 4), (3, 9), (2, 5), (4, 9)],
        [[0, 1, 2], [0, 3, 4]],
    )


def test_a_response_may_be_the_beginning_of_another():
    assert tree([1], [[3], [3, 4]]) == ([1, 3], [-1, 0], [(0, 3), (1, 4)], [[0], [0, 1]])


def test_a_batch_of_trees_gives_the_numbers_of_each_response_by_itself(tiny_model):
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert_equals_each_alone(network, ITEMS, shares_prompt=True, plain_head=True)


def test_a_model_that_caps_its_logits_keeps_its_cap():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, initializer_range=0.5, final_logit_softcapping=3.0, sliding_window=64,
        attn_implementation="eager",
    )  # fmt: skip
    assert_equals_each_alone(Gemma2ForCausalLM(config), ITEMS, shares_prompt=True, plain_head=False)


def test_a_model_whose_attention_goes_by_place_and_not_by_position_reads_each_response_alone():
    """Bloom's ALiBi counts columns, so a second branch would seem further away than it is."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.5)
    assert_equals_each_alone(BloomForCausalLM(config), ITEMS, shares_prompt=False, plain_head=True)


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_attention_reads_each_response_alone():
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.5)
    assert_equals_each_alone(MambaForCausalLM(config), ITEMS, shares_prompt=False, plain_head=True)


def test_beyond_a_sliding_window_each_response_is_read_alone():
    """The window is 16 tokens, and item b has 25: its tree's mask would let it see further."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, sliding_window=16,
    )  # fmt: skip
    assert_equals_each_alone(MistralForCausalLM(config), ITEMS, shares_prompt=True, plain_head=True)


def test_batches_hold_each_item_once_within_their_tokens_and_with_little_padding():
    items = [Item(str(n), [1] * n, {"a": [2, 3], "b": [4, 5]}) for n in range(1, 300)]
    made = batches(items, batch_tokens=1000)
    assert sorted(item.id for batch in made for item in batch) == sorted(item.id for item in items)
    sizes = [[len(item.prompt) + 2 for item in batch] for batch in made]
    assert all(len(batch) * max(batch) <= 1000 or len(batch) == 1 for batch in sizes)
    assert all(1 - sum(batch) / (len(batch) * max(batch)) <= MOST_PADDING for batch in sizes)
    assert padding(made) == 1 - sum(map(sum, sizes)) / sum(len(batch) * max(batch) for batch in sizes)
    assert 0 < padding(made) <= MOST_PADDING


def with_large_embeddings(network):
    """Next to which what a layer adds is lost in 16 bits."""
    torch.manual_seed(0)
    embeddings = network.get_input_embeddings().weight
    embeddings.data = 100 * torch.randn(embeddings.shape)
    return network.eval()


DEEP_LLAMA = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=16, num_attention_heads=2,
    initializer_range=0.2,
)  # fmt: skip
DEEP_NEOX = GPTNeoXConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=16, num_attention_heads=2,
    initializer_range=0.2,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [DEEP_LLAMA, DEEP_NEOX], ids=["llama", "neox"])
def test_a_model_of_16_bits_is_read_nearer_to_float64_than_by_its_own_forward(config, dtype):
    torch.manual_seed(0)
    network = with_large_embeddings(AutoModelForCausalLM.from_config(config)).to(dtype)
    exact, plain = (
        [alone(deepcopy(network).to(kind), i.prompt, tokens) for i in ITEMS for tokens in i.responses.values()]
        for kind in (torch.float64, dtype)
    )
    reader, precision = Reader(network), set()
    reader.head.register_forward_hook(lambda *_: precision.add(torch.get_float32_matmul_precision()))
    found = [values.tolist() for by_name in reader.logps(ITEMS) for values in by_name.values()]
    assert precision == {"high"}
    assert torch.get_float32_matmul_precision() == "highest", "of other models' products"
    error = [
        torch.cat([torch.tensor(a) - torch.tensor(b) for a, b in zip(read, exact, strict=True)]).abs().mean().item()
        for read in (found, plain)
    ]
    assert 0 < error[0] < error[1] / 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_leaves_the_memory_with_the_last_of_its_numbers(tiny_model, monkeypatch, dtype):
    """At once, so that the next one has room."""
    held = []

    class Watched(Reader):
        def __init__(self, network):
            held.append(weakref.ref(network.get_output_embeddings()))
            super().__init__(network)
            held.extend(map(weakref.ref, (self.network, self.head)))

    monkeypatch.setattr(scoring, "Reader", Watched)
    gc.collect()
    gc.disable()
    try:
        for _ in HfScorer(str(tiny_model), dtype=dtype).logps(ITEMS):
            assert held[-1]() is not None
        assert not [each for each in held if each() is not None]
    finally:
        gc.enable()
