"""The language that a page is written in: its sentences, plural forms and numbers.

Sentences stand in English in the code as msgids; translations/LANGUAGE.po holds the others, and a test names those that
lack one. The language is set once, for a whole page, by `write_report`.

    with speaking("fr"):
        _("not there yet")                                         # "pas encore là"
        ngettext("{n} word", "{n} words", 3).format(n=integer(3))  # "3 mots"
        number(1234.5)                                             # "1 234,5", with a narrow no-break space
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from functools import cache
from importlib import resources

from babel import Locale
from babel.messages import Catalog
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

LANGUAGES = ("en", "fr")
SOURCE = LANGUAGES[0]  # the language of the msgids
MINUS = "−"
_language: ContextVar[str] = ContextVar("language", default=SOURCE)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """All text made inside is in `language`, one of LANGUAGES."""
    token = _language.set(language)
    try:
        yield
    finally:
        _language.reset(token)


def language() -> str:
    return _language.get()


@cache
def catalog(language: str) -> Catalog:
    """The translations into `language`, any but SOURCE."""
    with resources.files("frbio_lite.report").joinpath("translations", f"{language}.po").open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def _(message: str) -> str:
    """The sentence in the page's language; `message` itself where it has no translation, such as a user's own name."""
    found = catalog(language()).get(message) if message and language() != SOURCE else None
    told = found.string if found is not None else None
    return told if isinstance(told, str) and told else message


def ngettext(singular: str, plural: str, count: int | Decimal) -> str:
    """The form that `count`, as it is written, asks for: 1 point, 1.0 points. `{n}` in it is still to be filled."""
    found = catalog(language()).get(singular) if language() != SOURCE else None
    told = found.string if found is not None else None
    forms = told if isinstance(told, list | tuple) and all(told) else (singular, plural)
    return forms[0] if Locale.parse(language()).plural_form(count) == "one" else forms[-1]


def N_(message: str) -> str:
    """Marks a constant for the translators; `_` translates it where it is shown."""
    return message


def number(value: float, decimals: int = 1, sign: bool = False) -> str:
    """`1,234.5`; with `sign` `+1.2`, but no sign on what rounds to zero. The minus is a true one."""
    return _signed(Decimal(f"{value:.{decimals}f}"), sign)


def significant(value: float, digits: int = 4) -> str:
    """At most `digits` significant digits: `0.25`, `1,234`, `1.5·10⁻⁵`."""
    rounded = Decimal(f"{value:.{digits}g}")
    if rounded and not -4 <= rounded.adjusted() < 15:
        power = str(rounded.adjusted()).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{_signed(rounded.scaleb(-rounded.adjusted()).normalize())}·10{power}"
    return _signed(rounded)


def integer(value: int) -> str:
    return _signed(Decimal(value))


def percent(share: float, decimals: int = 1, sign: bool = False) -> str:
    """A share of 1 in percent: `12.3%`, in French `12,3 %`."""
    return percent_sign(number(100 * share, decimals, sign))


def percent_sign(figure: str) -> str:
    """A percent sign behind a written number."""
    return _("{number}%").format(number=figure)


def _signed(value: Decimal, sign: bool = False) -> str:
    mark = MINUS if value < 0 else "+" if sign and value > 0 else ""
    digits = max(0, -int(value.as_tuple().exponent))
    pattern = "#,##0" + ("." + "0" * digits if digits else "")
    return mark + format_decimal(abs(value), format=pattern, locale=language())
