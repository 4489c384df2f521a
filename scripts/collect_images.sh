#!/usr/bin/env bash
# Makes an image set with the coefficients that scripts/qsched.sh found: numbered PNG files and a prompts.jsonl.
#
#     scripts/collect_images.sh --model MODEL --coefficients FILE --prompts FILE --out DIR [OPTIONS OF qsched generate]
#     scripts/collect_images.sh --model studies/demo.toml --coefficients runs/demo/coefficients.json \
#         --prompts studies/prompts/demo-heldout.txt --out runs/demo/images
#
# Images that are there are kept, so the same command goes on after an interrupt.
# Relative paths are relative to this repository. docs/how-to/from-the-research-script.md says what each old flag became.

(return 0 2>/dev/null) && { bash "${BASH_SOURCE[0]:-$0}" "$@"; return; } # the research scripts were sourced
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
case ${1:---help} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' scripts/collect_images.sh && exit ;; esac
scripts/install
exec .venv/bin/qsched generate "$@"
