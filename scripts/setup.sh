# Sourced by quickstart.sh and run_tests.sh: makes .venv with the packages of requirements-dev.txt, once, and sets PYTHON.

find_python() {
    local candidate
    for candidate in "${PYTHON_BIN:-python3}" python3.11 python3.12 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.10, 3.11 or 3.12 is needed, and none was found; name one with PYTHON_BIN=/path/to/python" >&2
    return 1
}

setup_environment() {
    local root wanted base
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    wanted=$(cat "$root"/requirements.txt "$root"/requirements-dev.txt)
    PYTHON="$root/.venv/bin/python"
    if [ -x "$PYTHON" ] && [ "$(cat "$root/.venv/installed.txt" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$PYTHON" ]; then
        base=$(find_python) || return 1
        echo "making $root/.venv with $("$base" --version)"
        "$base" -m venv "$root/.venv" || {
            echo "error: $base cannot make a virtual environment; install its venv module" >&2
            return 1
        }
    fi
    echo "installing the requirements (about 1 GB to download)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$root/requirements-dev.txt" || {
        echo "error: the installation failed; see above, fix that and run this again" >&2
        return 1
    }
    printf '%s\n' "$wanted" > "$root/.venv/installed.txt"
}
