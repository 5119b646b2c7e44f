"""Running packs: one forward each, logits only at the nodes whose next token is scored.

Every node sees its ancestors, at its own depth, whatever lies beside it in the row; so a score is that of
the request alone, up to rounding. The mask is a [n_rows, 1, length, length] that transformers takes as it
is; layers with a sliding window get one that also forgets ancestors too far back.

Not every model can be run so. `refused_by_config` and, for what no config tells, `refused_by_probe` say why
one cannot; the probe compares a small pack with the same requests in rows of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from faqbench.evaluation.head import answer, hidden_states, log_probabilities, module_of, splits, top_token
from faqbench.evaluation.packing import Array, Pack, Request, pack
from faqbench.models import OPERANDS_ATTENTION, Inputs, Model, device_of
from faqbench.stages.cache import Advance

_ATTENTION = ("sdpa", "eager", OPERANDS_ATTENTION)
_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Rotary embeddings whose frequencies depend on the longest sequence of the forward.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# Of what leaving out mask and positions changes; rounding in bfloat16 is far below, a wrong mask is not.
_PROBE_RATIO = 0.2
DOES_MORE = "the model does more than its head after its decoder"
_N_PROBED = 4  # tokens of each request


def score_packs(view: Any, packs: Sequence[Pack], n_requests: int, advance: Advance) -> tuple[Array, Array]:
    """Return each request's log-likelihood, float64 nats, and whether greedy decoding would give it.

    Args:
        view: a `Model` or a causal language model of transformers that neither refusal has a word against.
        packs: all packs of `n_requests` requests.
        n_requests: how many requests they answer.
        advance: told of finished requests.
    """
    asked = Packs(view, module_of(view), packs, n_requests, advance)
    answer([asked])
    return asked.loglikelihood, asked.is_greedy


class Packs:
    """The question that `score_packs` asks.

    Attributes:
        views: the one model.
        inputs: see `Question`.
        loglikelihood: of each request, once all inputs are taken.
        is_greedy: likewise.
    """

    def __init__(
        self,
        view: Any,
        model: Any,
        packs: Sequence[Pack],
        n_requests: int,
        advance: Advance = lambda _=1: None,
    ) -> None:
        """Prepare the inputs; `model` has the head, and the other arguments are those of `score_packs`."""
        self.views: Sequence[Any] = [view]
        self.inputs: Sequence[Inputs] = [partial(_inputs, module_of(view), one) for one in packs]
        self.loglikelihood = np.zeros(n_requests)
        self.is_greedy = np.ones(n_requests, dtype=bool)
        self._model, self._packs, self._advance = model, packs, advance

    def take(self, number: int, hidden: Sequence[torch.Tensor]) -> None:
        """Score the requests of a pack."""
        one, rows_of = self._packs[number], hidden[0].flatten(0, 1)
        requests = np.concatenate([np.full(len(s.nodes), s.request) for s in one.scored])
        targets = np.concatenate([s.targets for s in one.scored])
        nodes, rows = np.unique(np.concatenate([s.nodes for s in one.scored]), return_inverse=True)
        order = np.argsort(rows, kind="stable")
        requests, targets, rows = requests[order], targets[order], rows[order]
        scored = rows_of[torch.from_numpy(nodes).to(rows_of.device)]
        found, hit = [], []
        for part, log_p in log_probabilities(self._model, scored):
            first, last = np.searchsorted(rows, [part.start, part.stop])
            row = torch.from_numpy(rows[first:last] - part.start).to(log_p.device)
            target = torch.from_numpy(targets[first:last]).to(log_p.device)
            found.append(log_p[row, target])
            hit.append(top_token(log_p)[row] == target)
        np.add.at(self.loglikelihood, requests, torch.cat(found).double().cpu().numpy())
        np.logical_and.at(self.is_greedy, requests, torch.cat(hit).cpu().numpy())
        self._advance(len(one.scored))


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


def refused_by_config(model: Any, longest: int) -> str | None:
    """Say by its config why a model's requests cannot be packed, in words, or return None.

    Args:
        model: a causal language model of transformers.
        longest: tokens of the longest input.
    """
    config = model.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    if attention not in _ATTENTION:
        return f"attention '{attention}' takes no mask of our own"
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        return f"layers of type {', '.join(sorted(others))} have masks of their own"
    for kind, constant_to in _context_of_ropes(config).items():
        if longest > constant_to:
            return f"'{kind}' position embeddings depend on the longest request of a forward"
    return None


def refused_by_probe(view: Any) -> str | None:
    """Say by running it why a model's requests cannot be packed, in words, or return None.

    Args:
        view: a `Model` or a causal language model of transformers.
    """
    if not splits(view):
        return DOES_MORE
    probe = Probe(view)
    answer([probe])
    return probe.refusal()


class Probe:
    """The question whether three requests in one row score as they do in rows of their own.

    Attributes:
        views: the one model.
        inputs: the requests in rows of their own, in a pack, and in that without its mask and positions.
    """

    def __init__(self, view: Any) -> None:
        """Draw the requests."""
        self._model = module_of(view)
        vocabulary = self._model.config.get_text_config().vocab_size
        draw = np.random.Generator(np.random.PCG64(0)).integers(0, vocabulary, size=38).tolist()
        paths = [draw[:16], draw[:10] + draw[16:22], draw[22:38]]
        requests = [Request(tokens=tuple(path), n_scored=_N_PROBED) for path in paths]
        (together,) = pack(requests, 128)
        device = device_of(self._model)
        alone = torch.tensor([request.inputs for request in requests], device=device)
        tokens = torch.from_numpy(together.tokens).to(device)
        nodes = [s.nodes for s in sorted(together.scored, key=lambda s: s.request)]
        self._nodes = torch.from_numpy(np.stack(nodes)).to(device)
        self._found: list[torch.Tensor] = []
        self.views: Sequence[Any] = [view]
        self.inputs: Sequence[Inputs] = [
            lambda: {"tokens": alone},
            partial(_inputs, self._model, together),
            lambda: {"tokens": tokens},
        ]

    def take(self, number: int, hidden: Sequence[torch.Tensor]) -> None:
        """Keep the rows that are scored."""
        (states,) = hidden
        rows = states.flatten(0, 1)[self._nodes] if number else states[:, -_N_PROBED:]
        self._found.append(rows.float())

    @torch.no_grad()
    def refusal(self) -> str | None:
        """Say why requests cannot be packed, or return None, once all inputs are taken."""
        alone, packed, unmasked = self._found
        error = (packed - alone).norm()
        if error <= _PROBE_RATIO * (unmasked - alone).norm():
            return None
        # A model whose weights are ruined (RTN at 2 bits) turns any rounding into something large.
        with _embeddings_off_by_rounding(self._model):
            nudged = hidden_states(self._model, **self.inputs[0]())[:, -_N_PROBED:].float()
        if bool(error <= (nudged - alone).norm()):
            return None
        return "a small pack does not score as its requests do one by one"


def _inputs(model: Any, one: Pack) -> dict[str, Any]:
    """Return the arguments of `hidden_states` for a pack."""
    device = device_of(model)
    tokens = torch.from_numpy(one.tokens).to(device)
    if one.is_chain:
        return {"tokens": tokens}
    positions = torch.from_numpy(one.positions).to(device)
    masks = _masks(model, positions, torch.from_numpy(one.ends).to(device))
    return {"tokens": tokens, "position_ids": positions, "attention_mask": masks}


def _masks(model: Any, positions: torch.Tensor, ends: torch.Tensor) -> Any:
    """Return the mask of a pack; one for each type of layer, where the model has several."""
    config = model.config.get_text_config()
    node = torch.arange(positions.shape[1], device=positions.device)
    visible = (node[None, :] <= node[:, None])[None] & (node[None, :, None] < ends[:, None, :])
    window = getattr(config, "sliding_window", None)
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types:
        layer_types = {"full_attention" if window is None else "sliding_attention"}
    masks = {"full_attention": visible}
    if "sliding_attention" in layer_types:
        assert window is not None
        near = positions[:, None, :] > positions[:, :, None] - window
        masks["sliding_attention"] = visible & near
    prepared = {kind: _prepare(masks[kind], model, config) for kind in layer_types}
    return next(iter(prepared.values())) if len(prepared) == 1 else prepared


def _prepare(visible: torch.Tensor, model: Any, config: Any) -> torch.Tensor:
    mask = visible[:, None]
    if config._attn_implementation != "eager" and mask.device.type != "cpu":
        return mask
    # Eager attention adds its mask to the scores, and sdpa on a CPU would turn it into that in each layer.
    dtype = next(model.parameters()).dtype
    hidden = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, hidden.new_zeros(()), hidden)


def _context_of_ropes(config: Any) -> dict[str, int]:
    """Return each length-dependent kind of position embedding, and up to where it is constant."""
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
    whole = getattr(config, "max_position_embeddings", None)
    whole = getattr(config, "original_max_position_embeddings", None) or whole
    return {
        str(p["rope_type"]): p.get("original_max_position_embeddings") or whole or 0
        for p in nested
        if p.get("rope_type") in _LENGTH_DEPENDENT_ROPE
    }


@contextmanager
def _embeddings_off_by_rounding(model: Any) -> Iterator[None]:
    """Scale the input embeddings by what rounding in their dtype may do."""

    def nudge(_module: Any, _arguments: Any, embedded: torch.Tensor) -> torch.Tensor:
        return embedded * (1 + torch.finfo(embedded.dtype).eps / 2)

    hook = model.get_input_embeddings().register_forward_hook(nudge)
    try:
        yield
    finally:
        hook.remove()
