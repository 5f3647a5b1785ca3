"""People name things by id, by a beginning of it, or by name."""

from __future__ import annotations

import pytest

from talkoo.names import resolve
from talkoo_core.errors import InvalidInput, NotFound

TASKS = [
    ("task-aa11", "digits", 1),
    ("task-aa22", "wine", 2),
    ("task-bb33", "digits", 3),
    ("task-cc44", "task-bb33x", 4),
]


def find(wanted: str, *, newest: bool = True) -> str:
    return resolve(
        "task",
        wanted,
        TASKS,
        id_of=lambda t: t[0],
        name_of=lambda t: t[1],
        newest=(lambda t: t[2]) if newest else None,
    )[0]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("task-aa11", "task-aa11"),
        ("wine", "task-aa22"),
        ("digits", "task-bb33"),
        ("task-b", "task-bb33"),
        ("bb3", "task-bb33"),
        ("aa2", "task-aa22"),
    ],
)
def test_the_one_that_is_meant_is_found(wanted: str, found: str) -> None:
    assert find(wanted) == found


def test_a_beginning_of_several_is_refused_with_their_names() -> None:
    with pytest.raises(InvalidInput, match=r"may be 2 tasks: task-aa11 \(digits\), task-aa22 \(wine\)"):
        find("task-aa")


def test_a_shared_name_is_ambiguous_where_none_is_newest() -> None:
    with pytest.raises(InvalidInput, match="'digits' may be 2 tasks"):
        find("digits", newest=False)


def test_what_is_not_there_is_said_with_a_guess() -> None:
    with pytest.raises(NotFound, match=r"there is no task 'digit'; did you mean digits\?"):
        find("digit")
    with pytest.raises(NotFound, match=r"there is no task 'zzzz'; `talkoo tasks` lists them"):
        find("zzzz")
    with pytest.raises(NotFound, match="there are no nodes yet"):
        resolve("node", "x", [], id_of=str, name_of=str)
