"""Runs of OpenRLHF, in its environment; LLaMA-Factory runs in its own."""

from openrlhf_runs import attempt, flags, host, train

__all__ = ["attempt", "flags", "host", "train"]
