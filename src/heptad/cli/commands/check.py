"""Commands that check: this machine, a run's folder, whether a killed run resumes."""

# Each command imports what it needs when it runs: PyTorch takes seconds, and help must not wait.

from __future__ import annotations

import sys
from typing import Any

from heptad.cli.commands.app import CHECK, Json, app, print_json
from heptad.cli.flags import at_least_1, flags_of, given
from heptad.files import as_word
from heptad.recipe import Recipe
from heptad.recipes import load_recipe
from heptad.text import one_line


@app.command(group=CHECK, sort_key=1)
def doctor(*, json: Json = False) -> None:
    """Say what is on this machine, which data and weights are missing, and what to do about it."""
    from heptad.doctor import examine

    findings = examine()
    if json:
        print_json([finding.as_document() for finding in findings])
        return
    for finding in findings:
        mark = "ok" if finding.is_well else "--"
        print(one_line(f"[{mark}] {finding.subject}: {finding.state}"))
        if finding.advice:
            print(one_line(f"     {finding.advice}"))
    sys.stdout.flush()


@app.command(group=CHECK, sort_key=2)
@flags_of(Recipe)
def verify(
    run: str | None = None,
    /,
    *,
    resume_proof: str | None = None,
    kills: str = "5",
    json: Json = False,
    **flags: Any,
) -> int:
    """Hash everything in a run folder and say what is whole; or prove that a killed run resumes.

    Parameters
    ----------
    run
        The run's folder, or that of a group of runs.
    resume_proof
        A recipe. A short run of it, two epochs of 512 images unless flags say otherwise, is killed
        at random moments, resumed each time, and compared to the bit with one that never was.
    kills
        How often to kill it at most.
    """
    from heptad.errors import DamagedError, RecipeError, counted

    changes = given(flags, Recipe)
    if (run is None) == (resume_proof is None):
        raise RecipeError("verify takes a run's folder, or --resume-proof RECIPE, one of the two.")
    if resume_proof is not None:
        num_kills = at_least_1("kills", kills)
        recipe = load_recipe(resume_proof, **{"limit": 512, "epochs": 2, **changes})
        return _prove(recipe, num_kills=num_kills, as_json=json)
    if changes:
        raise RecipeError(f"{', '.join(changes)} has no effect on a run that is verified.")
    from heptad.verifying import examine_run

    assert run is not None
    found = examine_run(run)
    if json:
        print_json(found.as_document())
    else:
        for finding in found.findings:
            mark = "ok" if finding.is_whole else "--"
            print(one_line(f"[{mark}] {finding.name}: {finding.said}"))
        goes_on = f", and not finished; `heptad resume {as_word(run)}` goes on"
        if found.remedy:
            goes_on = f"; {found.remedy}"
        state = ", and finished" if found.is_finished else goes_on
        whole = "whole" if found.is_whole else "damaged"
        what = "run" if found.num_runs is None else f"group of {counted(found.num_runs, 'run')}"
        print(one_line(f"The {what} in {run} is {whole}{state}."))
    return 0 if found.is_whole else DamagedError.exit_code


def _prove(recipe: Recipe, *, num_kills: int, as_json: bool) -> int:
    from heptad.errors import DamagedError
    from heptad.resume_proof import Kill, prove_resume

    for event in prove_resume(recipe, num_kills=num_kills):
        if isinstance(event, Kill):
            if not as_json:
                print(f"kill {event.number}, soon after {event.checkpoint}", flush=True)
            continue
        proof = event
    if as_json:
        print_json(proof.as_document())
    else:
        steps = ", ".join(map(str, proof.resumed_from)) or "none"
        equal = "equal to the bit" if not proof.differing else "NOT equal"
        print(f"{proof.num_kills} kills, resumed from steps {steps}: {equal}.")
        for name in proof.differing:
            print(one_line(f"  {name} differs"))
        if not proof.num_kills:
            print("The run was too short to be killed: try more --epochs or a larger --limit.")
    return 0 if proof.holds else DamagedError.exit_code
