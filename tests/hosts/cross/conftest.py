"""The other folder's fixtures, in OpenRLHF's environment; LLaMA-Factory runs in its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

place = Path(__file__).parents[1] / "openrlhf/conftest.py"
spec = importlib.util.spec_from_file_location("openrlhf_conftest", place)
openrlhf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(openrlhf)
tiny_model, sums, other_model = openrlhf.tiny_model, openrlhf.sums, openrlhf.other_model
flags, host, attempt, train = openrlhf.flags, openrlhf.host, openrlhf.attempt, openrlhf.train
tensors, ROOT = openrlhf.tensors, openrlhf.ROOT
