"""Study files (TOML): read, checked and frozen; data, recipes, search space, anchors."""

from kdsearch.spec.dimensions import Dimension, Range, Stages, choices, dimension_holds, ends, is_whole, largest
from kdsearch.spec.study_file import (
    Anchor,
    Augment,
    DataSpec,
    LatencySpec,
    Published,
    Recipe,
    ReportSpec,
    StudentSpec,
    StudySpec,
    TeacherSpec,
    from_dict,
    load,
    parse,
    shipped,
    studies_folder,
)

__all__ = [
    "Anchor", "Augment", "DataSpec", "Dimension", "LatencySpec", "Published", "Range", "Recipe", "ReportSpec", "Stages",
    "StudentSpec", "StudySpec", "TeacherSpec", "choices", "dimension_holds", "ends", "from_dict",
    "is_whole", "largest", "load", "parse", "shipped", "studies_folder",
]  # fmt: skip
