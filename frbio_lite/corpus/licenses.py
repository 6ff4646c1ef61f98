"""The license gate: no document goes further whose license is unknown or not in `corpus.licenses.allow`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from frbio_lite.corpus.sources import Document
from frbio_lite.errors import RequestError
from frbio_lite.recipe import Corpus, Source

KEY = "corpus.licenses.allow"


def canonical(license: str) -> str:
    """One spelling per license: `CC BY 4.0` and `cc-by-4.0` are `cc-by-4.0`."""
    return re.sub(r"[\s_-]+", "-", license.strip()).casefold()


class LicenseGate:
    """Decides document by document; built once for all sources.

    Raises RequestError at once when a source declares a license that is not allowed.
    """

    def __init__(self, settings: Corpus) -> None:
        self.allowed = {canonical(name) for name in settings.licenses.allow}
        refused = [s for s in settings.sources if s.license is not None and canonical(s.license) not in self.allowed]
        if refused:
            raise RequestError("; ".join(self._refusal(source, str(source.license)) for source in refused))

    def _refusal(self, source: Source, license: str) -> str:
        return (
            f"the source {source.name} has the license '{license}', which {KEY} does not allow "
            f"(it allows {_listed(sorted(self.allowed))}): add it there if you may use it, or remove the source"
        )

    def admits(self, document: Document, source: Source) -> bool:
        """Whether the document may be used; its license is rewritten in the canonical spelling.

        Raises RequestError when neither the document nor its source has a license: what is unknown cannot be allowed.
        """
        document.license = canonical(document.license)
        if not document.license:
            raise RequestError(
                f"the document {document.id} of the source {source.name} has no license: find out which one it has, "
                f"write it as `license:` of the source, and allow it in {KEY}"
            )
        return document.license in self.allowed


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
