# The virtual environment of a checkout; sourced by the programs of bin/, for any POSIX shell.
#
# `bootstrap run` or `bootstrap test` makes it, once for each content of setup.cfg and
# pyproject.toml; later calls cost a few milliseconds. Then $python is its interpreter, and the
# package is imported from the checkout by PYTHONPATH: nothing is installed into the environment
# but what the package requires, and nothing is written into a checkout that is not ours.
#
# `other_interpreters` and `bootstrap_other` do the same for every other Python of the machine, with
# what the unit tests need; those environments lie within the place of the first.
#
# Where it lies: .venv in the checkout if that can be written, else below $XDG_CACHE_HOME or
# ~/.cache, else in a private folder below $TMPDIR.

checkout=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd -P)

complain() {
    printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
}

give_up() {
    complain "$@"
    exit 1
}

# install_debian PACKAGE...: only root can, and only where there is apt-get.
install_debian() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        return 1
    fi
    complain "installing the system's packages $*"
    export DEBIAN_FRONTEND=noninteractive
    # The package lists of a fresh machine may be missing or old.
    { apt-get install -y -qq --no-install-recommends "$@" ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; }; } \
        >/dev/null 2>&1
}

_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

_can_make_venvs() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Sets $base: the interpreter that the environment is made with.
_find_python() {
    lacking=
    for base in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if _is_new_enough "$base"; then
            if _can_make_venvs "$base"; then
                return
            fi
            lacking=${lacking:-$base}
        fi
    done
    if [ -z "$lacking" ]; then
        give_up "needs Python 3.11 or newer, and found none among python3, python3.14 .. 3.11:" \
            "install one, or name it in the environment variable PYTHON"
    fi
    base=$lacking
    # Debian keeps ensurepip in a package of its own.
    package=$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if ! install_debian "$package" && ! install_debian python3-venv; then
        give_up "$base has no ensurepip, which virtual environments need: let root install it" \
            "(on Debian and Ubuntu: apt-get install $package)"
    fi
    _can_make_venvs "$base" || give_up "$base still has no ensurepip after installing $package"
}

# Sets $venv. $1 is what tells this checkout from others, $2 a folder within the place or "".
_choose_place() {
    if _is_complete "$checkout/.venv$2" || _is_writable "$checkout/.venv$2"; then
        venv=$checkout/.venv$2
        return
    fi
    # Not relative ones: the specification has them ignored.
    case ${XDG_CACHE_HOME:-} in
    /*) cache=$XDG_CACHE_HOME ;;
    *) cache=${HOME:-/nonexistent}/.cache ;;
    esac
    if mkdir -p -- "$cache/task-orchestrator" 2>/dev/null && [ -w "$cache/task-orchestrator" ]; then
        venv=$cache/task-orchestrator/venv-$1$2
        return
    fi
    private=${TMPDIR:-/tmp}/task-orchestrator-$(id -u)
    # Somebody else may have made it, to have us run his programs.
    mkdir -m 700 -- "$private" 2>/dev/null || true
    if [ ! -O "$private" ] || [ -L "$private" ]; then
        private=$(mktemp -d) || give_up "no place for a virtual environment: \$HOME is not" \
            "writable, and neither is ${TMPDIR:-/tmp}"
    fi
    venv=$private/venv-$1$2
}

_is_writable() {
    if [ -e "$1" ]; then [ -w "$1" ] && [ -O "$1" ]; else [ -w "$(dirname -- "$1")" ]; fi
}

# Complete is what was made for this content and runs: for this user, too, and still after an
# upgrade of the interpreter that it was made with.
_is_complete() {
    [ -r "$1/.stamp" ] || return 1
    read -r stamp_sum stamp_kind <"$1/.stamp" || return 1
    [ "$stamp_sum" = "$sum" ] || return 1
    [ "$stamp_kind" = test ] || [ "$stamp_kind" = "$kind" ] || return 1
    "$1/bin/python" -c 'import click, msgspec' >/dev/null 2>&1
}

# _make_once FUNCTION: has it fill $venv, unless that is complete.
_make_once() {
    if _is_complete "$venv"; then
        return
    fi
    mkdir -p -- "$(dirname -- "$venv")"
    # Two programs may start at once on a fresh checkout. Where there is no flock they had better
    # not.
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$venv.lock"
        flock 9
    fi
    # In a shell of its own: what it sets and how it ends is no business of ours.
    _is_complete "$venv" || ("$1") || return 1
    exec 9>&-
    rm -f -- "$venv.lock"
}

_fill_venv() {
    complain "setting up the virtual environment $venv (once, about 20 s)"
    _find_python
    if [ ! -x "$venv/bin/python" ] || ! _is_new_enough "$venv/bin/python"; then
        "$base" -m venv --clear "$venv" || give_up "cannot make the virtual environment $venv"
    fi
    if ! _install; then
        tail -n 15 -- "$venv/pip.log" >&2
        give_up "pip could not install what the package requires; all it said is in $venv/pip.log"
    fi
}

# Fills an environment that is nice to have; prints why it cannot.
_fill_other() {
    complain "setting up the virtual environment $venv (once, about 10 s)"
    if ! _can_make_venvs "$base"; then
        printf 'it has no ensurepip, which virtual environments need\n'
        return 1
    fi
    if ! "$base" -m venv --clear "$venv" >/dev/null 2>&1; then
        printf 'it cannot make the virtual environment %s\n' "$venv"
        return 1
    fi
    # Nothing is compiled for it: too new an interpreter has no wheels yet.
    if ! _install --only-binary :all:; then
        printf 'pip found no wheels, see %s\n' "$venv/pip.log"
        return 1
    fi
}

# _install [OPTION...]: what a $kind of environment needs, into $venv.
_install() {
    requirements=$venv/requirements.txt
    "$venv/bin/python" - "$checkout/setup.cfg" "$kind" >"$requirements" <<'PYTHON' || return 1
import configparser
import re
import sys

path, kind = sys.argv[1:]
setup = configparser.ConfigParser(interpolation=None)
setup.read(path, encoding="utf-8")
extras = {"run": ["embedded"], "unit": ["test"], "test": ["embedded", "test", "dev"]}[kind]
# What tests/conftest.py and tests/unit import.
needed = {"hypothesis", "psycopg", "pytest", "pytest-postgresql", "pytest-timeout"}
print(setup["options"]["install_requires"])
for extra in extras:
    for line in setup["options.extras_require"][extra].splitlines():
        if kind != "unit" or re.match(r"[\w-]*", line)[0] in needed:
            print(line)
PYTHON
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" -r "$requirements" \
        >"$venv/pip.log" 2>&1 || return 1
    printf '%s %s\n' "$sum" "$kind" >"$venv/.stamp"
}

bootstrap() {
    kind=$1
    # A sum of 32 bits is enough to notice a change, and cksum is everywhere.
    sum=$(cat -- "$checkout/setup.cfg" "$checkout/pyproject.toml" | cksum | tr ' \t' '--')
    _choose_place "$(printf '%s' "$checkout" | cksum | cut -d' ' -f1)" ''
    _make_once _fill_venv || exit 1
    python=$venv/bin/python
    PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH}
    export PYTHONPATH
    if [ ! -w "$checkout" ]; then
        PYTHONDONTWRITEBYTECODE=1
        export PYTHONDONTWRITEBYTECODE
    fi
}

# other_interpreters: prints a path for each version of CPython from 3.11 to 3.14 but that of
# $python: the first on the PATH, else the newest of pyenv's.
other_interpreters() {
    main=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    for minor in 11 12 13 14; do
        [ "3.$minor" != "$main" ] || continue
        { _on_path "python3.$minor" && _of_pyenv "3.$minor"; } | while IFS= read -r found; do
            # A shim of pyenv is there, and fails, for versions that are not switched on.
            version=$("$found" -c 'import sys
print(sys.implementation.name, "%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
            if [ "$version" = "cpython 3.$minor" ]; then
                printf '%s\n' "$found"
                break
            fi
        done
    done
}

_on_path() {
    (
        IFS=:
        for folder in $PATH; do
            [ ! -x "$folder/$1" ] || printf '%s\n' "$folder/$1"
        done
    )
}

_of_pyenv() {
    # Its folder may be another user's: then there is nothing to see.
    root=${PYENV_ROOT:-$(pyenv root 2>/dev/null || printf '%s' "${HOME:-/nonexistent}/.pyenv")}
    # shellcheck disable=SC2012 # names of versions are tame
    ls -d -- "$root/versions/$1".*/bin/python 2>/dev/null | sort -rV
}

# bootstrap_other PYTHON: sets $venv and $python to an environment for the unit tests. If that cannot
# be, sets $reason and returns 1. After `bootstrap`.
bootstrap_other() {
    kind=unit
    base=$1
    version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    _choose_place "$(printf '%s' "$checkout" | cksum | cut -d' ' -f1)" "/python$version"
    reason=$(_make_once _fill_other) || return 1
    python=$venv/bin/python
}
