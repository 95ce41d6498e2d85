"""What a head computes in place of logits equals what is read from all logits, for every kind of head."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
from finepref.hosts import token_values
from finepref.hosts.token_values import AllLogits, Pass, Wanted, read, read_reference
from finepref.losses.positions import needed_positions, place_at
from torch import nn

SIZES = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {},
    "tied qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},  # its head has a bias
}


def network(family: str = "llama", **more):
    """A random model of one layer in float64, with logits that differ by whole numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family.split()[-1], **SIZES, **FAMILIES[family], **more)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    made.get_output_embeddings().weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return made


def adapted(kind: str):
    """A LoRA on the inner layers, and what its name says on the head."""
    from peft import LoraConfig, get_peft_model

    more = {
        "lora": {},
        "lora head": {"target_modules": ["q_proj", "lm_head"]},
        "dora head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
        "saved head": {"modules_to_save": ["lm_head"]},
    }[kind]
    made = get_peft_model(network(), LoraConfig(r=2, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"]} | more))
    torch.manual_seed(3)
    for name, each in made.named_parameters():
        if each.requires_grad:
            each.data += 0.3 * torch.randn_like(each)
        if "lora" in name:
            each.data = each.data.double()
    return made.double()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 97, (3, 11), generator=generator)
    needed = torch.rand(3, 10, generator=generator) < 0.5
    needed[1] = False
    return ids, needed


def a_pass(model, ids) -> Pass:
    return Pass(model, lambda: model(input_ids=ids).logits, lambda one: model(input_ids=one).logits)


def wanted_of(ids, needed) -> Wanted:
    positions = needed_positions(needed, int(needed.sum()))
    marked = nn.functional.pad(needed, (0, 1))
    targets = nn.functional.pad(ids[:, 1:], (0, 1)).flatten()[positions]
    return Wanted(positions, targets, lambda values: place_at(values, positions, marked)[:, :-1])


def reference_context(policy, reference):
    return policy.disable_adapter() if reference is policy else nullcontext()


def both(policy, reference, batch, kl):
    """(values, gradients by name) by the head, then by all logits; of a loss that reads everything it may read."""
    ids, needed = batch
    wanted, found = wanted_of(ids, needed), []
    for plain in (False, True):
        with torch.no_grad(), reference_context(policy, reference):
            if plain:
                theirs = AllLogits(reference(input_ids=ids).logits, ids, needed)
            else:
                theirs = read_reference(a_pass(reference, ids), wanted, policy, kl=kl)
        if plain:
            values = AllLogits(policy(input_ids=ids).logits, ids, needed).values(theirs, kl=kl)
        else:
            values = read(a_pass(policy, ids), wanted, theirs, kl=kl)
        slopes = torch.randn(2, *needed.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
        loss = (values.logps * slopes[0]).sum() + ((values.kl * slopes[1]).sum() if kl == "loss" else 0)
        policy.zero_grad()
        loss.backward()
        found.append((values, {name: each.grad for name, each in policy.named_parameters() if each.requires_grad}))
    return found


def assert_equal(found):
    (mine, gradients), (plain, expected) = found
    for one, other in zip(mine, plain, strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert any(each.abs().max() > 1e-3 for each in expected.values())
    for name, other in expected.items():
        torch.testing.assert_close(gradients[name], other, rtol=0, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def counted(monkeypatch) -> list[str]:
    """Which function of `fused_head` ran, by name."""
    ran = []
    for name in ("values", "through"):
        function = getattr(token_values.fused_head, name)
        monkeypatch.setattr(
            token_values.fused_head, name, lambda *a, f=function, n=name, **k: (ran.append(n), f(*a, **k))[1]
        )
    return ran


@pytest.mark.parametrize("kl", ["", "metric", "loss"])
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_gives_the_values_and_gradients_of_all_logits(
    family, frozen, kl, batch, monkeypatch, caplog
):
    monkeypatch.setattr(token_values, "SMALL", 0)
    ran = counted(monkeypatch)
    policy, reference = network(family), network(family)
    policy.get_output_embeddings().weight.requires_grad_(not frozen)
    for each in reference.parameters():
        each.requires_grad_(False)
        each.data += 0.05 * torch.randn_like(each)
    with caplog.at_level(logging.WARNING, logger="finepref"):
        assert_equal(both(policy, reference, batch, kl))
    assert set(ran) == {"values"}
    assert not caplog.records


@pytest.mark.parametrize("kl", ["", "loss"])
@pytest.mark.parametrize("kind", ["lora", "lora head", "dora head", "saved head"])
def test_with_an_adapter_its_base_is_the_reference_whatever_is_adapted(kind, kl, batch, monkeypatch):
    monkeypatch.setattr(token_values, "SMALL", 0)
    ran = counted(monkeypatch)
    policy = adapted(kind)
    assert_equal(both(policy, policy, batch, kl))
    own = {"values"} if kind in ("lora", "saved head") else {"through"}
    assert own <= set(ran)


def test_of_a_reference_whose_kl_is_read_only_hidden_states_are_kept(batch):
    ids, needed = batch
    policy = adapted("lora")
    with torch.no_grad(), policy.disable_adapter():
        kept = read_reference(a_pass(policy, ids), wanted_of(ids, needed), policy, kl="loss")
    assert kept.kept.shape == (int(needed.sum()), 16)
    assert kept.logps is None


def test_a_reference_that_trains_the_same_head_keeps_its_logits(batch):
    """As when a copy of the trained weights is put in place for the reference's pass: the head itself is another."""
    ids, needed = batch
    policy = network()
    with torch.no_grad():
        kept = read_reference(a_pass(policy, ids), wanted_of(ids, needed), policy, kl="loss")
    assert kept.kept.shape == (int(needed.sum()), 97)


def test_small_logits_of_a_trained_head_are_kept_instead_of_computed_twice(batch, monkeypatch):
    ran = counted(monkeypatch)
    policy = network()
    assert_equal(both(policy, copy.deepcopy(policy).requires_grad_(False), batch, ""))
    assert "values" in ran  # the reference's, which has no gradient
    assert ran.count("values") == 1


class Shifted(nn.Module):
    """A model that adds something to its logits, which no configuration tells."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, input_ids):
        output = self.inner(input_ids=input_ids)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1], dtype=output.logits.dtype)
        return output


def test_a_model_that_changes_its_logits_unasked_gives_the_needed_logits_and_a_warning(batch, monkeypatch, caplog):
    ran = counted(monkeypatch)
    policy, reference = Shifted(network()), Shifted(network()).requires_grad_(False)
    with caplog.at_level(logging.WARNING, logger="finepref"):
        assert_equal(both(policy, reference, batch, "loss"))
    assert not ran
    assert [each.getMessage() for each in caplog.records] == [
        "Shifted changes its logits in an unknown way: they are computed"
    ] * 2


def test_the_trial_leaves_random_numbers_and_the_model_as_they_were(batch):
    ids, _ = batch
    model = network("gemma2", attention_dropout=0.5).train()
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    token_values._after(a_pass(model, ids))
    assert torch.rand(1) == expected
    assert model.config.final_logit_softcapping == 2.0
    assert model(input_ids=ids).logits.shape == (3, 11, 97)


def test_a_model_is_tried_once(batch, monkeypatch):
    ids, needed = batch
    tried, original = [], token_values._trial
    monkeypatch.setattr(token_values, "_trial", lambda model: (tried.append(model), original(model))[1])
    model = network()
    for _ in range(3):
        read(a_pass(model, ids), wanted_of(ids, needed))
    assert len(tried) == 1


def test_a_batch_that_needs_nothing_runs_the_head_and_gives_zero_gradients(batch):
    ids, needed = batch
    policy = network()
    values = read(a_pass(policy, ids), wanted_of(ids, torch.zeros_like(needed)))
    values.logps.sum().backward()
    assert values.logps.abs().sum() == 0
    assert all(each.grad.abs().sum() == 0 for each in policy.parameters())


def test_a_compiled_model_reads_the_same(batch):
    ids, needed = batch
    model = network()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=ids)
    run = Pass(model, lambda: compiled(input_ids=ids).logits, lambda one: compiled(input_ids=one).logits)
    found = read(run, wanted_of(ids, needed))
    expected = AllLogits(model(input_ids=ids).logits, ids, needed).logps()
    torch.testing.assert_close(found.logps, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(compiled(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-10)
