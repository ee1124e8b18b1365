"""The judge: would the robot do the same with the compressed model as with the full one?

gates.py        what must hold, as data; presets; three-valued decisions
sides.py        the two models behind one set of functions, and the planner both are judged with
imagine.py      futures of many latents at once, by either model
lift.py         a student of fewer latents, seen in the full model's space

plan.py         suite `plan`: the same costs, ranks, elites and plan on the same noise
own.py            and the bundle's own plans are those that were judged
exact.py          and one that holds everything in float32 differs by rounding alone
layers.py         which product costs what fidelity
physics.py      suite `physics`: state probes, surprise at what cannot be
causality.py    suite `causality`: counterfactuals, recoverable actions, no future action in an earlier latent
horizon.py      suite `horizon`: error growth against real futures, self-consistency, blackout
general.py      suite `general`: scenes outside the training range
closed_loop.py  suite `closed-loop`: paired episodes, stopped as soon as the evidence suffices
loops.py          episodes of both models, shifted scenes, success by latency
latency.py        plans that are there as much later as they took
noise.py          the noise that a bundle's plans draw

sources.py      where evidence comes from: contexts, futures, clips, simulators
recorded.py       out of a file
episodes.py       cut out of recorded episodes (edgewm/data)
derived.py        made of recorded trajectories where nobody brought it
picture.py      imagined futures beside real ones
"""
