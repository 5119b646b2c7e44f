"""Presearch: choosing FAQ's window, gamma and preview options on text that is kept for choosing.

FAQ replaces a search at quantization time by a configuration found once. Here is how it is found:

    candidates   every combination of `presearch.grids`, and AWQ, which all are measured against
    trial        one candidate on one calibration draw: quantize with the draw's statistics, then take
                 perplexity and output error on selection text, which is neither calibrated nor reported
    halving      after each round, which adds draws, the best share of the candidates goes on
    choice       the best by perplexity, paired with AWQ over draws and windows; among those that its
                 standard error cannot tell from it, the one with the smallest held-out output error
    writing      the table of all trials, and a dated preset with its evidence

Statistics are taken once per draw and serve all candidates. The held-out output error needs no forward
pass: with G the Gram matrix of the selection text at a linear's input, it is tr(E G E') / tr(W G W') of
the weights' error E. A trial is a cached stage, so a search that is stopped resumes where it was.

Reference: successive halving, Jamieson and Talwalkar 2016 (arXiv 1502.07943); the one-standard-error rule,
Breiman et al. 1984.
"""

from faqbench.presearch.search import SearchResult, preset_name, search, write_search

__all__ = ["SearchResult", "preset_name", "search", "write_search"]
