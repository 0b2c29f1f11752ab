"""What the files beside the main one promise: order, ranks, pools, and errors with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import config
from orchestrator.errors import ConfigError


@pytest.fixture
def main(tmp_path: Path) -> Path:
    """An empty main file, with an empty conf.d beside it."""
    path = tmp_path / "orchestrator.toml"
    path.write_text("")
    (tmp_path / "conf.d").mkdir()
    return path


def add(main: Path, name: str, text: str) -> str:
    """Write a file of conf.d and return its path."""
    path = main.parent / "conf.d" / name
    path.write_text(text)
    return str(path)


def load(main: Path, **environ: str) -> config.Settings:
    return config.load(str(main), environ=environ)


def errors_of(main: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(main, **environ)
    return str(caught.value)


def test_later_file_outranks_the_earlier_and_both_the_main_one(main: Path) -> None:
    main.write_text('[node]\nname = "main"\n[web]\nbind = "off"\n[leader]\nterm = "1s"\n')
    ten = add(main, "10-a.toml", '[node]\nname = "ten"\n[web]\nbind = ":1"\n')
    two = add(main, "2-b.toml", '[node]\nname = "two"\n')

    settings = load(main)

    assert (settings.node.name, settings.web.bind, settings.leader.term) == ("two", ":1", 1.0)
    assert settings.files == (str(main), ten, two)


def test_origin_names_the_file_that_decided(main: Path) -> None:
    main.write_text('[node]\nname = "main"\n')
    later = add(main, "a.toml", '\n\n[node]\nname = "later"\n')

    settings = load(main)

    assert settings.origin("node.name") == f"{later}:4"
    assert settings.source == str(main)


def test_environment_outranks_every_file(main: Path) -> None:
    add(main, "a.toml", '[node]\nname = "file"\n')

    assert load(main, ORCHESTRATOR__NODE__NAME="variable").node.name == "variable"


def test_pool_of_a_later_file_is_added(main: Path) -> None:
    main.write_text('[[pool]]\nname = "cpu"\n')
    add(main, "a.toml", '[[pool]]\nname = "io"\nmode = "async"\n')

    assert [pool.name for pool in load(main).pools] == ["cpu", "io"]


def test_pool_of_a_later_file_replaces_the_one_of_its_name_whole(main: Path) -> None:
    main.write_text(
        '[[pool]]\nname = "a"\nprocesses = 3\nqueues = ["x"]\n[[pool]]\nname = "b"\nprocesses = 1\n'
    )
    add(main, "a.toml", '[[pool]]\nname = "a"\nprocesses = 5\n')

    pools = load(main).pools

    assert [(pool.name, pool.processes, pool.queues) for pool in pools] == [
        ("a", 5, ("*",)),
        ("b", 1, ("*",)),
    ]


def test_pool_without_a_name_replaces_the_default_one(main: Path) -> None:
    main.write_text("[[pool]]\nprocesses = 3\n")
    add(main, "a.toml", '[[pool]]\nname = "default"\nprocesses = 4\n')
    add(main, "b.toml", "[[pool]]\nprocesses = 5\n")

    assert [pool.processes for pool in load(main).pools] == [5]


def test_pool_without_any_in_the_main_file_is_the_only_one(main: Path) -> None:
    add(main, "a.toml", '[[pool]]\nname = "io"\n')

    assert [pool.name for pool in load(main).pools] == ["io"]


def test_same_name_twice_in_one_file_is_an_error(main: Path) -> None:
    main.write_text('[[pool]]\nname = "a"\n')
    twice = add(main, "a.toml", '[[pool]]\nname = "b"\n[[pool]]\nname = "b"\n')

    assert errors_of(main).startswith(f'{twice}:2: [[pool]] name = "b" must be given to one pool')


def test_pool_of_a_later_file_is_reached_by_its_name_in_the_environment(main: Path) -> None:
    main.write_text('[[pool]]\nname = "cpu"\n')
    add(main, "a.toml", '[[pool]]\nname = "io"\n')

    settings = load(main, ORCHESTRATOR__POOL__IO__PROCESSES="4", WORKER_POOL_SIZE="2")

    assert [pool.processes for pool in settings.pools] == [2, 4]


def test_errors_of_all_files_are_shown_at_once_in_their_order(main: Path) -> None:
    main.write_text("[node]\n\nnam = 1\n")
    first = add(main, "a.toml", '[web]\nbind = "x"\n[[pool]]\nname = "ok"\n[[pool]]\nnaem = 1\n')
    second = add(main, "b.toml", '[[pool]]\nname = "ok"\nprocesses = 0\n')

    lines = errors_of(main, LEADER_TERM="never").splitlines()

    assert lines[0] == f"5 settings are wrong ({main}):"
    assert [line.strip().split(" ")[0] for line in lines[1:]] == [
        f"{main}:3,",
        f"{first}:2,",
        f"{first}:6,",
        f"{second}:3,",
        "environment",
    ]


def test_rule_between_files_names_a_line_of_each(main: Path) -> None:
    main.write_text('[node]\nworker_timeout = "20s"\nkill_grace = "1s"\n')
    later = add(main, "a.toml", '[node]\nheartbeat_interval = "9s"\n')

    assert errors_of(main).startswith(f"{main}:2, {later}:2: [node] worker_timeout = 20s must be")


def test_file_that_is_no_toml_does_not_hide_the_errors_of_the_others(main: Path) -> None:
    main.write_text("[node\n")
    later = add(main, "a.toml", '[web]\nbind = "x"\n')

    # A pool of the unreadable file may be meant.
    lines = errors_of(main, ORCHESTRATOR__POOL__CPU__PROCESSES="4").splitlines()[1:]

    assert [line.strip().partition(" ")[0] for line in lines] == [f"{main}:", f"{later}:2,"]


def test_only_visible_toml_files_are_read(main: Path) -> None:
    for name in ("a.toml~", ".a.toml", "a.toml.dpkg-old", "README"):
        add(main, name, "no toml")

    assert load(main).files == (str(main),)


def test_link_that_leads_nowhere_is_an_error(main: Path) -> None:
    broken = main.parent / "conf.d/a.toml"
    broken.symlink_to("gone")

    assert errors_of(main).startswith(f"{broken}: no such file (named by conf.d)")


def test_folder_that_is_none_is_an_error(main: Path) -> None:
    (main.parent / "conf.d").rmdir()
    (main.parent / "conf.d").write_text("")

    assert "conf.d: cannot be listed" in errors_of(main)


def test_paths_of_a_later_file_start_at_the_same_base_folder(tmp_path: Path) -> None:
    folder = tmp_path / "conf"
    (folder / "conf.d").mkdir(parents=True)
    (folder / "orchestrator.toml").touch()
    add(folder / "orchestrator.toml", "a.toml", '[node]\nstate_directory = "state"\n')

    settings = load(folder / "orchestrator.toml")

    assert settings.node.state_directory == str(tmp_path / "state")


def test_table_of_weights_below_its_own_header_has_its_line(main: Path) -> None:
    main.write_text('[[pool]]\nname = "a"\n\n[pool.queues]\nmail = 3\nbulk = 0\n')

    assert errors_of(main).startswith(f"{main}:4, [[pool]] (number 1) queues = ")
