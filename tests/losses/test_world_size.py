"""Ranks and accumulation: the same records give the same gradient, however they are spread."""

import batches
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from finepref.losses import apo_rm, kto, tdpo
from finepref.losses.ops import LossOut, reduce, token_logps, weighted_sum
from torch.nn.parallel import DistributedDataParallel

ROWS, LENGTH = 4, 6
UNEVEN = ((0, 1, 2), (3,))  # the records of rank 0 and of rank 1
APO = {"kl_coeff": 1.0, "apo_coeff": 0.1, "samples": 4}


class Model(torch.nn.Module):
    """Token ids [B, T+1] -> logits [B, T+1, V], in float64; its gradient is what the tests compare."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(batches.V, batches.V, dtype=torch.float64)
        with torch.no_grad():
            self.table.weight.copy_(torch.sin(torch.arange(batches.V**2.0)).view(batches.V, batches.V))

    def forward(self, ids):
        return self.table(ids)


def records():
    """Four records; record 1 has no counted token at all, so the valid rows of the ranks are two and one."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, batches.V, (2, ROWS, LENGTH + 1), generator=generator)
    weight = torch.rand(2, ROWS, LENGTH, generator=generator, dtype=torch.float64)
    weight[:, 1] = 0
    return ids, weight


def apo_scores():
    """R = 6 responses per record; record 1 has only ties. Records 0 and 3 are human, record 2 is adversarial."""
    scores = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 5
    scores[1] = 2
    return scores, torch.tensor([False, True, True, False])


def outcome(name, model, rows, group=None, counts=None) -> LossOut:
    """The loss `name` of the records `rows`; the rewards of the ranking loss are the labels' log-probabilities."""
    ids, weight = (value[:, list(rows)] for value in records())
    logits = model(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    sides = [
        batches.Side(logits[i], torch.zeros_like(logits[i]), ids[i].masked_fill(ids[i] < 0, -100), weight[i])
        for i in range(2)
    ]
    if name in batches.PAIR_LOSSES:
        return batches.PAIR_LOSSES[name](*sides)
    if name == "granular sides":
        one_sided = torch.tensor([1, 0, 0, -1])[list(rows)]
        return tdpo.tdpo1_loss(batches.ratio(sides[0]), batches.ratio(sides[1]), beta=0.1, sides=one_sided)
    logps = token_logps(logits[0], ids[0])
    if name == "kto with z0":
        matched, other = (weighted_sum(token_logps(logits[i], ids[i]), weight[i]) for i in range(2))
        counted = (weight[0] > 0).any(-1)
        z0 = kto.kto_reference_point(other, other - 20 - matched, group, valid=counted)  # mean of 20 + matched
        assert z0 > 5
        settings = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.3, "valid": counted}
        return kto.kto_loss(matched, torch.tensor([True, True, False, False])[list(rows)], z0, **settings)
    scores, is_apo = (value[list(rows)] for value in apo_scores())
    return apo_rm.apo_rm_loss(logps, scores, is_apo, normalization=name, counts=counts, group=group, **APO)


NAMES = (*batches.PAIR_LOSSES, "granular sides", "kto with z0", "per_type", "released")


def train_on_one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in NAMES:
        model = DistributedDataParallel(Model())
        loss = reduce(outcome(name, model, UNEVEN[rank]))
        loss.backward()
        found[name] = (loss.detach(), model.module.table.weight.grad)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(train_on_one_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_with_uneven_valid_rows_equal_one(two_ranks, name):
    """Under DDP, which averages gradients; the returned loss is the global mean on both ranks."""
    model = Model()
    loss = reduce(outcome(name, model, range(ROWS)))
    loss.backward()
    for rank in two_ranks:
        found_loss, found_gradient = rank[name]
        assert found_loss.item() == pytest.approx(loss.item(), rel=1e-6)
        assert relative_error(found_gradient, model.table.weight.grad) <= 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("kto with z0", "released")])
def test_four_accumulated_micro_batches_equal_one_batch(name):
    """KTO's z0 and APO's `released` normalisation are defined by the micro-batch, so these two are left out."""
    step = (2.0, 1.0) if name == "per_type" else None  # valid human and adversarial records of the step
    whole, parts = Model(), Model()
    expected = reduce(outcome(name, whole, range(ROWS)))
    expected.backward()
    losses = [reduce(outcome(name, parts, [row], counts=step), count=3.0) for row in range(ROWS)]
    sum(losses).backward()
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(parts.table.weight.grad, whole.table.weight.grad) <= 1e-6
