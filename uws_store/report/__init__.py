"""The report on a family: one self-contained HTML page by which a family is judged.

Needs the extra ``report`` (jinja2, matplotlib). Reads records and profiles only; no tensor is reconstructed.
"""

from __future__ import annotations

from uws_store.report.gather import FamilyView, ModelView, gather
from uws_store.report.page import render

__all__ = ["FamilyView", "ModelView", "gather", "render"]
