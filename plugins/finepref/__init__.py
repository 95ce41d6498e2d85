"""Fine-grained preference learning for LLaMA-Factory and OpenRLHF, without a fork of either."""

__version__ = "0.1.0"
