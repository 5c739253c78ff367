# Sourced by the launchers. Sets ROOT, the folder of this repository, and PYTHON, the interpreter that runs its programs:
# PYTHON of the caller, else of the active virtual environment, else of .venv, else of the system.

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
    echo "error: no Python found: make an environment as the README explains, or set PYTHON to an interpreter" >&2
    exit 2
fi

# Print the comment at the head of the running launcher, which is its help.
explain() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# launch PROGRAM ARGUMENT...: replace this shell by that program of this repository, so that signals reach it and its
# exit code is returned.
launch() {
    local program=$1 argument
    shift
    for argument; do
        [[ $argument != --help && $argument != -h ]] || explain
    done
    exec "$PYTHON" "$ROOT/$program" "$@"
}
