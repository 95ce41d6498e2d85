"""One rank: what `llamafactory-cli train` starts, without compiling DeepSpeed's operators for CPUs.

They take minutes of a C++ compiler, and DeepSpeed does without them.
"""

import sys

import deepspeed
from llamafactory.train.tuner import run_exp

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
sys.argv = ["llamafactory-cli", *sys.argv[1:]]
run_exp()
