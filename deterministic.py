"""Set what can be set so that the same command gives the same numbers, and record what was set.

What is promised: the same machine, library versions, thread count and batch size give bit-identical arrays. Another
processor, another batch size or another library version may round differently; the run's config records all of them.
Importing this module imports nothing heavy; torch is imported inside the functions.
"""

import os
import random


def prepare_environment():
    """Set what CUDA reads only once, when it starts; call it before torch is imported."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_determinism(seed):
    """Seed Python, numpy and torch, ask torch for deterministic kernels without TF32; returns the record of it."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("warn")  # the same switch as use_deterministic_algorithms, without its compiler
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return {
        "seed": seed,
        "torch_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
