"""Only the needed positions reach the output head, with the gradients of the full logits, in every layout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch


def test_needed_positions_have_the_gradients_of_full_logits_padded_and_packed(tiny_model):
    probe = Path(__file__).with_name("head_gradients.py")
    done = subprocess.run([sys.executable, str(probe), str(tiny_model)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    differences = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("difference")]
    assert len(differences) == 10
    assert max(differences) < 1e-5


def test_the_stand_ins_for_flash_attn_pack_and_pad_back(host):
    """[2, 3] with 3 + 2 tokens: packed to 5 rows, the next token of each row beside it, and back with zeros."""
    from openrlhf.models.ring_attn_utils import gather_and_pad_tensor, unpad_and_slice_tensor

    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    packed, places, following, gap, indices = unpad_and_slice_tensor(ids, mask, None)
    assert packed.tolist() == [[1, 2, 3, 4, 5]]
    assert places.tolist() == [[0, 1, 2, 0, 1]]
    assert following.tolist() == [[2, 3, 1, 5, 0]]
    assert gap == 0
    assert gather_and_pad_tensor(packed, None, gap, indices, 2, 3).tolist() == ids.tolist()


def test_nothing_of_flash_attn_is_left_behind_and_torch_is_untouched(host):
    import transformers.utils

    assert not [name for name in sys.modules if name.split(".")[0] == "flash_attn"]
    assert not transformers.utils.is_flash_attn_2_available()
    assert not torch.cuda.is_available()
    assert torch.cuda.set_device.__module__ == "torch.cuda"
    assert torch.distributed.device_mesh.init_device_mesh.__module__ == "torch.distributed.device_mesh"
