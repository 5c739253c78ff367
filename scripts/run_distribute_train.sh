#!/usr/bin/env bash
# Train with several workers through msrun, in the foreground: runs src.launch, which explains itself with --help.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
launch_module src.launch "$@"
