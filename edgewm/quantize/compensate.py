"""Weights to few levels, each rounding made up for by the weights of the same result that are not rounded yet.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023, https://arxiv.org/abs/2210.17323), with inputs taken by falling second moment and steps of
groups fixed beforehand. All in float64: rounding is decided by the weights alone, not by the width of a machine.
"""

from __future__ import annotations

import numpy as np

DAMPING = 0.01  # of the mean second moment, added to all of them: the source's own
BLOCK = 128  # inputs whose roundings reach the rest of the matrix in one product


def rounded(w: np.ndarray, step: np.ndarray, low: int, high: int) -> np.ndarray:
    """The nearest level to each weight: `w` (..., K, N) and `step` of a shape that broadcasts to it, to int8."""
    return np.clip(np.rint(w / step), low, high).astype(np.int8)


def compensated(w: np.ndarray, step: np.ndarray, low: int, high: int, moments: np.ndarray) -> np.ndarray:
    """Levels (K, N) int8 that keep x @ w: `w` (K, N), `step` that broadcasts to it, `moments` (K, K) = sum of x^T x."""
    depth = len(w)
    damped = moments + np.eye(depth) * (DAMPING * np.diag(moments).mean() or 1.0)
    order = np.argsort(-np.diag(damped), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left = w[order].astype(np.float64)
    steps = np.broadcast_to(step, w.shape)[order].astype(np.float64)
    levels = np.empty(w.shape, np.int8)
    for begin in range(0, depth, BLOCK):
        end = min(begin + BLOCK, depth)
        errors = np.empty((end - begin, w.shape[1]))
        for k in range(begin, end):
            levels[k] = np.clip(np.rint(left[k] / steps[k]), low, high)
            errors[k - begin] = (left[k] - levels[k] * steps[k]) / upper[k, k]
            left[k:end] -= upper[k, k:end, None] * errors[k - begin]
        left[end:] -= upper[begin:end, end:].T @ errors
    return levels[np.argsort(order)]
