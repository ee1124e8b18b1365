"""The judge: would the robot do the same with the compressed model as with the full one?

sides.py        the two models behind one set of functions, and the planner both are judged with
sources.py      where contexts, recorded futures and simulators come from
gates.py        what must hold, as data, and three-valued decisions
plan.py         suite `plan`: the same costs, ranks, elites and plan on the same noise
horizon.py      suite `horizon`: error growth against real futures, prefix self-consistency
closed_loop.py  suite `closed-loop`: paired episodes, stopped as soon as the evidence suffices
picture.py      imagined futures beside real ones
"""
