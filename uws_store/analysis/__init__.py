"""What a zoo is before anything is built from it: which models belong together, what they share, and what chance would give.

Reads checkpoints, writes nothing.
"""

from __future__ import annotations

from uws_store.analysis.analyze import TensorAnalysis, ZooAnalysis, analyze_members
from uws_store.analysis.architectures import ArchitectureGroup, group_architectures
from uws_store.analysis.bases import bases_of
from uws_store.analysis.modes import ModeCapture
from uws_store.analysis.relations import Relations

__all__ = [
    "ArchitectureGroup",
    "ModeCapture",
    "Relations",
    "TensorAnalysis",
    "ZooAnalysis",
    "analyze_members",
    "bases_of",
    "group_architectures",
]
