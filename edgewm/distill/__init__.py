"""Distillation to a rate: find what a target runs fast enough, and train it to plan as its teacher does.

shapes.py      what a student may look like
choice.py      which one, in which precision, with which planner: by how long a plan of each takes on the target
teacher.py     what a teacher answers: latents, imagined futures, the searches of its planner; and whether it is fit
targets.py     these answers on disk: made once, memory-mapped, bounded, hashed
space.py       the student's latents: the teacher's, or the directions of them that hold nearly all of the variance
prune.py       a start from the teacher: its layers and channels, chosen by what planning loses without them
condition.py   what an action says to a student's layers, in few numbers
losses.py      what is matched, each term by name
fake_quant.py  products rounded in training by the bundle's own recipe and formulas     formulas.py   these in torch
fidelity.py    does it plan as the teacher does? On held-out contexts, without a bundle
states.py      where a run stands, on disk: whole, hashed, the newest two
material.py    what a run is a function of: its settings, the teacher's answers, where the student's planner begins
train.py       the run: rounds of candidates that the student's own planner drew, steps, looks
study.py       trials that processes and machines share     trials.py   which of those that hold a rate plans best
devices.py     where that is computed          processes.py   one process, or several that torchrun started
write_student.py  the checkpoint that `build` takes
verb.py        `edgewm distill`                pareto.py   every candidate as time, fidelity and success
budgets.py     smaller planners, blind and from a proposal, and what their plans lose
proposal.py    a plan at a glance, for a search to begin at     proposal_only.py   a checkpoint with one
"""

from .proposal_only import distill_proposal
from .verb import distill

__all__ = ["distill", "distill_proposal"]
