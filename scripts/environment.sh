# Sourced by the launchers. Sets ROOT, this repository's folder, and PYTHON, the interpreter that runs its programs: the
# caller's PYTHON if set, else the active virtual environment's, else .venv's, else the system's.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    if [[ -z ${VIRTUAL_ENV:-} && ${CONDA_DEFAULT_ENV:-base} == base && -x $ROOT/.venv/bin/python ]]; then
        echo "$ROOT/.venv/bin/python"
    else
        command -v python3 || command -v python
    fi
}

PYTHON=${PYTHON:-$(find_python || true)}
if ! PYTHON=$(command -v "$PYTHON"); then
    echo "error: no Python found: make an environment as the README says, or set PYTHON to an interpreter" >&2
    exit 2
fi

# The comment at the head of the running launcher is its help.
explain() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# launch PROGRAM ARGUMENT...: becomes that program of this repository, so that signals reach it and its exit code is ours.
launch() {
    local program=$1 argument
    shift
    for argument; do
        [[ $argument != --help && $argument != -h ]] || explain
    done
    exec "$PYTHON" "$ROOT/$program" "$@"
}
