#!/bin/sh
# What a GPU of 24 GB or more is to show, in at most 12 minutes: Qwen3-8B's shape, 36 blocks, 128 x 512 tokens.
# Wanted: AWQ and FAQ within 120 s, GPTQ within 240 s, at most 12 GB of device memory and 8 GB of the host's.
# Run from the repository's root; --folder needs 17 GB for the weights.
set -e
nvidia-smi --query-gpu=name,memory.total --format=csv
python -c "
import time, torch
a = torch.randn(8192, 8192, device='cuda')
for dtype in (torch.float32, torch.bfloat16):
    x = a.to(dtype); x @ x; torch.cuda.synchronize(); start = time.perf_counter()
    for _ in range(10): x @ x
    torch.cuda.synchronize(); print(dtype, round(10 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12, 1), 'TFLOP/s')
"
timeout 720 python tests/benchmarks/bench_size.py --device cuda --blocks 36 --windows 128 --tokens 512 --grid 20 \
    --methods awq,faq,gptq --folder "${1:-/tmp}" memory.device_gigabytes=12 memory.host_gigabytes=8 dtype=bfloat16
