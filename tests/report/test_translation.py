"""The page in French: every sentence has its translation, numbers and typography are French, nothing stays English."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from babel.messages import Catalog
from babel.messages.extract import extract_from_dir
from click.testing import CliRunner

import frbio_lite.report
from frbio_lite.artifacts import LIBRARIES
from frbio_lite.cli import main
from frbio_lite.corpus import build, privacy
from frbio_lite.errors import RequestError
from frbio_lite.evaluation import tasks
from frbio_lite.recipe import CleaningRule
from frbio_lite.report import LARGEST_PAGE, terms, write_report
from frbio_lite.report import format as fmt
from frbio_lite.report.details import details, kernels
from frbio_lite.report.language import (
    LANGUAGES,
    _,
    catalog,
    integer,
    language,
    ngettext,
    number,
    percent,
    significant,
    speaking,
)

from .conftest import MakeRun
from .page import Page

NARROW, WIDE = "\u202f", "\u00a0"  # the no-break spaces of French typography
SOURCES = Path(frbio_lite.report.__file__).parent
FILLED = re.compile(r"\{\w+\}|%\(\w+\)s")
Forms = tuple[str, ...]


@cache
def messages() -> dict[str, tuple[Forms, str]]:
    """By msgid its forms in English and where it stands."""
    found: dict[str, tuple[Forms, str]] = {}
    methods = [("**.py", "python"), ("**.j2", "jinja2")]
    options = {"**.j2": {"trimmed": "true", "silent": "false"}}
    for file, line, message, *_rest in extract_from_dir(str(SOURCES), methods, options):
        forms = message if isinstance(message, tuple) else (message,)
        earlier, place = found.setdefault(forms[0], (forms, f"{file}:{line}"))
        if len(forms) > len(earlier):
            found[forms[0]] = (forms, place)
    return found


def french(forms: Forms) -> Forms:
    found = catalog("fr").get(forms[0])
    return () if found is None else found.string if isinstance(found.string, tuple) else (found.string,)


def test_every_sentence_has_a_french_one() -> None:
    assert len(messages()) > 300
    assert {"Training", "not there yet", "Not for clinical decisions."} <= {m[:27] for m in messages()}
    missing = [f"{place}: {forms}" for forms, place in messages().values() if len(french(forms)) != len(forms)]
    empty = [place for forms, place in messages().values() if not all(french(forms))]
    assert missing == [] and empty == []


def test_no_french_sentence_is_unused_fuzzy_or_obsolete() -> None:
    found = [entry for entry in catalog("fr") if entry.id]
    ids = [entry.id[0] if isinstance(entry.id, tuple) else entry.id for entry in found]
    assert sorted(set(ids) - messages().keys()) == [] and len(ids) == len(set(ids))
    assert [entry.id for entry in found if entry.fuzzy] == [] and not catalog("fr").obsolete
    raw = (SOURCES / "translations" / "fr.po").read_text(encoding="utf-8")
    assert raw.count("\nmsgid ") == len(found) + 1  # a msgid that stands twice would be read once


def test_placeholders_are_the_same_in_both_languages() -> None:
    for forms, place in messages().values():
        for english, told in zip(forms, french(forms), strict=False):
            assert sorted(FILLED.findall(english)) == sorted(FILLED.findall(told)), place
            assert FILLED.sub("", told).count("{") == FILLED.sub("", told).count("}") == 0, place


def test_french_typography() -> None:
    for forms, place in messages().values():
        for told in french(forms):
            plain = re.sub(r"`[^`]*`|<[^>]*>", "", FILLED.sub("x", told))
            assert not re.search(rf"(?<!{WIDE})[:%»]|(?<!{NARROW})[;!?]|«(?!{WIDE})", plain), (place, told)
            assert "'" not in plain and "..." not in plain and '"' not in plain, (place, told)


def test_numbers_in_both_languages() -> None:
    assert [number(-1234567.891, 2), number(-0.04), number(0.25, 1, sign=True)] == ["−1,234,567.89", "0.0", "+0.2"]
    assert [significant(v) for v in (0.0, 0.25, 1e-5, -1.25e-7, 123456.7)] == [
        "0",
        "0.25",
        "1·10⁻⁵",
        "−1.25·10⁻⁷",
        "123,500",
    ]
    assert [percent(0.1234), percent(-0.5, 0, sign=True), fmt.share(0.00012)] == ["12.3%", "−50%", "0.012%"]
    with speaking("fr"):
        assert number(-1234567.891, 2) == f"−1{NARROW}234{NARROW}567,89" and integer(1234) == f"1{NARROW}234"
        assert [significant(v) for v in (0.25, -1.25e-7, 1e20)] == ["0,25", "−1,25·10⁻⁷", "1·10²⁰"]
        assert percent(0.1234) == f"12,3{WIDE}%" and fmt.share(1e-9) == f"<{' '}0,0001{WIDE}%"
        assert [fmt.size(n) for n in (17, 3 << 30)] == [f"17{WIDE}o", f"3,00{WIDE}Gio"]
        assert [fmt.duration(s) for s in (0.001, 12.5, 105, 7260)] == [
            f"< 0,1{WIDE}s",
            f"12,5{WIDE}s",
            f"1{WIDE}min 45{WIDE}s",
            f"2{WIDE}h 01{WIDE}min",
        ]


def test_plural_forms_and_unknown_words() -> None:
    told = ("{n} word", "{n} words")
    assert [ngettext(*told, n).format(n=n) for n in (0, 1, 2)] == ["0 words", "1 word", "2 words"]
    with speaking("fr"):
        forms = [ngettext(*told, n).format(n=n) for n in (0, 1, 2)]
        assert forms == [f"0{WIDE}mot", f"1{WIDE}mot", f"2{WIDE}mots"]
        assert [_(""), _("a user's own name"), ngettext("one {n}", "all {n}", 2)] == [
            "",
            "a user's own name",
            "all {n}",
        ]


def test_the_language_is_set_for_one_page_alone(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    french_page = write_report([run], tmp_path / "fr.html", "fr")
    english_page = write_report([run], tmp_path / "en.html")
    assert french_page["runs"][0]["verdict"][0].startswith("Sur les items de test")
    assert english_page["runs"][0]["verdict"][0].startswith("On test items")
    with pytest.raises(ZeroDivisionError), speaking("fr"):
        raise ZeroDivisionError
    assert language() == "en"
    with pytest.raises(RequestError, match="no report in the language 'de': choose one of en, fr"):
        write_report([run], tmp_path / "de.html", "de")
    assert not (tmp_path / "de.html").exists()


def test_the_command_takes_the_language(make_run: MakeRun, tmp_path: Path) -> None:
    run, output = str(make_run()), tmp_path / "r.html"
    assert LANGUAGES == ("en", "fr")
    for chosen, lang in (([], "en"), (["--lang", "en"], "en"), (["--lang", "fr"], "fr")):
        done = CliRunner().invoke(main, ["report", run, "--out", str(output), *chosen])
        assert done.exit_code == 0 and f'<html lang="{lang}">' in output.read_text(encoding="utf-8")
    wrong = CliRunner().invoke(main, ["report", run, "--out", str(output), "--lang", "de"])
    assert wrong.exit_code == 2 and "'en', 'fr'" in wrong.output


def in_french(tmp_path: Path, *runs: Path) -> Page:
    write_report(runs, tmp_path / "fr.html", "fr")
    assert (tmp_path / "fr.html").stat().st_size < LARGEST_PAGE
    return Page((tmp_path / "fr.html").read_text(encoding="utf-8"))


def test_the_page_in_french(make_run: MakeRun, tmp_path: Path) -> None:
    page = in_french(tmp_path, make_run("a"), make_run("b"))
    said = page.said().replace(WIDE, " ").replace(NARROW, " ")
    for sentence in (
        "Comparaison de 2 exécutions – rapport frbio_lite",
        "Ne pas utiliser pour des décisions cliniques.",
        "Ceci est une démonstration, pas un modèle médical.",
        "le modèle fusionné progresse sur les tâches médicales (+74,0 points ; IC à 95 % :",
        "Le ratio 0,5 (50 % de modèle adapté, 50 % de base ; slerp) a été choisi",
        "La règle : le plus grand gain sur les tâches médicales, avec une perte d’au plus 5 points sur les tâches générales.",
        "L’adaptation a changé les poids de 4,4 % de leur longueur",
    ):
        assert sentence in said
    assert page.row("demo-medical")[1].startswith(f"12,0{WIDE}%")
    assert page.row("demo-medical")[3].startswith(f"▲ +74,0{WIDE}points")
    assert page.row("heldout-domain")[3].startswith(f"▲ +22,0{WIDE}% des bits")
    assert page.row("Entraînement")[1:4] == [f"1{WIDE}min 45{WIDE}s", f"1,00{WIDE}Gio", "17"]
    assert page.row("demo:medical:30")[4] == f"2{NARROW}000300{NARROW}000{WIDE}mots1,91{WIDE}Mio"
    labels = [a["aria-label"] or "" for t, a in page.elements if (a.get("class") or "").startswith("point")]
    assert any(
        label.startswith(f"Tâches médicales, ratio 0,25{WIDE}: 31,0{WIDE}% (IC à 95{WIDE}%{WIDE}: ") for label in labels
    )
    sorts = [a["data-sort"] or "0" for _tag, a in page.elements if "data-sort" in a]
    assert all("," not in key for key in sorts)  # the script reads numbers


def test_what_is_not_there_is_told_in_french(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    for stage in ("packed", "train", "ablation", "merge", "eval"):
        shutil.rmtree(run / stage)
    said = in_french(tmp_path, run).said().replace(WIDE, " ")
    assert "Pas encore là : Découpage en séquences, Entraînement, Choix du ratio, Fusion, Évaluation de la base" in said
    assert "La base n’est pas encore évaluée" in said and "Aucun ratio de fusion n’est encore choisi." in said
    assert "not there yet" not in said.lower()


def test_the_words_of_other_stages_have_their_french_ones() -> None:
    known = {*terms.CORPUS, *terms.STEPS, *terms.METRICS, *terms.ROLES, *terms.FIGURES}
    written = {*get_args(CleaningRule), *get_args(privacy.Kind), *build.STEPS, *build.DUPLICATE.values()}
    written |= {metric for kind in tasks.METRICS.values() for metric in kind}
    assert {name.replace("_", " ") for name in written} <= known
    with speaking("fr"):
        assert fmt.label("other_language (en)") == "autre langue (en)"
        assert fmt.label("license cc-by-nc-4.0") == "licence cc-by-nc-4.0"
        assert fmt.label("peak_memory_bytes") == "mémoire maximale" and fmt.label("bytes") == "taille"
        pairs = details({"verified": {"tokens": 1200, "peak_memory_bytes": None}, "own_name": {"v1.0": 0.5}}).pairs
    assert pairs == [
        ("vérifié › tokens", f"1{NARROW}200"),
        ("vérifié › mémoire maximale", "–"),
        ("own name › v1.0", "0,5"),
    ]


def test_the_kernels_stand_in_a_line_each() -> None:
    told = {"swapped": {"rms_norm": 57, "rope": 28}, "plain": {"LoRA": "a new reason"}}
    assert kernels(told) == {"fused kernels": "rms_norm: 57; rope: 28", "without fused kernel": "LoRA: a new reason"}
    with speaking("fr"):
        assert kernels({"swapped": {}, "plain": {"all": "train.kernels is off"}}) == {
            "without fused kernel": "train.kernels vaut off"
        }
    assert kernels(None) == kernels([]) == kernels({"swapped": 3}) == {}


class Shown(HTMLParser):
    """What a reader reads or hears, but the recipe and the hashes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.inside: list[str] = []
        self.parts: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "input", "br"}:
            self.inside.append(tag)
        self.parts += [value or "" for name, value in attrs if name in {"aria-label", "title", "data-told"}]

    def handle_endtag(self, tag: str) -> None:
        self.inside.pop()
        self.text += "" if tag in {"span", "strong"} else "\n"

    def handle_data(self, data: str) -> None:
        if not {"style", "script", "pre", "code"} & set(self.inside):
            self.text += data


def pseudo() -> Catalog:
    """A language in which each sentence stands in brackets."""
    told = Catalog(locale="fr")
    for forms, _place in messages().values():
        wrapped = tuple(f"⟦{form}⟧" for form in forms)
        told.add(forms if len(forms) > 1 else forms[0], wrapped if len(forms) > 1 else wrapped[0])
    return told


def unwrapped(text: str) -> Iterator[str]:
    """The words that stand in no bracket."""
    while (inner := re.sub(r"⟦[^⟦⟧]*⟧", " ", text)) != text:
        text = inner
    yield from re.findall(r"[^\W\d_][\w’'.-]*", text)


def test_all_that_is_shown_can_be_translated(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words outside the brackets are names: of runs, tasks, sources, libraries and methods."""
    told: Any = pseudo()
    monkeypatch.setattr("frbio_lite.report.language.catalog", lambda language: told)
    page = Shown()
    one, two = make_run("one"), make_run("two", methods=("linear", "slerp"))
    shutil.rmtree(two / "merge")
    write_report([one, two], tmp_path / "r.html", "fr")
    page.feed((tmp_path / "r.html").read_text(encoding="utf-8"))
    words = {word for part in (page.text, *page.parts) for word in unwrapped(part)}
    names = {
        "demo",
        "one",
        "two",
        "medical",
        "general",
        "demo-medical",
        "demo-general",
        "heldout-domain",
        "heldout-general",
    }
    names |= {"slerp", "linear", "bf16", "bfloat16", "McNemar", "bootstrap", "p", "cc0-1.0", "cpu", *LIBRARIES}
    hashes = {word for word in words if len(word) >= 20}
    assert "⟦Training⟧" in page.text and "⟦Verdict⟧" in page.parts
    assert " ".join(sorted(words - names - hashes)) == ""
