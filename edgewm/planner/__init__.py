"""The planner in ops: which settings there are, what is kept between plans, and the plan as one graph.

One file a kind: `cem`, `icem`, `mppi`; each gives its carries before the first iteration (`start`), after one more
(`iterate`), and the plan in them (`actions`). Noise, candidates, refit and warm start are shared (`sampling`), and so
is what a plan starts from (`context`). The loop is one `repeat`, so it is compiled like everything else and may be left
between iterations.
"""

from __future__ import annotations

from .graph import METHODS, noise_port, plan_graph, plan_weights, state_ports
from .sampling import next_warm_mean
from .settings import KINDS, MAX_HORIZON, OBJECTIVES, check, committed_actions, has_mean_first, kept_elites, settled

__all__ = [
    "KINDS", "MAX_HORIZON", "METHODS", "OBJECTIVES", "check", "committed_actions", "has_mean_first",
    "kept_elites", "next_warm_mean",
    "noise_port", "plan_graph", "plan_weights", "settled", "state_ports",
]  # fmt: skip
