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

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from faqbench.config import Experiment, UserError
from faqbench.evaluation.packed_scoring import refused_by_config, refused_by_probe, score_packs
from faqbench.evaluation.packing import Array, Pack, Request, n_unshared_tokens, pack
from faqbench.models import Model, bos_of, check_ids, device_of
from faqbench.stages import Progress
from faqbench.stages.progress import Advance

# (context and continuation as text), tokens of the context, tokens of the continuation
Encoded = tuple[Any, list[int], list[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What is known of the requests of tasks before these ask, since one walk has answered all of them.

    Attributes:
        scores: log-likelihoods and greediness, as from `score_packs`, by the requests of one task.
        refusal: why the model's requests cannot be packed, so that none of these count; else None.
    """

    scores: Mapping[tuple[Request, ...], tuple[Array, Array]]
    refusal: str | None


class Asked(Exception):  # noqa: N818 - a signal, not an error
    """Ends a task of which the requests were wanted, not their answers."""


class TaskModel:
    """A model as all tasks of a cell see it: what takes long to find out is found out once.

    Attributes:
        model: in its dtype, on its device.
        view: the same as a view, where it may be streamed.
        answers: what is known of requests; None where nothing is.
        wanted: takes requests instead of answering them; None where they are answered.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        view: Model | None = None,
        *,
        answers: Answers | None = None,
        wanted: list[tuple[Request, ...]] | None = None,
    ) -> None:
        self.model = model
        self.view = view
        self.answers = answers
        self.wanted = wanted
        self._tokenizer = tokenizer

    @cached_property
    def tokenizer(self) -> Any:
        """A copy of the tokenizer, since it is given a padding token."""
        tokenizer = copy.deepcopy(self._tokenizer)
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
            # HFLM would add one, whose id no embedding has. Padding is masked, so any token will do.
            tokenizer.pad_token_id = 0
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: the token ids that the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def refusal(self, longest: int) -> str | None:
        """Say why requests of up to `longest` tokens cannot be packed, or return None when they can."""
        return refused_by_config(self.model, longest) or self._refused_by_probe

    def score(
        self, asked: Sequence[Request], packs: Sequence[Pack], advance: Advance
    ) -> tuple[Array, Array]:
        """Return what `score_packs` does, where it is not known already."""
        known = None if self.answers is None else self.answers.scores.get(tuple(asked))
        if known is not None:
            return known
        return score_packs(self.view or self.model, packs, len(asked), advance)

    def note(self, asked: Sequence[Request]) -> None:
        """Note requests that can be packed as far as the config tells."""
        assert self.wanted is not None
        if refused_by_config(self.model, max(len(r.inputs) for r in asked)) is None:
            self.wanted.append(tuple(asked))

    def end_asking(self) -> None:
        """End a task of which nothing but its requests is wanted.

        Raises:
            Asked: where that is so.
        """
        if self.wanted is not None:
            raise Asked

    @cached_property
    def _refused_by_probe(self) -> str | None:
        if self.answers is not None:
            return self.answers.refusal
        return refused_by_probe(self.view or self.model)


def make_scorer(model: TaskModel, experiment: Experiment, progress: Progress, title: str) -> Any:
    """Wrap a model as the `LM` that lm-eval's `evaluate` takes.

    Args:
        model: what is scored.
        experiment: its `evaluation` has BOS and the budgets.
        progress: told of finished requests.
        title: the task, for progress and for errors.

    Returns:
        An HFLM with `facts`, a `ScorerFacts`.
    """
    from lm_eval.models.huggingface import HFLM

    settings = experiment.evaluation
    bos = bos_of(model.tokenizer, "evaluation.add_bos") if settings.add_bos else None

    class Scorer(HFLM):  # type: ignore[misc]
        @property
        def prefix_token_id(self) -> int:
            """The token before a text that has no context: BOS, or EOS where there is none."""
            known = (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
            return self._first_of(known, "scores texts that have no context", "a BOS or EOS token")

        @property
        def eot_token_id(self) -> int:
            """The token that ends a generated text."""
            return self._first_of((model.tokenizer.eos_token_id,), "generates text", "an EOS token")

        def _first_of(self, ids: Sequence[int | None], what: str, needed: str) -> int:
            found = next((i for i in ids if i is not None), None)
            if found is None:
                raise UserError(f"Task '{title}' {what}: the tokenizer needs {needed}, and has none.")
            return int(found)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            ids: list[int] = model.tokenizer.encode(string, add_special_tokens=False)
            in_front = None if add_special_tokens is False else self.in_front
            return ids if in_front is None or ids[:1] == [in_front] else [in_front, *ids]

        def tok_batch_encode(
            self,
            strings: Sequence[str],
            padding_side: str = "left",
            left_truncate_len: int | None = None,
            truncation: bool = False,
        ) -> Any:
            rows = [self.tok_encode(string)[-(left_truncate_len or 0) :] for string in strings]
            padded = model.tokenizer.pad(
                {"input_ids": rows}, padding_side=padding_side, return_tensors="pt"
            )
            return padded["input_ids"], padded["attention_mask"]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            # A group's members are packed each by itself, so that none moves another's rounding.
            answers: list[Any] = [None] * len(requests)
            for task in dict.fromkeys(request.task_name for request in requests):
                own = [i for i, request in enumerate(requests) if request.task_name == task]
                found = super().loglikelihood([requests[i] for i in own], disable_tqdm=True)
                for i, answer in zip(own, found, strict=True):
                    answers[i] = answer
            model.end_asking()
            return answers

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            model.end_asking()
            self.in_front = None  # HFLM puts the prefix token there itself
            try:
                with self._by_hflm("rolling log-likelihoods", len(requests)):
                    return super().loglikelihood_rolling(requests, disable_tqdm=True)
            finally:
                self.in_front = bos

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            model.end_asking()
            with self._by_hflm("generation", len(requests)):
                return super().generate_until(requests, disable_tqdm=True)

        def _loglikelihood_tokens(
            self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
        ) -> Any:
            if override_bs is not None:  # a batch of rolling windows
                return super()._loglikelihood_tokens(requests, True, override_bs)
            asked = _requests(requests, self.max_length, title)
            largest = max(max(request.tokens) for request in asked)
            check_ids(largest, model.vocab_size, model.tokenizer, f"Task '{title}'")
            if model.wanted is not None:
                model.note(asked)
                return [(0.0, False)] * len(asked)
            self.facts.count(requests, asked, self.max_length)
            why_not = model.refusal(max(len(r.inputs) for r in asked))
            if why_not is not None:
                self.facts.n_tokens += n_unshared_tokens(asked)
                with self._by_hflm(why_not, len(asked)):
                    return super()._loglikelihood_tokens(requests, disable_tqdm=True)
            packs = pack(asked, settings.batch_tokens)
            self.facts.scorers["packed"] = None
            self.facts.n_tokens += sum(p.n_nodes for p in packs)
            with progress.stage(title, len(asked)) as advance:
                sums, greedy = model.score(asked, packs, advance)
            return list(zip(sums.tolist(), greedy.tolist(), strict=True))

        @contextmanager
        def _by_hflm(self, reason: str, n_requests: int) -> Iterator[None]:
            self.facts.scorers[f"hflm ({reason})"] = None
            with progress.stage(title, n_requests) as advance:
                yield
                advance(n_requests)

    scorer = Scorer(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        batch_size=settings.batch_size,
        softmax_dtype="float32",
    )
    scorer._device = device_of(model.model)  # HFLM believes the first weight, which may not be there
    scorer.in_front = bos
    scorer.facts = ScorerFacts()
    return scorer


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
