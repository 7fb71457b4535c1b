"""Set what can be set so that the same command gives the same numbers, and record what was set.

What is promised: the same machine, library versions, thread count and batch size give bit-identical
arrays. Another processor, batch size or library version may round differently: entropies and masses
then agree within ROUNDING_TOLERANCE. The run's config records all of them, and the tolerance.
Importing this module imports nothing heavy; torch is imported inside the functions.
"""

import os
import platform
import random
import sys

# Largest difference of an entropy (nats) or of an attention mass between two runs of the same model
# and prompts that only round differently. Measured with the bundled model on a CPU, batches of 7,
# 64 and 120 raw prompts against single ones: float32 5.2e-6, bfloat16 0.035. float16, of which
# batches up to 40 gave no difference, has three more bits than bfloat16.
ROUNDING_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.0125}


def prepare_environment():
    """Set what CUDA reads only once, when it starts; later nothing is set, and none recorded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_determinism(seed):
    """Seed Python, numpy and torch, ask torch for deterministic kernels without TF32.

    Returns the record of it; every value was read back after it was set, or read from the machine.
    """
    import numpy as np  # here and not above: scripts import this module to answer --help
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # the same switch as use_deterministic_algorithms, without its compiler
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return {
        "seed": seed,
        "torch_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        "cublas_workspace_config": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor_name(),
    }


def processor_name():
    """The processor's name as the system gives it, or None: for telling machines apart."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or None
