"""The language model that lm-eval asks: its own HFLM, with log-likelihoods of packed requests.

HFLM splits requests into tokens (trailing spaces, empty contexts), and generation and rolling
log-likelihoods, which no packaged task uses, are its own. Special tokens and the step from token ids to
log-likelihoods are ours (`packing`, `packed_scoring`); where a model's masks or position embeddings cannot
be packed, that step is HFLM's too, and the result says so with the reason.

Packs follow from a task's own requests: in bfloat16, where what lies beside a request moves its score by
rounding, neither their order nor other tasks do. Another `limit` is another set of requests, so scores
of one limit are compared with scores of the same limit; `batch_tokens` likewise.

Differs from HFLM: log-softmax is taken in float32 whatever the model's dtype (with the 8 bits of bfloat16,
sums of log-likelihoods tie and the first choice wins), and summed over a continuation in float64. And BOS
is an id that is put in front, once, where `evaluation.add_bos` says so: HFLM asks the tokenizer for its
special tokens instead, of which some have no BOS, and some an EOS at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from lm_eval.models.huggingface import HFLM

from faqbench.config import Experiment, UserError
from faqbench.evaluation.packed_scoring import TaskModel
from faqbench.evaluation.packing import Request, n_unshared_tokens, pack
from faqbench.models import bos_of, check_ids, device_of
from faqbench.stages import Progress

# (context and continuation as text), tokens of the context, tokens of the continuation
Encoded = tuple[Any, list[int], list[int]]


class Scorer(HFLM):  # type: ignore[misc]
    """A model as the `LM` that lm-eval's `evaluate` takes.

    Attributes:
        facts: what its log-likelihoods took so far.
        in_front: the token id that every encoded text begins with; None for none.
    """

    def __init__(self, model: TaskModel, experiment: Experiment, progress: Progress, title: str) -> None:
        """Wrap a model.

        Args:
            model: what is scored.
            experiment: its `evaluation` has BOS and the budgets.
            progress: told of finished requests.
            title: the task, for progress and for errors.
        """
        settings = experiment.evaluation
        self._bos = bos_of(model.tokenizer, "evaluation.add_bos") if settings.add_bos else None
        self._asked_of, self._progress, self._title = model, progress, title
        self._batch_tokens = settings.batch_tokens
        self.in_front = self._bos
        self.facts = ScorerFacts()
        super().__init__(
            pretrained=model.model,
            tokenizer=model.tokenizer,
            batch_size=settings.batch_size,
            softmax_dtype="float32",
        )
        self._device = device_of(model.model)  # HFLM believes the first weight, which may not be there

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has no context: BOS, or EOS where there is none."""
        known = (self._asked_of.tokenizer.bos_token_id, self._asked_of.tokenizer.eos_token_id)
        return self._first_of(known, "scores texts that have no context", "a BOS or EOS token")

    @property
    def eot_token_id(self) -> int:
        """The token that ends a generated text."""
        return self._first_of((self._asked_of.tokenizer.eos_token_id,), "generates text", "an EOS token")

    def _first_of(self, ids: Sequence[int | None], what: str, needed: str) -> int:
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise UserError(f"Task '{self._title}' {what}: the tokenizer needs {needed}, and has none.")
        return int(found)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, with BOS in front once where every text has it."""
        ids: list[int] = self._asked_of.tokenizer.encode(string, add_special_tokens=False)
        in_front = None if add_special_tokens is False else self.in_front
        return ids if in_front is None or ids[:1] == [in_front] else [in_front, *ids]

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> Any:
        """Return ids and mask of several texts [n, longest], as `tok_encode` gives them."""
        rows = [self.tok_encode(string)[-(left_truncate_len or 0) :] for string in strings]
        padded = self._asked_of.tokenizer.pad(
            {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
        )
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return log-likelihood and greediness of each request, in their order."""
        # A group's members are packed each by itself, so that none moves another's rounding.
        answers: list[Any] = [None] * len(requests)
        for task in dict.fromkeys(request.task_name for request in requests):
            of_task = [i for i, request in enumerate(requests) if request.task_name == task]
            found = super().loglikelihood([requests[i] for i in of_task], disable_tqdm=True)
            for i, answer in zip(of_task, found, strict=True):
                answers[i] = answer
        self._asked_of.end_asking()
        return answers

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return whole texts' log-likelihoods, by HFLM's own windows."""
        self._asked_of.end_asking()
        self.in_front = None  # HFLM puts the prefix token there itself
        try:
            with self._by_hflm("rolling log-likelihoods", len(requests)):
                return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.in_front = self._bos

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """Return generated texts, by HFLM."""
        self._asked_of.end_asking()
        with self._by_hflm("generation", len(requests)):
            return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        """Answer requests of lm-eval: packed, from what is known already, or by its own HFLM."""
        if override_bs is not None:  # a batch of rolling windows
            return super()._loglikelihood_tokens(requests, True, override_bs)
        asked = _requests(requests, self.max_length, self._title)
        largest = max(max(request.tokens) for request in asked)
        check_ids(largest, self._asked_of.vocab_size, self._asked_of.tokenizer, f"Task '{self._title}'")
        if self._asked_of.wanted is not None:
            self._asked_of.note(asked)
            return [(0.0, False)] * len(asked)
        self.facts.count(requests, asked, self.max_length)
        why_not = self._asked_of.refusal(max(len(r.inputs) for r in asked))
        if why_not is not None:
            self.facts.n_tokens += n_unshared_tokens(asked)
            with self._by_hflm(why_not, len(asked)):
                return super()._loglikelihood_tokens(requests, disable_tqdm=True)
        packs = pack(asked, self._batch_tokens)
        self.facts.scorers["packed"] = None
        self.facts.n_tokens += sum(p.n_nodes for p in packs)
        with self._progress.activity(self._title, len(asked)) as advance:
            sums, greedy = self._asked_of.score(asked, packs, advance)
        return list(zip(sums.tolist(), greedy.tolist(), strict=True))

    @contextmanager
    def _by_hflm(self, reason: str, n_requests: int) -> Iterator[None]:
        self.facts.scorers[f"hflm ({reason})"] = None
        with self._progress.activity(self._title, n_requests) as advance:
            yield
            advance(n_requests)


@dataclass
class ScorerFacts:
    """What the log-likelihoods of a task took, for its record.

    Attributes:
        scorers: `packed`, or `hflm` with the reason why; several where a task has several kinds of request.
        n_requests: log-likelihoods asked for, rolling ones not counted.
        n_truncated: requests cut from the left, because they were longer than the model's context.
        n_tokens: tokens that were encoded, padding not counted.
        n_unshared_tokens: tokens of all different inputs, which HFLM encodes.
    """

    scorers: dict[str, None] = field(default_factory=dict)
    n_requests: int = 0
    n_truncated: int = 0
    n_tokens: int = 0
    n_unshared_tokens: int = 0

    def count(self, encoded: Sequence[Encoded], asked: Sequence[Request], max_length: int) -> None:
        """Add the requests of one task."""
        lengths = [len(context) + len(continuation) for _, context, continuation in encoded]
        self.n_requests += len(asked)
        self.n_truncated += sum(n > max_length + 1 for n in lengths)
        self.n_unshared_tokens += n_unshared_tokens(asked)

    def to_json(self) -> dict[str, Any]:
        """Return the facts as a JSON mapping."""
        numbers = {k: v for k, v in asdict(self).items() if k != "scorers"}
        return {"scorer": "; ".join(self.scorers), **numbers}


def _requests(encoded: Sequence[Encoded], max_length: int, title: str) -> list[Request]:
    """Cut requests to the model's context, from the left, as HFLM does.

    Raises:
        UserError: for a request with nothing to score, with nothing before it, or with a continuation that
            does not fit the context.
    """
    asked = []
    for _, context, continuation in encoded:
        if not context or not continuation:
            empty = "continuation" if context else "context"
            raise UserError(f"Task '{title}' has a request whose {empty} has no tokens.")
        if len(continuation) > max_length:
            raise UserError(
                f"Task '{title}' has a continuation of {len(continuation)} tokens, which does not fit "
                f"the model's context of {max_length}."
            )
        tokens = tuple([*context, *continuation][-(max_length + 1) :])
        asked.append(Request(tokens=tokens, n_scored=len(continuation)))
    return asked
