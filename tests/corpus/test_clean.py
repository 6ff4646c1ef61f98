"""Cleaning: what a clinician wrote comes out to the byte; what a broken conversion left goes."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frbio_lite.corpus.clean import RULES, clean, too_short

GOLDEN = """
Dobutamine 10 µg/kg/min en perfusion continue
Dose de 2,5 mg matin et soir, soit 5 mg/j
Score de Glasgow ≥ 3 mais ≤ 8, EVA > 7/10
Méthotrexate 50 mg/m² par semaine
CRP <5 mg/L à J1, puis TA>140 mmHg à J3
CRP<5 et VS>20 ; PA <140/90 mmHg
La douleur où naît l’œdème, à l’aîné Noël
Pénicilline 1 000 000 UI toutes les 4 h
Pénicilline 1\u202f000\u202f000 UI, 500\u00a0mg ×\u00a03
Température 37,5 °C puis 38,9°C
CIM-10 : E11.9, I10, J45.0, F32.1, Z51.1+C50.9
ATC : N02BE01, C07AB02, A10BA02, J01CA04
β-bloquant, α-fœtoprotéine, γ-GT, anti-TNF-α, Δ9-THC, σ, ω-3
Leucocytes 10,2 × 10⁹/L ; plaquettes 150·10⁹/L
½ cp le matin, ¼ cp à midi, ¾ cp le soir
Moyenne 12 ± 3 kg ; p < 0,05 ; IC 95 % [0,8 ; 1,2]
Na⁺ 138 mmol/L, K⁺ 4,1, Cl⁻ 102, HCO₃⁻ 24, Ca²⁺ 2,35
pO₂ 85 mmHg, pCO₂ 40, SpO₂ 98 % en AA, FiO₂ 0,21
Clairance 85 mL/min/1,73 m²
Œdème aigu, cœur, sœur, Æschne, æ
ÀÂÄÉÈÊËÎÏÔÖÙÛÜŸÇ àâäéèêëîïôöùûüÿç
« Très bien », dit-il — puis “non” … l’été – l'hiver
μ (U+03BC) et µ (U+00B5) restent ce qu’ils sont
INR entre 2 et 3 (cible 2,5 ± 0,5)
T° = 39 °C, FC = 120/min, FR = 24/min
a<b et c>d, si x<y alors z>w
taux a <b et c> d dans les deux bras
CRP <5 mg/L p>0,05 <i et b>
HbA1c : 7,2 % (55 mmol/mol)
Paracétamol 1 g x 3/j, max 4 g/24 h
Héparine 5 000 UI/0,2 mL SC
Posologie : 0,5 à 1 mg/kg/j
10 mg → 20 mg → 40 mg ↑ ↓ ⇒
Stade T2N1M0, grade III, ECOG 0-1
BRCA1 c.68_69del (p.Glu23ValfsTer17)
EGFR p.L858R ; c.2573T>G ; KRAS c.35G>A
IMC 24,7 kg/m² ; 1,75 m ; 75,5 kg
Créatinine 88 µmol/L, urée 5,5 mmol/L
Fer 12 µmol/L ; TSH 2,1 mUI/L ; T4 15 pmol/L
Volume 3,5 cm³ ; surface 1,8 m² ; 10⁻³ mol/L
10^9/L, 10E9/L, 10e-3, 1.5e+06
≈ 50 %, ≠ 0, ∞, √2, ∑, ∆, ≡, ∼ 3 cm
L5-S1, C7, D12, V3, Vm, IV, 2ᵉ, 1ʳᵉ, 3ᵉ
N° 12, n° 4, § 3, † 1999, ‡, ¶, №
Ø 12 mm, 5’ d’arc, 10″, 3′
Mme Ÿ, rue de l’Haÿ-les-Roses, Citroën
Voir https://exemple.fr/a?b=1&c=2#d
Contact : a.b@exemple.fr <a.b@exemple.fr>
Liste : • un ‣ deux – trois — quatre
Fièvre (39-40 °C) depuis 3-4 j
Toux +++, dyspnée ++, fièvre +/-
AgHBs -, AcHBs +, AcHBc ±
Rapport VEMS/CVF < 70 %, DEP > 80 %
Temps de Quick : 45 s / 12 s
Rythme 1–2–1, 1-0-1, 1/2/1
Gélule de 37.5 mg et 75.0 mg
Dose cumulée : 2×10⁶ cellules/kg
pH 7,35 – 7,45 ; BE −2 à +2
Angström : 5 Å ; ohm : 10 Ω ; kelvin : 310 K
Glycémie <0,6 g/L ou >1,26 g/L
D-dimères<500 ng/mL ; troponine <14 ng/L
Âge : 45 ans ; Être ; Île ; Ôter
la tâche « âpre » du mâle, Â, â, Î, î
SÃO PAULO, Coração, MÃE, São Tomé
&lt; reste écrit ainsi, R&D, A & B
Ampoule de 10 mL à 0,9 % (NaCl)
Vitamine B₁₂, B₆, D₃, H₂O, CO₂
ΔF508, Δ, λ, κ/λ, κ, τ, π, Σ, Ω
Traitement : 5‰, 3 ‰, 2°/00
""".strip().split("\n")


def test_there_are_enough_golden_lines() -> None:
    assert len(GOLDEN) >= 60 and len(set(GOLDEN)) == len(GOLDEN)
    assert all(unicodedata.is_normalized("NFC", line) for line in GOLDEN)


@pytest.mark.parametrize("line", GOLDEN)
def test_clinical_text_survives_to_the_byte(line: str) -> None:
    after, changed = clean(line, "clinical-fr")
    assert after.encode() == line.encode()
    assert changed == []


def test_golden_lines_survive_together_beside_real_markup() -> None:
    text = "\n".join(GOLDEN)
    after, changed = clean(f"<div>{text}</div>", "clinical-fr")
    assert after == text and changed == ["remove_html", "collapse_space"]


NUMBER = st.from_regex(r"[0-9]{1,3}([ \u00a0\u202f][0-9]{3}){0,2}([.,][0-9]{1,3})?", fullmatch=True)
UNIT = st.sampled_from(
    [
        "mg",
        "µg/kg",
        "μg",
        "g/L",
        "mmol/L",
        "UI",
        "°C",
        "%",
        "‰",
        "mL/min/1,73 m²",
        "mg/m²",
        "×10⁹/L",
        "cm³",
        "10⁻³ mol",
        "kg/j",
        "mmHg",
        "½ cp",
        "Å",
        "Ω",
        "p",
        "b",
        "i",
        "s",
        "a",
        "q",
        "u",
        "h1",
        "em",
        "div/min",
    ]
)
COMPARATOR = st.sampled_from(
    ["<", ">", "≤", "≥", "=", "±", "≈", "≠", "→", "+", "-", "−", "–", "/", "×", "< ", " > ", " <", "> "]
)
WORD = st.sampled_from(
    ["CRP", "TA", "où", "naît", "œdème", "β-bloquant", "Na⁺", "E11.9", "N02BE01", "Âge", "à", "p", "<", ">"]
)
LINE = st.lists(st.one_of(NUMBER, UNIT, COMPARATOR, WORD), min_size=1, max_size=20)


@given(LINE, st.sampled_from(["", " "]))
def test_no_number_unit_or_comparator_is_altered(parts: list[str], between: str) -> None:
    line = between.join(parts).strip()
    if not any(f"<{tag}>" in line or f"</{tag}>" in line or f"<{tag}/>" in line for tag in ("p", "h1", "em")):
        assert clean(line, "clinical-fr")[0] == line


@given(st.text())
def test_any_text_can_be_stored_and_holds_no_control(text: str) -> None:
    once, _ = clean(text + "\ud83d", "clinical-fr")
    once.encode("utf-8")
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert clean("x\ud83d\x00", "none") == ("x\x00", ["remove_surrogates"])


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        ("remove_surrogates", "fi\ud83dèvre 5\ud83d10", "fièvre 5 10"),
        ("repair_mojibake", "lâ€™hÃ©patite Ã  10 Âµg, Å“dÃ¨me Î²", "l’hépatite à 10 µg, œdème β"),
        ("repair_mojibake", "un œdème où naît 10⁹\nprÃ©sence â‰¥ 3", "un œdème où naît 10⁹\nprésence ≥ 3"),
        ("remove_controls", "l\x92eau\x00\r\nfin\x0cdébut", "l’eau\nfin\ndébut"),
        ("remove_controls", "5\x0010 et 5\x9610", "5 10 et 5–10"),
        ("compose", "fie\u0300vre 10⁹ ½ µ μ ﬁ", "fièvre 10⁹ ½ µ μ ﬁ"),
        ("remove_invisible", "médi\u00adca\u200bment 5\u00ad10 mg hépa\u00ad\ntite", "médicament 5-10 mg hépatite"),
        ("remove_html", 'a<br/>b<p class="x">10<sup>9</sup>/L</p>', "a\nb\n10⁹/L\n"),
        ("remove_html", "<td>5</td><td>10</td>", " 5  10 "),
        ("remove_html", "H<sub>2</sub>O 1<sup>er</sup> 10<SUP>-3</SUP>", "H₂O 1er 10⁻³"),
        ("remove_html", "10<sup>-3 ou 4</sup>", "10<sup>-3 ou 4</sup>"),
        ("remove_html", "<b>TA<i>140</i></b> <span style='a'>5</span>", "TA140 5"),
        ("remove_html", "a<b>c et <patient> et <5 mg> et </>", "a<b>c et <patient> et <5 mg> et </>"),
        ("collapse_space", "\nfièvre  \n\n\n\n\ntoux\t\n\n\nfin ", "fièvre\n\n\ntoux\n\n\nfin"),
    ],
)
def test_each_rule_does_what_it_says(rule: str, before: str, after: str) -> None:
    found = next(r for r in RULES["clinical-fr"] if r.__name__ == rule)
    assert found(before) == after
    assert found(after) == after
    assert rule in clean(before, "clinical-fr")[1] or before == after


def test_short_documents() -> None:
    assert too_short("deux mots", "clinical-fr") and not too_short("trois mots ici", "clinical-fr")
    assert too_short(" \n", "none") and not too_short("mot", "none")
