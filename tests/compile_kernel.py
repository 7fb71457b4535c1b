"""Compiles the CUDA kernel for graphics cards that need not be there and prints what it takes
(test_triton.py).

python tests/compile_kernel.py bf16 128 90        dtype, width of a head, compute capability times
                                                  ten
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from rolecircuits.capture import triton_kernel  # noqa: E402


def compile_kernel(dtype, width, capability):
    kernel = triton_kernel._attention
    item_size = 4 if dtype == "fp32" else 2
    tile = triton_kernel.tile_of(width, item_size, capability == 90, 4096)
    constants = {"WIDTH": width, "VALUE_WIDTH": width, "PADDED": width, "VALUE_PADDED": width}
    constants |= {"ROWS": tile.rows, "KEYS": tile.keys, "CAPPED": False}
    kinds = dict.fromkeys(constants, "constexpr") | {"scale": "fp32", "softcap": "fp32"}
    kinds |= dict.fromkeys(("query_ptr", "key_ptr", "value_ptr", "out_ptr"), f"*{dtype}")
    kinds |= dict.fromkeys(("entropy_ptr", "sinkfree_ptr", "sink_ptr"), "*fp32")
    names = kernel.arg_names
    signature = {name: kinds.get(name, "i32") for name in names}
    aligned = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in names
        if name.endswith(("_ptr", "_prompt", "_head", "_row"))
    }
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        aligned,
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


if __name__ == "__main__":
    made = compile_kernel(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"shared": made.metadata.shared, "tensor_cores": "mma" in made.asm["ptx"]}))
