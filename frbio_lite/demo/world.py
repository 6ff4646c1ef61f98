"""Facts → French documents and multiple-choice questions, the same ones for the same seed.

A relation (facts/PART/*.yaml) holds its facts and three sets of wordings: `statements` for running text, `faq` for the question
and answer pairs of the corpus, and `questions`, which only the benchmark uses. A question asks what the texts say in other words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any, Literal

import yaml

Part = Literal["medical", "general"]

LICENSE = "cc0-1.0"
OPTIONS = 5
VALIDATION_SHARE = 0.4
FAQ_SHARE = 0.4  # of the documents
VOWELS = "aeiouyhàâéèêëîïôœûAEIOUYHÀÂÉÈÊËÎÏÔŒÛ"


@dataclass(frozen=True)
class Fact:
    """`relation(subject) = object`; `also` are objects of the relation that would be right as well."""

    id: str
    domain: str
    relation: str
    subject: str
    object: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    name: str
    domain: str
    statements: tuple[str, ...]
    faq: tuple[str, ...]
    questions: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Question:
    """One benchmark item; `answer` is the position of the right one of the five `choices`."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    domain: str
    relation: str
    split: Literal["validation", "test"]


@cache
def relations(part: Part) -> tuple[Relation, ...]:
    """The relations of a part, in the order of their files."""
    folder = resources.files("frbio_lite.demo").joinpath("facts", part)
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return tuple(_relation(part, raw) for file in files for raw in yaml.safe_load(file.read_text(encoding="utf-8")))


def facts(part: Part) -> list[Fact]:
    return [fact for relation in relations(part) for fact in relation.facts]


def fill(wording: str, fact: Fact) -> str:
    """A wording with the fact put in: {s} {S} subject, {d} « de » and {a} « à » contracted with its article, {o} {O} object."""
    s, o = fact.subject, fact.object
    forms = {"s": s, "S": _capital(s), "d": _contract("de", s), "a": _contract("à", s), "o": o, "O": _capital(o)}
    return re.sub(r"\{([sSdaoO])\}", lambda m: forms[m.group(1)], wording)


def documents(part: Part, seed: int, copies: int) -> Iterator[dict[str, str]]:
    """`copies` passes over a part's facts, as short documents in varied forms: text, source, document_type, license, id.

    Each pass states every fact once, in a document with one to four others, most often of the same domain.
    """
    by_name = {relation.name: relation for relation in relations(part)}
    for copy in range(copies):
        rng = Random(f"{part}/{seed}/{copy}")
        for n, group in enumerate(_groups(facts(part), rng)):
            kind, text = _compose(part, group, by_name, rng)
            yield {
                "text": text,
                "source": f"demo-{part}",
                "document_type": kind,
                "license": LICENSE,
                "id": f"demo-{part}-{seed}-{copy:03d}-{n:04d}",
            }


def questions(part: Part, seed: int = 17) -> list[Question]:
    """One question a fact, each fact in one split only; positions of the right answer balanced within each split."""
    rng = Random(f"{part}/questions/{seed}")
    made: list[Question] = []
    for split in ("validation", "test"):
        chosen = [(r, f) for r in relations(part) for f in _split(r, split, seed)]
        positions = [i % OPTIONS for i in range(len(chosen))]
        rng.shuffle(positions)
        for (relation, fact), answer in zip(chosen, positions, strict=True):
            choices = _distractors(relation, fact, rng)
            choices.insert(answer, fact.object)
            wording = rng.choice(relation.questions)
            made.append(
                Question(fact.id, fill(wording, fact), tuple(choices), answer, relation.domain, relation.name, split)
            )
    return made


def _relation(part: Part, raw: dict[str, Any]) -> Relation:
    name = raw["relation"]
    made = tuple(
        Fact(f"{part}-{name}-{n:03d}", raw["domain"], name, row[0], row[1], tuple(row[2]) if len(row) > 2 else ())
        for n, row in enumerate(raw["facts"])
    )
    return Relation(name, raw["domain"], tuple(raw["statements"]), tuple(raw["faq"]), tuple(raw["questions"]), made)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _contract(preposition: Literal["de", "à"], subject: str) -> str:
    """« de » or « à » before a subject: du, de la, de l', des, d'; au, à la, à l', aux."""
    merged = {"de": {"le ": "du ", "les ": "des "}, "à": {"le ": "au ", "les ": "aux "}}[preposition]
    for article, contraction in merged.items():
        if subject.startswith(article):
            return contraction + subject[len(article) :]
    if preposition == "de" and not subject.startswith(("la ", "l'", "l’")) and subject[:1] in VOWELS:
        return f"d'{subject}"
    return f"{preposition} {subject}"


def _groups(items: list[Fact], rng: Random) -> Iterator[list[Fact]]:
    """All facts once, in groups of two to five; neighbours in the shuffled order of domains stay together."""
    domains = sorted({f.domain for f in items})
    rng.shuffle(domains)
    order: list[Fact] = []
    for domain in domains:
        same = [f for f in items if f.domain == domain]
        order += rng.sample(same, len(same))
    start = 0
    while start < len(order):
        size = rng.randint(2, 5)
        yield order[start : start + size]
        start += size


def _compose(part: Part, group: list[Fact], by_name: dict[str, Relation], rng: Random) -> tuple[str, str]:
    """(document_type, text) of a group of facts."""
    if rng.random() < FAQ_SHARE:
        pairs = [f"Question : {fill(rng.choice(by_name[f.relation].faq), f)}\nRéponse : {f.object}" for f in group]
        return "faq", "\n".join(pairs)
    sentences = [fill(rng.choice(by_name[f.relation].statements), f) for f in group]
    kind = rng.choice(sorted(FORMS[part]))
    return kind, FORMS[part][kind](" ".join(sentences), rng)


def _split(relation: Relation, split: str, seed: int) -> list[Fact]:
    order = list(relation.facts)
    Random(f"{relation.name}/split/{seed}").shuffle(order)
    cut = round(VALIDATION_SHARE * len(order))
    return order[:cut] if split == "validation" else order[cut:]


def _distractors(relation: Relation, fact: Fact, rng: Random) -> list[str]:
    """Four wrong objects of the same relation.

    They are drawn through other facts, so that frequent objects are as frequent here as among the right answers.
    """
    wrong = {fact.object, *fact.also}
    drawn: list[str] = []
    for other in rng.sample(relation.facts, len(relation.facts)):
        if other.object not in wrong and other.object not in drawn:
            drawn.append(other.object)
        if len(drawn) == OPTIONS - 1:
            return drawn
    raise ValueError(f"relation {relation.name}: fewer than {OPTIONS} objects can be offered for {fact.subject}")


def _notice(body: str, rng: Random) -> str:
    opening = rng.choice(
        [
            "Notice d'information.",
            "Information destinée au patient.",
            "Résumé à l'usage des soignants.",
            "Fiche pratique.",
        ]
    )
    closing = rng.choice(
        [
            "Tenir hors de la portée des enfants.",
            "Demandez conseil à votre pharmacien.",
            "Conserver cette fiche.",
            "Signalez tout effet inattendu.",
        ]
    )
    return f"{opening} {body} {closing}"


def _note(body: str, rng: Random) -> str:
    who = rng.choice(["Patient", "Patiente"])
    seen = {"Patient": "vu", "Patiente": "vue"}[who]
    reason = rng.choice(
        [
            "une consultation de contrôle",
            "un avis",
            "un bilan annuel",
            "une fatigue récente",
            "un renouvellement d'ordonnance",
        ]
    )
    measures = rng.choice(
        [
            f"TA {rng.randint(11, 15)}/{rng.randint(6, 9)}",
            f"pouls à {rng.randint(58, 96)}/min",
            f"température à 37,{rng.randint(0, 6)} °C",
            f"poids de {rng.randint(48, 98)} kg",
        ]
    )
    return (
        f"{who} de {rng.randint(19, 91)} ans, {seen} pour {reason}. Examen : {measures}. "
        f"Rappel pour l'équipe : {body} Revoir dans {rng.randint(1, 12)} mois."
    )


def _courrier(body: str, rng: Random) -> str:
    opening = rng.choice(["Cher confrère,", "Chère consœur,", "Cher ami,"])
    reason = rng.choice(
        [
            "Suite à notre échange de ce matin, voici mes remarques.",
            "Vous m'avez interrogé, je vous réponds volontiers.",
            "Je vous adresse ces quelques rappels.",
        ]
    )
    closing = rng.choice(["Bien confraternellement.", "Avec mes salutations les meilleures.", "Amicalement."])
    return f"{opening} {reason} {body} {closing}"


def _encyclopedie(body: str, rng: Random) -> str:
    return body


def _recit(body: str, rng: Random) -> str:
    opening = rng.choice(
        [
            "Hier soir, grand-père nous a tout raconté.",
            "En marchant vers l'école, Lucie révisait à voix haute.",
            "Au dîner, la conversation est venue sur ce sujet.",
            "Dans le train, un voyageur nous a instruits.",
        ]
    )
    closing = rng.choice(
        [
            "Personne ne l'a contredit.",
            "Nous avons retenu la leçon.",
            "Puis chacun est allé dormir.",
            "Quelle mémoire !",
        ]
    )
    return f"{opening} {body} {closing}"


def _lecon(body: str, rng: Random) -> str:
    opening = rng.choice(
        ["Leçon du jour.", "À retenir.", f"Chapitre {rng.randint(1, 30)}.", "Au tableau, la maîtresse a écrit ceci."]
    )
    return f"{opening} {body} {rng.choice(['À savoir pour demain.', 'Relire deux fois.', 'Fin de la leçon.', ''])}".rstrip()


def _lettre(body: str, rng: Random) -> str:
    friend = rng.choice(["Chère Camille,", "Cher Julien,", "Ma chère tante,", "Cher voisin,"])
    closing = rng.choice(["À bientôt.", "Je pense à toi.", "Bien à toi."])
    return f"{friend} tu voulais des précisions, les voici. {body} {closing}"


FORMS: dict[str, dict[str, Any]] = {
    "medical": {"notice": _notice, "note clinique": _note, "courrier": _courrier, "encyclopédie": _encyclopedie},
    "general": {"encyclopédie": _encyclopedie, "récit": _recit, "leçon": _lecon, "lettre": _lettre},
}
