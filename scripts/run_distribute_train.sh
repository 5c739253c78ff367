#!/usr/bin/env bash
# Trains with several workers through msrun, in the foreground: distribute.py, which says the rest with --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$PYTHON" "$ROOT/scripts/distribute.py" "$@"
