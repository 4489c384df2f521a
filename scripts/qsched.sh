#!/usr/bin/env bash
# Finds the coefficients of a quantized model and proves them on held-out prompts:
#
#     scripts/qsched.sh [STUDY.toml [OPTIONS OF qsched run]]
#     scripts/qsched.sh studies/demo.toml --trials 24
#
# Without arguments: SDXL-Turbo, 4 steps, W4A8, the study of the research script of this name. Interrupt it whenever you
# like; the same command goes on. The result lies in runs/NAME/coefficients.json, for scripts/collect_images.sh.
# Relative paths are relative to this repository. docs/how-to/from-the-research-script.md says what each old flag became.

(return 0 2>/dev/null) && { bash "${BASH_SOURCE[0]:-$0}" "$@"; return; } # the research scripts were sourced
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
case ${1:-} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' scripts/qsched.sh && exit ;; esac
scripts/install
exec .venv/bin/qsched run "${@:-studies/sdxl-turbo-w4a8.toml}"
