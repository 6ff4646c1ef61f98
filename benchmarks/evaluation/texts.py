"""What is scored: random French-like questions, prompt forms that have broken scorers, and tasks that need no download."""

from __future__ import annotations

import random

POSITIONS = 2048  # of the random models: one form is longer
SHIPPED = ("frbio-fr-med", "frbio-fr-gen", "demo-medical")
TEXT = (
    "le la un une des du patient traitement fièvre douleur rein foie cœur poumon artère veine dose "
    "comprimé jour semaine matin soir élevée basse rapide lente chronique aiguë infection bactérie virus "
    "vaccin enfant adulte âgé pouls tension glycémie créatinine sodium potassium antibiotique corticoïde "
    "perfusion voie orale après avant pendant sans avec contre chez dans sous est reçoit montre présente "
    "augmente diminue évite demande contrôle prescrit surveille associe deux trois cinq dix mg mL µg %"
)
WORDS = TEXT.split()
CASES = {  # form of the choices, examples before the question, the same for all questions
    "sentences, 5 fixed shots": ("sentences", 5, True),
    "sentences, no shots": ("sentences", 0, True),
    "letters, 5 fixed shots": ("letters", 5, True),
    "letters, no shots": ("letters", 0, True),
    "sentences, 5 drawn shots": ("sentences", 5, False),
    "letters, 5 drawn shots": ("letters", 5, False),
}

Items = list[tuple[str, list[str]]]  # a prompt and its continuations


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize()


def question(rng: random.Random, form: str, choices: int) -> tuple[str, list[str]]:
    """A prompt of about 60 tokens (letters: with the choices in it) and its continuations."""
    letters = "ABCDEFGHIJ"[:choices]
    if form == "letters":
        listed = "".join(f"\n{letter}. {sentence(rng, 3)}" for letter in letters)
        return f"Question : {sentence(rng, 20)} ?{listed}\nRéponse :", [f" {letter}" for letter in letters]
    return f"Question : {sentence(rng, 40)} ?\nRéponse :", [f" {sentence(rng, 7)}" for _ in range(choices)]


def case_items(form: str, shots: int, fixed: bool, count: int, choices: int = 4, seed: int = 0) -> Items:
    rng = random.Random(seed)
    pool = [question(rng, form, choices) for _ in range(max(2 * shots, 1))]

    def examples() -> str:
        drawn = pool[:shots] if fixed else rng.sample(pool, shots)
        return "".join(f"{prompt}{continuations[0]}\n\n" for prompt, continuations in drawn)

    return [(examples() + prompt, given) for prompt, given in (question(rng, form, choices) for _ in range(count))]


def parity_items() -> dict[str, Items]:
    """Prompt forms that have broken scorers, beside the cases above."""
    rng = random.Random(7)
    asked = [f"Question : {sentence(rng, 12)} ?\nRéponse :" for _ in range(30)]
    texts = [[f" {sentence(rng, rng.randint(1, 9))}" for _ in range(4)] for _ in asked]
    bare = [[t.strip() for t in given] for given in texts]
    accents = [[" œdème à 2,5 µg/kg", " naît « là »", " 中文 ≥ 3 mg/m²", " où ? 🫀"] for _ in asked]
    return {
        "letters": [(p, [" A", " B", " C", " D", " E"]) for p in asked],
        "sentences": list(zip(asked, texts, strict=True)),
        "empty context": [("", given) for given in bare],
        "context ends in a space": [(p + " ", given) for p, given in zip(asked, bare, strict=True)],
        "context ends in line breaks": [(p + "\n\n", given) for p, given in zip(asked, bare, strict=True)],
        "accents and other scripts": list(zip(asked, accents, strict=True)),
        "one choice begins another": [(p, [g[0], g[0] + g[1], g[0] + g[2]]) for p, g in zip(asked, texts, strict=True)],
        "longer than the context": [
            (f"{sentence(rng, POSITIONS)}\n{p}", given) for p, given in zip(asked[:5], texts[:5], strict=True)
        ],
        **{name: case_items(*settings, count=10, seed=3) for name, settings in CASES.items()},
    }


def shipped_items() -> dict[str, Items]:
    """The first items of tasks that need no download."""
    from frbio_lite.evaluation.items import Question, load_items
    from frbio_lite.evaluation.tasks import load_tasks

    found: dict[str, Items] = {}
    for task in load_tasks(SHIPPED):
        loaded = [item for item in load_items(task, "test", limit=30) if isinstance(item, Question)]
        found[task.name] = [(item.prompt, [task.delimiter + choice for choice in item.choices]) for item in loaded]
    return found
