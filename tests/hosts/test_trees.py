"""Trees of tokens in training: the values and gradients of each response by itself, and where they are not made."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finepref.hosts import token_values, trees
from finepref.hosts.sharing import Model, Sharing, why_not_in
from finepref.hosts.token_values import Pass, read, read_reference
from finepref.hosts.trees import Row, Trees, make, rows_of, size, together
from finepref.losses.output_head import Head
from finepref.synth.scorers.token_tree import seen
from torch import nn
from waits import Elsewhere, Waits, moved

PAIRS = {
    "one error": ([5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 13, 9, 10]),
    "nothing but the prompt": ([5, 6, 7], [8, 6, 7, 9]),
    "one begins the other": ([5, 6, 7], [5, 6, 7, 8, 9]),
    "the last token differs": ([5, 6, 7, 8], [5, 6, 7, 9]),
}
PROMPTS = [[1, 2, 3], [4, 2], [1], [3, 2, 1, 4, 4]]


def array(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention mask, needed) of all pairs, the first responses first, as a host pads them."""
    sequences = [prompt + pair[half] for half in (0, 1) for prompt, pair in zip(PROMPTS, PAIRS.values(), strict=True)]
    starts = [len(prompt) for prompt in PROMPTS] * 2
    length = max(map(len, sequences))
    ids, mask, needed = (
        torch.zeros(8, length, dtype=torch.int64),
        torch.zeros(8, length).long(),
        torch.zeros(8, length),
    )
    for row, (tokens, start) in enumerate(zip(sequences, starts, strict=True)):
        first = length - len(tokens) if side == "left" else 0
        part = slice(first, first + len(tokens))
        ids[row, part], mask[row, part] = torch.tensor(tokens), 1
        needed[row, first + start : part.stop] = 1
        if row % 3 == 0:
            needed[row, first + start + 1] = 0  # a token that one response needs and the other does not
    return ids, mask, needed[:, 1:].bool()


def neox(attention: str = "sdpa", *, seed: int = 0):
    """In float64 throughout, unlike Llama's norms, but for the softmax of eager attention."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        attn_implementation=attention, initializer_range=0.5, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).double()


def llama(attention: str = "sdpa", *, dtype: torch.dtype = torch.float32, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=attention, initializer_range=0.5, **more,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def with_lora(model):
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(
        model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["query_key_value", "dense_4h_to_h"])
    )
    torch.manual_seed(5)
    for name, each in made.named_parameters():
        if "lora_B" in name:
            each.data.normal_()
    return made.double()


def a_pass(model, inputs) -> Pass:
    return Pass(model, lambda: model(**inputs, use_cache=False).logits, lambda ids: model(input_ids=ids).logits)


def of_each_alone(model, reference, ids, mask, needed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log pi, KL(pi_ref || pi) and log pi_ref [M, T] in rows of their own, token by token from logits."""
    found = [torch.zeros(needed.shape, dtype=torch.float64) for _ in range(3)]
    for row in range(len(ids)):
        there = mask[row].bool()
        first, tokens = int(there.long().argmax()), ids[row][there]
        pi = model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        with torch.no_grad():
            theirs = reference(input_ids=tokens[None]).logits[0].log_softmax(-1)
        for i in range(1, len(tokens)):
            column = first + i - 1
            if needed[row, column]:
                before, token = i - 1, tokens[i]
                kl = (theirs[before].exp() * (theirs[before] - pi[before])).sum()
                for values, value in zip(found, (pi[before, token], kl, theirs[before, token]), strict=True):
                    values[row, column] = value
    return tuple(found)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("way", ["right", "left", "eager", "lora", "checkpointing"])
def test_trees_give_the_values_and_gradients_of_each_response_by_itself(way):
    ids, mask, needed = padded("left" if way == "left" else "right")
    model, reference = neox("eager" if way == "eager" else "sdpa"), neox(seed=1)
    off = 1e-5 if way == "eager" else 1e-10
    if way == "lora":
        model = with_lora(model)
    scale = torch.linspace(-1, 2, 3 * needed.numel(), dtype=torch.float64).view(3, *needed.shape)
    alone = of_each_alone(model, reference, ids, mask, needed)
    (alone[0] * scale[0] + alone[1] * scale[1]).sum().backward()
    expected = gradients(model)
    if way == "checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    made = make(rows_of(ids, mask, needed), [[i, i + 4] for i in range(4)], ids.shape[1])
    batch = Trees.of(made, torch.float64 if way == "eager" else torch.bool)
    with torch.no_grad():
        theirs = read_reference(a_pass(reference, batch.inputs), batch.wanted, model, kl="loss")
    found = read(a_pass(model, batch.inputs), batch.wanted, theirs, kl="loss")
    for mine, one in zip((*found[:2], found.reference), alone, strict=True):
        torch.testing.assert_close(mine, one, rtol=0, atol=off)
    (found.logps * scale[0] + found.kl * scale[1]).sum().backward()
    of_trees = gradients(model)
    assert of_trees.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(of_trees[name], gradient, rtol=0, atol=off, msg=name)
    edges = [{(*seq[:i],) for seq in pair for i in range(1, len(seq) + 1)} for pair in PAIRS.values()]
    assert len(batch.wanted.positions) == sum(map(len, edges))  # a token that both share is read once


def test_a_tree_by_hand():
    """Prompt 7 8, responses 1 2 3 and 1 4: nodes 7 8 1 2, without last tokens, as many as 7 8 1 has in common.

    Needed are 1 (in the second response only), 2, 3 and 4. The first row begins in column 1 of 6, the second in 2.
    """
    needed = [[0, 0, 0, 1, 1], [0, 0, 1, 1]]
    rows = [
        Row(array(7, 8, *ids), np.array(marks, dtype=bool), start)
        for ids, marks, start in zip([(1, 2, 3), (1, 4)], needed, (1, 2), strict=True)
    ]
    made = make(rows, [[0, 1]], 6)
    assert (made["rows"], made["columns"], made["branching"], made["lengths"].tolist()) == (2, 5, True, [4])
    assert made["ids"].tolist() == [[7, 8, 1, 2, 0, 0, 0, 0]]
    assert made["depths"].tolist() == [[0, 1, 2, 3, 0, 0, 0, 0]]
    assert made["last"].tolist() == [[3, 3, 3, 3, 4, 5, 6, 7]]
    assert made["sources"].tolist() == [1, 2, 3, 2]
    assert made["targets"].tolist() == [1, 2, 3, 4]
    values = Trees.of(made, torch.bool).wanted.place(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert values.tolist() == [[0, 0, 0, 2, 3], [0, 0, 0, 1, 4]]


def test_tokens_of_the_chosen_response_alone_are_read_first_so_that_the_kl_of_others_alone_has_a_gradient():
    """As above: 2 and 3 are the chosen response's; 1 is needed in the rejected one only, and 4."""
    rows = [Row(array(7, 8, 1, 2, 3), np.arange(5) >= 3), Row(array(7, 8, 1, 4), np.arange(4) >= 2)]
    made = make(rows, [[0, 1]], 6, chosen=1)
    assert (made["targets"].tolist(), made["sources"].tolist(), made["rejected_from"]) == (
        [2, 3, 1, 4],
        [2, 3, 1, 2],
        2,
    )
    wanted = Trees.of(made, torch.bool).wanted
    assert wanted.place(torch.tensor([2.0, 3.0, 1.0, 4.0])).tolist() == [[0, 0, 2, 3, 0], [0, 1, 4, 0, 0]]
    assert [wanted.kl_from(kl) for kl in ("loss", "rejected", "metric")] == [0, 2, 4]


def test_random_trees_have_a_node_for_each_beginning_and_see_it_alone():
    draw = random.Random(0)
    for _ in range(100):
        prompt = [draw.randint(0, 3) for _ in range(draw.randint(1, 4))]
        texts = [[draw.randint(0, 2) for _ in range(draw.randint(1, 6))] for _ in range(draw.randint(1, 4))]
        rows = [array(*prompt, *text) for text in texts]
        beginnings = {(*ids[:i],) for ids in map(np.ndarray.tolist, rows) for i in range(1, len(ids))}
        found = trees._grown(rows)
        count = len(found.tokens)
        there = seen(torch.arange(count)[None], torch.from_numpy(found.last)[None])[0].numpy()
        paths = [(*found.tokens[there[node]].tolist(),) for node in range(count)]
        assert (len(paths), {*paths}) == (len(beginnings), beginnings)
        assert found.depths.tolist() == [len(path) - 1 for path in paths]
        assert size(rows) == len(beginnings)
        for ids, edges in zip(rows, found.edges, strict=True):
            for i in range(1, len(ids)):
                edge = edges[i]
                assert (paths[found.sources[edge]], found.targets[edge]) == ((*ids[:i].tolist(),), ids[i])


def row(*tokens: int, start: int = 1) -> Row:
    return Row(array(*tokens), np.arange(len(tokens)) >= start)


def test_responses_with_little_in_common_stay_rows_or_become_trees_of_one_row():
    rows = [row(1, *range(2, 40)), row(1, *range(40, 78))]
    assert make(rows, [[0, 1]], 39) is None
    made = make(rows, [[0, 1]], 39, always=True)
    assert (made["branching"], made["ids"].shape, made["lengths"].tolist()) == (False, (2, 40), [38, 38])
    inputs = Trees.of(made, torch.bool).inputs
    assert inputs["attention_mask"].tolist() == [[1] * 38 + [0] * 2] * 2
    assert len(made["sources"]) == 2 * 38


@pytest.mark.parametrize(("tokens", "branching"), [(2000, True), (6000, False)])
def test_long_responses_with_a_short_prompt_stay_rows_because_of_the_square_of_the_mask(tokens, branching):
    """A quarter is prompt, so a tree has 7/4 of a row's tokens, and a quarter of one is saved: 49/4 n <= 2^15."""
    prompt, rest = range(tokens // 4), 3 * tokens // 4
    rows = [row(*prompt, *range(start, start + rest)) for start in (10**5, 10**6)]
    assert (make(rows, [[0, 1]], tokens) is not None) == branching
    same = [row(*prompt, *range(10**5, 10**5 + rest - 1), last) for last in (1, 2)]
    assert make(same, [[0, 1]], tokens)["branching"]  # all but the last token is shared


def test_a_batch_of_which_nothing_is_read_keeps_the_head_in_the_graph():
    made = make([row(1, 2, 3, 4, start=9)] * 2, [[0, 1]], 16)
    wanted = Trees.of(made, torch.bool).wanted
    values = torch.ones(1, requires_grad=True)
    placed = wanted.place(values)
    placed.sum().backward()
    assert (wanted.positions.tolist(), placed.abs().sum().item(), values.grad.tolist()) == ([0], 0, [0])


def test_rows_of_a_record_are_together_wherever_they_are():
    assert together(["a", "b", "a", "c", "b"]) == [[0, 2], [1, 4], [3]]


def asked(network, why_not: str = "", longest: int = 100, **options) -> tuple[bool, list[str], int]:
    """(whether it works, lines, forward passes) of two steps with a model."""
    lines, passes = [], []

    def run(inputs):
        passes.append(inputs)
        return network(**inputs, use_cache=False).logits

    sharing = Sharing(why_not, longest=longest, tell=lines.append, **options)
    found = [sharing.try_once(lambda: [Model(network, run)]) for _ in range(2)]
    assert found[0] == found[1] == sharing.possible
    return found[0], lines, len(passes)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_attention_is_tried_once_and_not_changed(attention, dtype):
    network = with_dropout(llama(attention, dtype=dtype))
    before, state = [each.training for each in network.modules()], torch.random.get_rng_state()
    assert asked(network) == (True, [], 2)
    assert [each.training for each in network.modules()] == before
    assert torch.equal(torch.random.get_rng_state(), state)


def with_dropout(network):
    """In training, some of it in evaluation mode."""
    for layer in network.model.layers:
        layer.self_attn.attention_dropout = 0.5
    network.train()
    network.model.norm.eval()
    return network


class Deaf(nn.Module):
    """A model that reads no mask and no positions: what stands before a token changes its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(24, 8), nn.Linear(8, 24)
        self.dtype, self.config = torch.float32, SimpleNamespace(vocab_size=24, _attn_implementation="sdpa")
        self.config.get_text_config = lambda: self.config

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.head(self.embeddings(input_ids).cumsum(1)))


class Recurrent(Deaf):
    """A model that reads the mask, but mixes each token with the one that stands before it, as Mamba's layers do."""

    def forward(self, input_ids, attention_mask, **_):
        hidden = self.embeddings(input_ids)
        weights = attention_mask[:, 0] if attention_mask.dim() == 4 else torch.ones(input_ids.shape[1:] * 2).tril()
        return SimpleNamespace(logits=self.head(weights.to(hidden.dtype) @ hidden + hidden.roll(1, 1)))


class Failing(Deaf):
    """A model that knows no mask of four dimensions."""

    def forward(self, input_ids, attention_mask, **_):
        rows, columns = attention_mask.shape
        return super().forward(input_ids[:rows, :columns])


@pytest.mark.parametrize(
    ("make_network", "said"),
    [
        (Deaf, "it gives other log-probabilities in a tree of tokens"),
        (Recurrent, "it gives other log-probabilities in a tree of tokens"),
        (Failing, "it cannot read a tree of tokens (ValueError: too many values to unpack (expected 2)"),
    ],
)
def test_a_model_that_fails_the_trial_reads_rows_and_one_line_says_why(make_network, said):
    torch.manual_seed(0)
    works, lines, _ = asked(make_network().eval())
    assert not works
    assert len(lines) == 1
    assert lines[0].startswith(f"Each response is read with its whole prompt, prefix sharing is off: {said}")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"attention": "flash_attention_2"}, "attention by flash_attention_2 takes no mask of a tree; sdpa does"),
        ({"sliding_window": 64}, "the model's attention reaches back 64 tokens, and a row may have 100"),
        ({"attention_chunk_size": 64}, "the model's attention reaches back 64 tokens, and a row may have 100"),
        ({"output_router_logits": True}, "the balancing loss of the model's experts counts tokens"),
        ({"group_size_ratio": 0.25}, "with shift_attn the model's attention is shifted"),
    ],
    ids=str,
)
def test_what_a_models_configuration_says_against_trees_is_told_without_a_trial(more, said):
    network = llama()
    network.config._attn_implementation_internal = more.pop("attention", "sdpa")
    for name, value in more.items():
        setattr(network.config, name, value)
    works, lines, passes = asked(network)
    assert (works, passes) == (False, 0)
    assert lines == [f"Each response is read with its whole prompt, prefix sharing is off: {said}"]


def test_a_window_that_holds_the_longest_row_and_experts_without_balancing_loss_do_not_matter():
    config = llama(sliding_window=100).config
    assert why_not_in(config, 100) == ""
    config.output_router_logits = True
    assert why_not_in(config, 100, balanced=False) == ""


def test_a_reason_that_is_known_before_is_told_at_once_and_nothing_is_tried():
    works, lines, passes = asked(copy.deepcopy(Deaf()), "the user says so")
    assert (works, passes, len(lines)) == (False, 0, 1)


class Plain(nn.Module):
    """Embeddings, attention by the mask with equal weights, and an output head; on any device."""

    def __init__(self, *, logits: bool = False) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(24, 8), nn.Linear(8, 24, bias=False)
        token_values._AFTER[self] = None if logits else token_values._After(Head(None, None), ())

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids, attention_mask, position_ids, **_):
        hidden = self.embeddings(input_ids) + position_ids.unsqueeze(-1)
        return SimpleNamespace(logits=self.head(attention_mask[:, 0].to(hidden.dtype) @ hidden))


def a_step(network, made, dtype) -> torch.Tensor:
    batch = Trees.of(made, dtype)
    with torch.no_grad():
        theirs = read_reference(a_pass(network, batch.inputs), batch.wanted, network, kl="loss")
    found = read(a_pass(network, batch.inputs), batch.wanted, theirs, kl="loss")
    loss = found.logps.sum() + found.kl.sum()
    loss.backward()
    return loss


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_step_on_trees_makes_nothing_on_the_cpu_and_waits_for_nothing(dtype):
    """On the device "meta", which has no values; then on the CPU, where what would wait is noted."""
    ids, mask, needed = padded("right")
    made = make(rows_of(ids, mask, needed), [[i, i + 4] for i in range(4)], ids.shape[1])
    there, batch = Plain(logits=True).to("meta"), moved(made)  # that device has no autocast, which the head asks for
    with Elsewhere():
        assert a_step(there, batch, dtype).device.type == "meta"
    noted = Waits()
    with noted.noting():
        a_step(Plain(), made, dtype)
    assert (noted.ours, noted.backward, noted.others) == ([], [], [])
