"""Generated problems with answers that are known by construction: ten families of five levels each.

`FAMILIES` maps the name of a generator to its family; a new one is a small file and a name here.
"""

from __future__ import annotations

from posttrain.data.problems import (
    arithmetic,
    calendar,
    equation,
    letters,
    logic,
    sequence,
    sets,
    sorting,
    string_edit,
    units,
)
from posttrain.data.problems.base import Family, TaskOptions

__all__ = ["FAMILIES", "Family", "TaskOptions"]
FAMILIES = {
    module.FAMILY.name: module.FAMILY
    for module in (
        arithmetic,
        calendar,
        equation,
        letters,
        logic,
        sequence,
        sets,
        sorting,
        string_edit,
        units,
    )
}
