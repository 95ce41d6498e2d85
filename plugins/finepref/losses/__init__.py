"""The papers' losses as free functions on tensors. One file per paper; imports torch only."""
