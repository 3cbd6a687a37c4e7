"""From what was typed to settings: a pipeline's choices, then the TOML file, then flags, then --set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from capfilt.errors import CapfiltError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from capfilt.settings import Bootstrap

B = TypeVar("B", bound="Bootstrap")

_ROLES = {"captioner": ("write captions", {"lm"}), "filter": ("score pairs", {"itc", "itm"})}
"""What a model that is given must do, and the objectives of which one teaches it."""


def chosen(
    base: B,
    *,
    config: Path | None = None,
    flags: Mapping[str, Any],
    assignments: Sequence[str] | None = None,
    many_processes: bool = False,
) -> B:
    """Return the settings with what was typed put over them.

    `flags` are values by dotted name; None is a flag that was not given. A command that several processes
    do together says so by `many_processes`; any other is refused under torchrun.
    """
    from capfilt.layers import changed, read_toml

    layers = [read_toml(config)] if config is not None else []
    settings = changed(base, *layers, nested(flags), assignments=assignments or ())
    _check_candidates(settings)
    _check_bundles(settings)
    if not many_processes:
        _check_alone(settings)
    return settings


def nested(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return flags that were given as nested mappings: {"a.b": 1} is {"a": {"b": 1}}."""
    layer: dict[str, Any] = {}
    for name, value in flags.items():
        if value is None:
            continue
        *groups, last = name.split(".")
        here = layer
        for group in groups:
            here = here.setdefault(group, {})
        here[last] = value
    return layer


def prompt_flags(prompts: Sequence[str] | None) -> dict[str, Any]:
    """Return the flags of `--prompt`, given once or several times, over whatever a pipeline chose."""
    if not prompts:
        return {}
    return {"decoding.prompt": prompts[0], "decoding.prompts": tuple(prompts)}


def _check_candidates(settings: Bootstrap) -> None:
    method, prompts = settings.decoding.method, max(1, len(settings.decoding.prompts))
    if not settings.recaption:
        return
    if settings.candidates < prompts:
        raise CapfiltError(
            f"candidates is {settings.candidates}, and with {prompts} prompts the last would never be used",
            fix=f"give --candidates {prompts}, or a multiple of it",
        )
    if settings.candidates > prompts and method != "nucleus":
        raise CapfiltError(
            f"candidates is {settings.candidates}, and decoding.method {method} has one answer for a picture "
            "and prompt",
            fix=f"give --candidates {prompts}, or draw by --set decoding.method=nucleus",
        )


def _check_scores(settings: Bootstrap) -> None:
    """Refuse a policy that reads what the filter that is to be trained does not learn.

    One that is given is looked at where it is found.
    """
    if not settings.score or settings.bundles.filter is not None:
        return
    learnt = [
        name
        for name in ("itc", "itm")
        if any(getattr(phase, name) > 0 for phase in settings.filter_training.phases)
    ]
    for score in settings.judge.own_scores:
        if score not in learnt:
            told = " and ".join(name.upper() for name in learnt)
            raise CapfiltError(
                f"the policy reads {score.upper()}, and the filter that is trained learns {told} alone",
                fix=f"judge by {told}, or give a --filter that has {score.upper()}",
            )


def _check_alone(settings: Bootstrap) -> None:
    from capfilt.training.launch import launched

    if settings.compute.processes == 1 and launched() == 1:
        return
    raise CapfiltError(
        "this command is one process, which starts its own workers, and several were "
        + ("launched" if launched() > 1 else "asked for by compute.processes"),
        fix="start it without torchrun and with compute.processes=1; several processes train one model by "
        "`capfilt pretrain`",
    )


def _check_bundles(settings: Bootstrap) -> None:
    """Refuse a bundle that cannot do what it is given for; its card says it. What is none is read later."""
    from pathlib import Path

    from capfilt.models.cards import CARD_FILE, read_card

    _check_scores(settings)
    for role, (verb, objectives) in _ROLES.items():
        source = getattr(settings.bundles, role)
        if source is None and getattr(settings.bundles, f"{role}_options"):
            raise CapfiltError(
                f"bundles.{role}_options are for a {role} that is given, and none is",
                fix=f"leave it out, or give --{role}",
            )
        path = Path(source or "")
        if source is None or not (path / CARD_FILE).exists():
            continue
        card = read_card(path)
        answers = role == "filter" and card.family == "instructblip"
        if not answers and not objectives.intersection(card.objectives):
            raise CapfiltError(
                f"{path} cannot {verb}: it is a {card.kind} trained for {', '.join(card.objectives)}",
                fix=f"give --{role} a bundle that was trained for {' or '.join(sorted(objectives))}",
            )
