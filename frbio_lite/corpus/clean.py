"""Cleaning of French clinical text: what a broken conversion left goes, what a clinician wrote stays to the byte.

No number, unit, comparator, dose, Greek letter, superscript, code or French letter is ever altered; where a rule could
join two numbers or change an exponent it does something else or nothing. Each rule is a function from text to text and
says in one line what it does to what; `clean` applies them in order and names those that changed something.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from frbio_lite.corpus.sources import SURROGATES

FEWEST_WORDS = 3

# bytes 0x80-0xBF as windows-1252 and as latin-1 show them: what follows the first byte of a letter wrongly decoded
_BYTES = range(0x80, 0xC0)
_NEXT = re.escape("".join(sorted({bytes([b]).decode("cp1252", "ignore") for b in _BYTES} | {chr(b) for b in _BYTES})))
DEBRIS = re.compile(rf"[ÃÂâÎÅ](?:(?<!Å)[{_NEXT}]|(?<=Ã) [a-z]|(?<=Å)[“’\x92\x93])")

C1 = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
UNUSUAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
SURROGATES_IN_NUMBER = re.compile("(?<=[0-9])[\ud800-\udfff]+(?=[0-9])")
NEW_LINES = re.compile("\r\n|[\r\x0b\x0c\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]+")
CONTROLS_IN_NUMBER = re.compile("(?<=[0-9])[\x00-\x08\x0e-\x1f\x7f]+(?=[0-9])")

SOFT_HYPHEN_IN_NUMBER = re.compile("(?<=[0-9])\u00ad+(?=[0-9])")
SOFT_HYPHEN = re.compile("\u00ad+\n?")
ZERO_WIDTH = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")

# A bare word after a name, as in `a <b et c> d`, is no attribute: an attribute has a value.
_ATTRIBUTES = r"(?:\s+[a-zA-Z][\w:-]*\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>=]+))*\s*/?"
_BLOCK = (
    "address|article|aside|blockquote|body|br|caption|center|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|"
    "h[1-6]|head|header|hr|html|li|main|nav|ol|p|pre|section|table|tbody|tfoot|thead|title|tr|ul"
)
_CELL = "td|th"
_INLINE = (
    "abbr|acronym|big|cite|code|del|dfn|em|font|img|input|ins|kbd|label|link|mark|meta|samp|small|"
    "span|strike|strong|tt|var"
)
_LETTER = "[abiqsu]"
ANY_TAG = re.compile("</?[a-zA-Z]")
BLOCK_TAG = re.compile(rf"</?(?:{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE)
CELL_TAG = re.compile(rf"</?(?:{_CELL}){_ATTRIBUTES}>", re.IGNORECASE)
INLINE_TAG = re.compile(rf"</?(?:{_INLINE}){_ATTRIBUTES}>", re.IGNORECASE)
# `a<b>c` compares; only an opening and a closing tag together are markup
LETTER_TAG = re.compile(rf"<({_LETTER}){_ATTRIBUTES}>([^<>]*)</\1\s*>", re.IGNORECASE)
SCRIPT_TAG = re.compile(rf"<(sup|sub){_ATTRIBUTES}>([^<>]*)</\1\s*>", re.IGNORECASE)
SUPERSCRIPT = str.maketrans("0123456789+-−=()", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾")
SUBSCRIPT = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
SCRIPT_NUMBER = re.compile(r"[0-9+\-−=()]+")

TRAILING = re.compile("[ \t]+$", re.MULTILINE)
BLANK_LINES = re.compile("\n{4,}")

Rule = Callable[[str], str]


def remove_surrogates(text: str) -> str:
    r"""`fi\ud83dèvre` → `fièvre`: half of a character, which no UTF-8 file can hold."""
    if not SURROGATES.search(text):
        return text
    return SURROGATES.sub("", SURROGATES_IN_NUMBER.sub(" ", text))  # `5\ud83d10` are two numbers


def repair_mojibake(text: str) -> str:
    """`lâ€™hÃ©patite Ã  10 Âµg` → `l’hépatite à 10 µg`: only lines that show the debris, by ftfy."""
    if not DEBRIS.search(text):
        return text
    from ftfy import fix_encoding

    return "\n".join(fix_encoding(line) if DEBRIS.search(line) else line for line in text.split("\n"))


def remove_controls(text: str) -> str:
    r"""`l\x92eau\x00\r\n` → `l’eau\n`: line ends become \n, windows-1252 left-overs their character, other controls go.

    Between two digits a control becomes a space: `5\x0010` are two numbers.
    """
    if not UNUSUAL.search(text):
        return text
    text = NEW_LINES.sub("\n", text.translate(C1))
    return CONTROLS.sub("", CONTROLS_IN_NUMBER.sub(" ", text))


def remove_invisible(text: str) -> str:
    r"""`médi\u00adca\u200bment` → `médicament`; between digits it was a hyphen: `5\u00ad10 mg` → `5-10 mg`."""
    if "\u00ad" in text:
        text = SOFT_HYPHEN.sub("", SOFT_HYPHEN_IN_NUMBER.sub("-", text))
    return ZERO_WIDTH.sub("", text)


def compose(text: str) -> str:
    r"""`fie\u0300vre` → `fièvre`: Unicode NFC, never NFKC, so `10⁹`, `½`, `µ` and `μ` stay."""
    return unicodedata.normalize("NFC", text)


def remove_html(text: str) -> str:
    r"""`<p>CRP <5 mg/L<br/>10<sup>9</sup>/L</p>` → `CRP <5 mg/L\n10⁹/L`: only tags with the name of an HTML element.

    Block elements end a line, cells become a space, `sup` and `sub` become the characters; a comparison is no tag.
    """
    if not ANY_TAG.search(text):
        return text
    text = SCRIPT_TAG.sub(_script, text)
    text = BLOCK_TAG.sub("\n", INLINE_TAG.sub("", CELL_TAG.sub(" ", text)))
    while (unwrapped := LETTER_TAG.sub(r"\2", text)) != text:  # one more turn for each level of nesting
        text = unwrapped
    return text


def _script(match: re.Match[str]) -> str:
    """The characters of a `sup` or `sub`; one that holds more than a number or a word stays as it is."""
    kind, content = match[1].lower(), match[2].strip()
    if SCRIPT_NUMBER.fullmatch(content):
        return content.translate(SUPERSCRIPT if kind == "sup" else SUBSCRIPT)
    return content if content.isalpha() else match[0]


def collapse_space(text: str) -> str:
    r"""`fièvre  \n\n\n\n\ntoux` → `fièvre\n\n\ntoux`: no space at line ends, two blank lines at most, none around."""
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = TRAILING.sub("", text)
    return BLANK_LINES.sub("\n\n\n", text).strip("\n")


RULES: dict[str, tuple[Rule, ...]] = {
    "none": (remove_surrogates,),  # what cannot be stored goes in any case
    "clinical-fr": (
        remove_surrogates,
        repair_mojibake,
        remove_controls,
        remove_invisible,
        compose,
        remove_html,
        collapse_space,
    ),
}


def clean(text: str, method: str) -> tuple[str, list[str]]:
    """(the text after the rules of `method`, names of the rules that changed it)."""
    changed = []
    for rule in RULES[method]:
        after = rule(text)
        if after != text:
            changed.append(rule.__name__)
        text = after
    return text, changed


def too_short(text: str, method: str) -> bool:
    """Whether too little is left to be a document: fewer than three words for `clinical-fr`, nothing for `none`."""
    return len(text.split()) < (FEWEST_WORDS if method == "clinical-fr" else 1)
