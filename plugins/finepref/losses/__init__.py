"""The papers' losses as free functions over tensors: torch only, one file per paper, nothing of a host."""
