"""`capfilt evaluate gain`: table 1 of the paper, for the user's own data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from capfilt.cli import options
from capfilt.cli.choices import chosen
from capfilt.cli.output import print_json, print_line
from capfilt.reports.progress import shown_progress

if TYPE_CHECKING:
    from capfilt.stages.gain.arms import Arm


def gain(
    run: options.RunArgument,
    clean: Annotated[
        str,
        typer.Option(
            "--clean",
            metavar="CLEAN",
            help="Clean pairs that stand beside every arm's and that it is fine-tuned on.",
            show_default=False,
        ),
    ],
    test: Annotated[
        str,
        typer.Option(
            "--test",
            metavar="TEST",
            help="Clean pairs that neither RUN nor an arm is trained on.",
            show_default=False,
        ),
    ],
    arms: Annotated[
        str,
        typer.Option("--arms", metavar="A,B", help="Arms to run: none, F, C, C+F, repeated."),
    ] = "none,F,C,C+F,repeated",
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, help="Seeds of each arm, from --seed on.")
    ] = 3,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="N", min=1, help="Steps of each pre-training; by default RUN's."),
    ] = None,
    looks: Annotated[
        int,
        typer.Option("--looks", metavar="N", min=1, help="How often a pre-training is evaluated on its way."),
    ] = 4,
    no_fine_tune: Annotated[
        bool, typer.Option("--no-fine-tune", help="Evaluate the pre-trained models alone.")
    ] = False,
    without_clean: Annotated[
        bool, typer.Option("--without-clean", help="Pre-train on the arm's texts alone.")
    ] = False,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", min=1, help="Candidates of ITC that ITM orders.")
    ] = 16,
    config: options.ConfigOption = None,
    assignments: options.SetOption = None,
    seed: options.SeedOption = None,
    workers: options.WorkersOption = None,
    device: options.DeviceOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Measure what bootstrapping was worth: equal models, equal steps, the texts alone differ.

    They are pre-trained on RUN's raw web texts (none), on those the filter keeps (F), on web and synthetic
    texts (C), on what the filter keeps of both (C+F), and on raw texts repeated to as many (BLIP, table 1).
    The same command again goes on where it stopped.

    Example: capfilt evaluate gain runs/first --clean clean --test test --seeds 3
    """
    from capfilt.engines.local import LocalEngine
    from capfilt.provenance.rundir import RunDir
    from capfilt.reports.drawing import write_chart
    from capfilt.reports.gain import ALONG, gain_curves, show_gain
    from capfilt.reports.text import terminal
    from capfilt.stages.gain.measure import GainRequest, measure_gain, record_of, settings_of, with_steps

    where = RunDir.open(run)
    settings = chosen(
        settings_of(where),
        config=config,
        flags={"seed": seed, "compute.workers": workers, "compute.device": device},
        assignments=assignments,
    )
    request = GainRequest(
        run=run,
        clean=clean,
        test=test,
        settings=settings if steps is None else with_steps(settings, steps),
        arms=_arms(arms),
        seeds=tuple(range(settings.seed, settings.seed + seeds)),
        looks=looks,
        fine_tune=not no_fine_tune,
        with_clean=not without_clean,
        top_k=top_k,
    )
    with shown_progress(quiet=quiet) as progress:
        found = measure_gain(request, LocalEngine(), progress)
    picture = where.gain / "gain.png"
    write_chart(picture, gain_curves(found, ALONG))
    if json:
        print_json(record_of(found, request))
        return
    show_gain(found, terminal())
    print_line(f"figures: {where.gain / 'gain.json'}; along the training: {picture}")


def _arms(typed: str) -> tuple[Arm, ...]:
    from capfilt.errors import CapfiltError
    from capfilt.stages.gain.arms import ARMS

    asked = [name.strip() for name in typed.split(",") if name.strip()]
    if not asked or (unknown := [name for name in asked if name not in ARMS]):
        what = f"--arms {typed}: there is no arm {unknown[0]}" if asked else "--arms names no arm"
        raise CapfiltError(what, fix=f"choose among {','.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in asked)
