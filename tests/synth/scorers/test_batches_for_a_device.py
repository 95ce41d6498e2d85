"""What a scorer makes for an accelerator, and where: masks there, trees in a thread, models on one or several."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from accelerate import dispatch_model
from finepref.synth.engines import checkpoint
from finepref.synth.engines.checkpoint import load_network
from finepref.synth.scorers import hf as scoring
from finepref.synth.scorers.hf import Batch, HfScorer, Reader, default_batch_tokens, model_inputs
from finepref.synth.scorers.protocol import Item
from finepref.synth.scorers.token_tree import nodes, pack, seen, size, tree
from finepref.synth.scorers.vllm import VllmScorer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def random_items(count, *, letters=3):
    """With few letters responses have long common beginnings, and some are the beginning of others, or equal."""
    draw = random.Random(0)

    def tokens(low, high):
        return [draw.randrange(1, 1 + letters) for _ in range(draw.randint(low, high))]

    return [
        Item(f"{n}", tokens(1, 9), {f"{k}": [*tokens(0, 7), 0] for k in range(draw.randint(1, 4))})
        for n in range(count)
    ]


def test_each_token_attends_to_itself_and_its_ancestors_and_has_their_number_as_its_position():
    """Against a walk up the tree from every node, in a batch whose shorter rows end in padding."""
    trees = [nodes(item) for item in random_items(60)]
    packed = pack(trees)
    found = seen(packed.first, packed.last)
    width = max(len(each.tokens) for each in trees)
    for row, each in enumerate(trees):
        for node in range(width):
            line, up = {node}, node
            while up < len(each.parents) and (up := each.parents[up]) >= 0:
                line.add(up)
            assert {*found[row, node].nonzero().flatten().tolist()} == line
            assert packed.depths[row, node] == len(line) - 1
        assert packed.ids[row].tolist() == each.tokens + [0] * (width - len(each.tokens))
    edges = [(row * width + node, token) for row, each in enumerate(trees) for node, token in each.edges]
    assert [*zip(packed.sources.tolist(), packed.targets.tolist(), strict=True)] == edges


def test_the_size_of_an_items_tree_is_known_without_it():
    items = [*random_items(400), Item("x", [1], {"a": [0]}), Item("y", [1], {"a": [2, 0], "b": [2, 0]})]
    assert [size(item) for item in items] == [len(nodes(item).tokens) for item in items]


class Copies(TorchDispatchMode):
    """Notes the elements of tensors that operations make on the CPU or copy from it to another device."""

    def __init__(self):
        super().__init__()
        self.on_cpu, self.copied = [], []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if isinstance(made, torch.Tensor):
            given = {each.device.type for each in arguments if isinstance(each, torch.Tensor)}
            if made.device.type == "cpu":
                self.on_cpu.append(made.numel())
            elif "cpu" in given:
                self.copied.append(made.numel())
        return made


def test_the_mask_is_made_on_the_models_device_from_a_few_numbers_per_token():
    packed = pack([tree([*range(1, 40)], [[5, 6, 7, 0], [5, 8, 0]])] * 3)
    tokens = packed.ids.numel()
    with Copies() as copies:
        inputs = model_inputs(packed, branching=True, device=torch.device("meta"), dtype=torch.bfloat16)
    assert {name: (each.device.type, [*each.shape]) for name, each in inputs.items()} == {
        "input_ids": ("meta", [3, 43]),
        "attention_mask": ("meta", [3, 1, 43, 43]),
        "position_ids": ("meta", [3, 43]),
    }
    assert inputs["attention_mask"].dtype == torch.bfloat16
    assert copies.on_cpu == []
    assert copies.copied == [tokens] * 4


@pytest.mark.parametrize("plain_head", [True, False])
def test_a_batch_is_read_on_another_device_and_comes_back_once(monkeypatch, plain_head):
    """The device "meta" has no values, and refuses an operation together with a tensor of the CPU."""
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(2, device="meta") + torch.zeros(2)
    back = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: back.append(self) or torch.zeros(self.shape))
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    reader = Reader.__new__(Reader)  # its trial compares values
    reader.network = LlamaForCausalLM(config).eval().to("meta")
    reader.head, reader.plain_head, reader.shares_prompt, reader.window = reader.network.lm_head, plain_head, True, 99
    reader.device = checkpoint.input_device(reader.network)
    assert reader.device.type == "meta"
    batch = reader.batch([Item("a", [1, 2, 3], {"one": [4, 5, 0], "two": [4, 0]})] * 2)
    with torch.inference_mode():  # there is no autocast for "meta"
        found = reader._read(batch.trees, batch.packed, branching=batch.shared)
    assert [[len(values) for values in row] for row in found] == [[3, 2]] * 2
    assert [(each.device.type, [*each.shape]) for each in back] == [("meta", [2 * 4])]  # 4 edges of each tree


def test_trees_are_made_in_a_thread_and_the_numbers_are_those_of_one_batch_after_another(tiny_model, monkeypatch):
    items = random_items(30, letters=200)
    scorer, threads = HfScorer(str(tiny_model), batch_tokens=64), set()
    reader = Reader(load_network(str(tiny_model)))
    expected = [
        [(item.id, found) for item, found in zip(group, reader.logps(group), strict=True)]
        for group in scorer.groups(items)
    ]
    whole = Reader.batch
    monkeypatch.setattr(Reader, "batch", lambda self, group: threads.add(threading.get_ident()) or whole(self, group))
    found = [*scorer.logps(items)]
    assert len(found) > 5
    assert [[name for name, _ in group] for group in found] == [[name for name, _ in group] for group in expected]
    for group, wanted in zip(found, expected, strict=True):
        for (_, sides), (_, others) in zip(group, wanted, strict=True):
            assert sides.keys() == others.keys()
            assert all(torch.equal(values, others[side]) for side, values in sides.items())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_tree_that_cannot_be_made_ends_the_run_after_the_batches_before_it(tiny_model, monkeypatch, kind):
    items = random_items(30, letters=200)
    scorer = HfScorer(str(tiny_model), batch_tokens=64)
    first, second, third = scorer.groups(items)[:3]
    whole = Reader.batch

    def fail_at_the_third(self, group):
        if group == third:
            raise kind("no tree")
        return whole(self, group)

    monkeypatch.setattr(Reader, "batch", fail_at_the_third)
    read = []
    with pytest.raises(kind, match="no tree"):
        read.extend([name for name, _ in group] for group in scorer.logps(items))
    assert read == [[item.id for item in group] for group in (first, second)]


ITEMS = [
    Item("a", [5, 6, 7], {"one": [10, 11, 12, 0], "two": [10, 11, 13, 14, 15, 0]}),
    Item("b", [8] * 20, {"one": [9, 9, 0], "two": [9, 9, 9, 9, 0]}),
]


@pytest.fixture
def placed(monkeypatch):
    """The device maps that `from_pretrained` was called with."""
    maps, whole = [], AutoModelForCausalLM.from_pretrained

    def spy(*names, **options):
        maps.append(options.get("device_map"))
        return whole(*names, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    return maps


def test_a_device_map_is_that_of_from_pretrained_and_changes_no_number(tiny_model, placed):
    plain, mapped = ([*HfScorer(str(tiny_model), **more).logps(ITEMS)] for more in ({}, {"device_map": "auto"}))
    assert placed == [None, "auto"]
    for group, other in zip(plain, mapped, strict=True):
        for (name, sides), (same, others) in zip(group, other, strict=True):
            assert name == same
            assert all(torch.equal(values, others[side]) for side, values in sides.items())


def test_weights_are_read_straight_to_the_accelerator(tiny_model, placed, monkeypatch):
    """The stand-in of the accelerator is the CPU."""
    monkeypatch.setattr(checkpoint, "accelerator", lambda: torch.device("cpu"))
    assert load_network(str(tiny_model)).device.type == "cpu"
    assert placed == [{"": torch.device("cpu")}]


@pytest.mark.parametrize("rank", ["", "3"])
def test_a_rank_takes_the_accelerator_of_its_number(monkeypatch, rank):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert checkpoint.accelerator() == torch.device("cuda", int(rank or 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_whose_layers_are_placed_one_by_one_gives_the_same_numbers(tiny_model, dtype):
    """accelerate's hooks around every layer, all on the CPU: as for layers on several devices."""
    found = []
    for hooked in (False, True):
        network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=dtype)
        if hooked:
            parts = [
                "model.embed_tokens",
                "model.rotary_emb",
                "model.layers.0",
                "model.layers.1",
                "model.norm",
                "lm_head",
            ]
            network = dispatch_model(network, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
            assert hasattr(network.model.layers[0], "_hf_hook")
        found.append(Reader(network.eval()).logps(ITEMS))
    for plain, mapped in zip(*found, strict=True):
        assert all(torch.equal(values, mapped[side]) for side, values in plain.items())


def test_a_model_that_does_not_fit_on_the_devices_of_its_map_is_refused(tiny_model, tmp_path):
    """A weight without values is one that accelerate would fetch from the machine's memory or the disk."""
    places = {"model": "cpu", "lm_head": "disk"}
    whole = AutoModelForCausalLM.from_pretrained(tiny_model)
    whole.config.tie_word_embeddings = False
    whole.lm_head.weight = torch.nn.Parameter(whole.lm_head.weight.detach().clone())
    whole.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"finds no room for 1 weights of .* \(lm_head.weight is the first\)"):
        load_network(str(tmp_path), device_map=places)


def test_the_default_batch_is_larger_on_an_accelerator_and_vllms_is_not(tiny_model, monkeypatch):
    """vLLM holds float32 logits of every token of a step."""
    assert HfScorer(str(tiny_model)).batch_tokens == default_batch_tokens(on_accelerator=False) == 2048
    monkeypatch.setattr(scoring, "accelerator", lambda: torch.device("cuda", 0))
    assert HfScorer(str(tiny_model)).batch_tokens == default_batch_tokens(on_accelerator=True) == 16384
    assert HfScorer(str(tiny_model), batch_tokens=100).batch_tokens == 100
    assert VllmScorer(str(tiny_model)).batch_tokens == 2048


def test_a_batch_can_be_sent_between_threads_without_its_model(tiny_model):
    batch = Reader(load_network(str(tiny_model))).batch(ITEMS)
    assert isinstance(batch, Batch)
    assert batch.items == ITEMS
    assert {each.device.type for each in batch.packed} == {"cpu"}
