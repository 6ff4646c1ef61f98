"""The verdict in words: what the comparison of the test items found, group by group, and which ratio was chosen.

Nothing is judged here: gained, lost and kept are read from the run's eval/compare.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal

from frbio_lite.report import format as fmt
from frbio_lite.report.language import N_, _, integer, ngettext, percent_sign, significant
from frbio_lite.report.load import Candidate, Choice, Difference, GroupDifference, Rule, Run

MARKS: dict[Literal["gained", "lost", "no difference shown"], str] = {
    "gained": "▲",
    "lost": "▼",
    "no difference shown": "=",
}
VERDICTS = (  # for the translators: the words of compare.json
    N_("gained"),
    N_("lost"),
    N_("no difference shown"),
    N_("non-inferior"),
    N_("degraded"),
    N_("inconclusive"),
)
# as a title, and behind "on" in a sentence
GROUPS = {
    "domain": (N_("Medical tasks"), N_("medical tasks")),
    "general": (N_("General tasks"), N_("general tasks")),
    "control": (N_("Controls"), N_("controls")),
}
HOW_TO_COMPARE = N_(
    "run the recipe again, or `frbio compare RUN/eval/base RUN/eval/adapted RUN/eval/merged --out RUN/eval`"
)


def group_name(group: str) -> str:
    return _(GROUPS.get(group, (group, group))[0])


def in_text(group: str) -> str:
    """A group's name behind "on" in a sentence."""
    return _(GROUPS.get(group, (group, group))[1])


def mean_of(tasks: int) -> str:
    return ngettext("mean of {n} task", "mean of {n} tasks", tasks).format(n=integer(tasks))


def joined(clauses: Sequence[str]) -> str:
    return _(" and ").join(clauses)


def sentences(run: Run) -> list[str]:
    """The verdict: what the merged model (or else the adapted one) gained and lost; which ratio was chosen and why."""
    return [_outcome_sentence(run), _choice_sentence(run.choice)]


def _outcome_sentence(run: Run) -> str:
    if "base" not in run.results:
        return _("The base is not evaluated yet, so there is nothing to compare with.")
    model = next((m for m in ("merged", "adapted") if m in run.results), None)
    if model is None:
        return _("Only the base is evaluated yet, so there is no gain or loss to tell.")
    subject = _("the merged model") if model == "merged" else _("the adapted model")
    told = describe(run, model)
    if not told:
        return _("{Model} was not compared with its base question by question: {how}.").format(
            Model=fmt.capitalized(subject), how=_(HOW_TO_COMPARE)
        )
    return _("On test items, compared with its base, {model} {outcomes}.").format(model=subject, outcomes=told)


def describe(run: Run, model: str) -> str:
    """`gained on … and is non-inferior on …` for a model that was compared with its base; empty for another."""
    groups = run.groups_of(model)
    parts = [_phrase(g, run.margin) for g in groups if g.role != "control"]
    moved = [g for g in groups if g.role == "control" and g.verdict != "no difference shown"]
    parts += [_("{outcome}, a control").format(outcome=_phrase(g, run.margin)) for g in moved]
    return joined(parts) or (_("was scored on controls only, which do not differ") if groups else "")


def _phrase(group: GroupDifference, margin: float) -> str:
    phrases = {
        "gained": _("gained on {group}"),
        "lost": _("lost on {group}"),
        "no difference shown": _("shows no difference on {group}"),
        "non-inferior": _("is non-inferior on {group}, within the margin of {margin}"),
        "degraded": (
            _("is degraded on {group}, by more than the margin of {margin}")
            if group.high is not None and group.high < -margin
            else _("is degraded on {group}, possibly by more than the margin of {margin}")
        ),
        "inconclusive": _("is inconclusive on {group}: a loss of more than {margin} is not excluded"),
    }
    return phrases[group.verdict].format(group=_figures(group), margin=amount(margin, group))


def amount(value: float, row: Difference) -> str:
    """A margin in the unit of the row."""
    if row.in_bits:
        return _("{n}% of bits").format(n=significant(value))
    return ngettext("{n} point", "{n} points", Decimal(f"{value:.4g}")).format(n=significant(value))


def points(value: float) -> str:
    """`+41.2 points`, `−1.0 points`."""
    return ngettext("{n} point", "{n} points", Decimal(f"{abs(value):.1f}")).format(n=fmt.signed(value))


def difference(row: Difference) -> str:
    """`+41.2 points`; for bits per byte, of which less is better, `+2.1% of bits` that are saved."""
    if row.difference is None:
        return fmt.ABSENT
    return _("{n}% of bits").format(n=fmt.signed(row.difference)) if row.in_bits else points(row.difference)


def span(row: Difference) -> str:
    """`+36.0 to +46.4`, or an empty text where there were too few items for an interval."""
    if row.low is None or row.high is None:
        return ""
    return _("{low} to {high}").format(low=fmt.signed(row.low), high=fmt.signed(row.high))


def _figures(group: GroupDifference) -> str:
    bounds = span(group)
    told = [
        _("{n}% of bits saved").format(n=fmt.signed(group.difference)) if group.in_bits else difference(group),
        _("95% interval {span}").format(span=bounds) if bounds else _("no interval"),
    ]
    if group.tasks > 1:
        told.append(mean_of(group.tasks))
    return f"{in_text(group.group)} ({_(', ').join(told)})"


def outcomes(run: Run, model: str) -> list[int]:
    """How many of the tasks that count gained, lost and showed no difference; empty where nothing was compared."""
    found = Counter(row.verdict for row in run.tasks_of(model) if row.counts)
    return [found[verdict] for verdict in MARKS] if found else []


def group_gain(groups: Sequence[GroupDifference], name: str) -> str:
    """A group's difference with its sign, a percent sign for bits."""
    row = next((g for g in groups if g.group == name), None)
    if row is None or row.difference is None:
        return fmt.ABSENT
    return percent_sign(fmt.signed(row.difference)) if row.in_bits else fmt.signed(row.difference)


def _choice_sentence(choice: Choice | None) -> str:
    if choice is None:
        return _("No merge ratio is chosen yet.")
    told = {
        0.0: _("The base itself (ratio {ratio}) was chosen on validation items"),
        1.0: _("The adapted model itself (ratio {ratio}, {method}) was chosen on validation items"),
    }.get(
        choice.ratio,
        _("Ratio {ratio} ({share} adapted model, {rest} base; {method}) was chosen on validation items"),
    )
    chosen = told.format(
        ratio=fmt.ratio(choice.ratio),
        share=fmt.share(choice.ratio),
        rest=fmt.share(1.0 - choice.ratio),
        method=choice.method,
    )
    why = _why(choice)
    return _("{chosen}: {why}.").format(chosen=chosen, why=why) if why else f"{chosen}."


def _why(choice: Choice) -> str:
    """The reason in words, from what the candidates gained; empty where they or the rule are not known."""
    rule, tried = choice.rule, [c for c in choice.candidates if c.ratio > 0.0]
    chosen = next((c for c in choice.candidates if (c.method, c.ratio) == (choice.method, choice.ratio)), None)
    if chosen is None or not rule.maximise:
        return ""
    allowed = sum(c.eligible for c in tried)
    if choice.ratio > 0.0:
        return _gains_most(chosen, rule, allowed)
    if not tried:
        return _("nothing else was scored")
    if not allowed and rule.retain:
        return _("no merge has {kept}").format(kept=retained(rule))
    return _("no merge that the rule allows gains anything on {group}").format(group=in_text(rule.maximise))


def _gains_most(chosen: Candidate, rule: Rule, allowed: int) -> str:
    gain = chosen.gains.get(rule.maximise)
    told = [] if gain is None else [points(gain)]
    beside = [(group, chosen.gains.get(group)) for group in rule.retain if group != rule.maximise]
    on = _("{points} on {group}")
    told += [on.format(points=points(gain), group=in_text(group)) for group, gain in beside if gain is not None]
    most = _("it gains most on {group}").format(group=in_text(rule.maximise))
    if told:
        most += f" ({_('; ').join(told)})"
    if not rule.retain:
        return most
    among = ngettext("and is the only merge with {kept}", "among the {n} merges with {kept}", allowed)
    return f"{most} {among.format(n=integer(allowed), kept=retained(rule))}"


def retained(rule: Rule) -> str:
    """`a loss of at most 20 points on general tasks`: what a merge must keep to be chosen; empty for no such rule."""
    return joined([_retained(group, bound) for group, bound in rule.retain.items()])


def _retained(group: str, bound: float) -> str:
    told = _("a gain of at least {points} on {group}") if bound > 0 else _("a loss of at most {points} on {group}")
    size = ngettext("{n} point", "{n} points", Decimal(f"{abs(bound):.4g}")).format(n=significant(abs(bound)))
    return told.format(points=size, group=in_text(group))


def rule_in_words(rule: Rule) -> str:
    if not rule.maximise:
        return ""
    told = _("the largest gain on {group}").format(group=in_text(rule.maximise))
    return _("{gain}, with {kept}").format(gain=told, kept=retained(rule)) if rule.retain else told
