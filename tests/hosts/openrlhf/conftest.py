"""What the tests of this folder use."""

from openrlhf_runs import attempt, command, flags, host, train, warm

__all__ = ["attempt", "command", "flags", "host", "train", "warm"]
