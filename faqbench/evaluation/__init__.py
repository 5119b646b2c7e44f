"""Evaluation: named perplexity protocols and lm-eval tasks, each a stage of its own.

The pipeline asks for one protocol or one task at a time, so that each is cached by itself:

    protocol = resolve_protocol("wikitext2-512", experiment)        text and window length, checked
    tokens = protocol_tokens(protocol, tokenizer, experiment, progress)    [n_windows, seq_len]
    scores = score_tokens(model, tokens.tokens, batch_tokens, progress)    each [n_windows, seq_len - 1]
    metrics = perplexity_metrics(protocol, scores)

    result = run_task("arc_easy_validation", TaskModel(model, tokenizer), experiment, progress)

The model arrives in its dtype and on its device; nothing here moves, casts or changes it. A
number's protocol or task, with its split, is part of its name, and two names are never put in one
column. Tasks reach the model through `scorer.py`: requests that share a beginning are packed into one
forward (`packing.py`, pure; `packed_scoring.py`), and both tasks and protocols take logits only where
they are scored (`head.py`). `reference.py` keeps what KL divergence is measured against.

Adding a task whose data is packaged is one file, `tasks/<name>_<split>.yaml`, read by
`packaged.py`:

    include: arc/arc_easy.yaml    lm-eval's own definition, relative to its folder of tasks
    dataset: arc_easy             the packaged data set, in the columns of the hub's
    split: validation             what the packaged documents are a split of
    evaluation_part_of: passage   optional: score only documents whose text in this column belongs
                                  to the evaluation part, because the others are calibration text

Adding a protocol: a kind of text in `protocols.py` (its pattern and what it is called) and in
`texts.py` (where the text comes from), and, for tokenizers whose result is known, its token count
and hash in `expected_tokens.yaml`.
"""

from faqbench.evaluation.harness import HARNESS_VERSION, check_task, run_task, task_passages
from faqbench.evaluation.overlap import Overlap, calibration_grams, count_overlap
from faqbench.evaluation.packaged import task_names
from faqbench.evaluation.perplexity import (
    SCORER_VERSION,
    TokenScores,
    check_context,
    perplexity_metrics,
    score_tokens,
)
from faqbench.evaluation.protocols import Protocol, protocol_examples, resolve_protocol
from faqbench.evaluation.reference import Beside, HiddenStates, HiddenWriter
from faqbench.evaluation.results import TaskResult
from faqbench.evaluation.scorer import TaskModel
from faqbench.evaluation.texts import protocol_passages, text_source
from faqbench.evaluation.windows import ProtocolTokens, expected_tokens_hash, protocol_tokens

__all__ = [
    "HARNESS_VERSION",
    "SCORER_VERSION",
    "Beside",
    "HiddenStates",
    "HiddenWriter",
    "Overlap",
    "Protocol",
    "ProtocolTokens",
    "TaskModel",
    "TaskResult",
    "TokenScores",
    "calibration_grams",
    "check_context",
    "check_task",
    "count_overlap",
    "expected_tokens_hash",
    "perplexity_metrics",
    "protocol_examples",
    "protocol_passages",
    "protocol_tokens",
    "resolve_protocol",
    "run_task",
    "score_tokens",
    "task_names",
    "task_passages",
    "text_source",
]
