# Sourced by the launchers. Sets ROOT, this repository's folder, and PYTHON, the interpreter that runs its programs: the
# caller's PYTHON if set, else that of the active environment, of .venv, or of the system: the first with MindSpore.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

has_mindspore() {
    "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mindspore") is None)' > /dev/null 2>&1
}

find_python() {
    local own=$ROOT/.venv/bin/python candidate
    local candidates=("$own" python3 python)
    if [[ -n ${VIRTUAL_ENV:-} || ${CONDA_DEFAULT_ENV:-base} != base ]]; then
        candidates=(python3 python "$own")
    fi
    for candidate in "${candidates[@]}"; do
        if candidate=$(command -v "$candidate") && has_mindspore "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    command -v "$own" || command -v python3 || command -v python  # the program says what is missing
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

# launch_module NAME ARGUMENT...: the same for a module. `python -m` would look for src in the current folder first.
launch_module() {
    exec "$PYTHON" -c 'import runpy, sys
sys.path[0] = sys.argv.pop(1)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)' "$ROOT" "$@"
}
